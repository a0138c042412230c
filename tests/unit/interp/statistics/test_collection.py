"""A whole collection on a tiny model: every statistic against the equations; parts, groups, interruptions, refusals."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.unit.bundles.reference import assert_equal
from tests.unit.data.synthetic import documents, write_source
from tests.unit.interp.tiny import MODEL, SPARSE, T, V, collected, reference, write_checkpoint, write_data
from topklm.bundles import merge_bundles, open_bundle
from topklm.bundles.merge import windows_hash
from topklm.data.tokenizers import ByteTokenizer
from topklm.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from topklm.interp import CollectConfig, ReadTopK, collect
from topklm.interp.statistics.accumulate import LayerAccumulator
from topklm.interp.statistics.layer_pass import LayerPass


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory, data):
    return write_checkpoint(tmp_path_factory.mktemp("sparse"), data)


@pytest.fixture(scope="module")
def dense(tmp_path_factory, data):
    return write_checkpoint(tmp_path_factory.mktemp("dense"), data, topk=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sparse):
    """All windows, halves, and a snapshot of 100 tokens (13 windows)."""
    return collected(sparse, tmp_path_factory.mktemp("whole") / "b", snapshots=[100])


ALL = [*range(0, 200, T), *range(203, 203 + 56, T)]


def assert_same(bundle, expected, but=()):
    assert bundle.layers == sorted(expected)
    for layer, stats in expected.items():
        assert_equal(bundle.layer(layer).whole(), stats, rtol=1e-9, but=but)


def same_layers(a, b, rtol=1e-9):
    assert np.array_equal(a.counts, b.counts)
    for layer in a.layers:
        assert_equal(a.layer(layer).whole(), b.layer(layer).whole(), rtol=rtol)


def test_every_statistic_of_a_topk_model(whole, data):
    assert whole.windows.tolist() == ALL
    assert whole.n_tokens == whole.counts.sum() == len(ALL) * T
    assert [whole.layer(i).kind for i in range(3)] == ["topk", "topk", "dense"]
    assert_same(whole, reference(whole, ALL, data))
    assert whole.layer(0).stats.l0_histogram[4] > 0


@pytest.mark.parametrize(
    ("topk", "settings", "expected"),
    [
        (SPARSE, {"alpha": 0.25}, {"alpha": 0.25}),
        (SPARSE, {"site": "pre"}, {"site": "pre"}),
        (None, {}, {"topk": None}),
        (None, {"read_topk": ReadTopK(k=5)}, {"topk": None, "cut": ReadTopK(k=5)}),
    ],
    ids=["annealing", "before the cut", "dense", "dense read through a cut"],
)
def test_every_statistic_of_other_readings(sparse, dense, tmp_path, data, topk, settings, expected):
    bundle = collected(dense if topk is None else sparse, tmp_path / "b", snapshots=[], halves=False, **settings)
    assert bundle.parts == []
    assert_same(bundle, reference(bundle, ALL, data, **expected))


def test_attention_stays_inside_documents_if_the_model_does(tmp_path, data):
    checkpoint = write_checkpoint(tmp_path / "m", data, document_mask=True)
    bundle = collected(checkpoint, tmp_path / "b", snapshots=[], halves=False)
    arrays = {0: documents(203, 5), 203: documents(61, 5)}

    def documents_of(start):
        first = 203 if start >= 203 else 0
        ids = np.repeat(np.arange(len(arrays[first])), [len(d) for d in arrays[first]])
        return ids[start - first : start - first + T].tolist()

    assert bundle.meta.corpus.document_mask
    # Equal beginnings of documents tie but for the last digits: their order is not the equations'.
    expected = reference(bundle, ALL, data, documents_of=documents_of, document_mask=True)
    assert_same(bundle, expected, but=["top_position"])


def test_parts_are_snapshots_and_halves(whole, data, tmp_path):
    assert [part.name for part in whole.meta.parts] == ["00a", "00b", "01a", "01b"]
    for part, bundle in zip(whole.meta.parts, whole.parts, strict=True):
        assert bundle.n_tokens == part.n_tokens
        assert bundle.meta.windows_sha256 == windows_hash(bundle.windows)
        assert_same(bundle, reference(bundle, bundle.windows.tolist(), data))
    sizes = [sum(bundle.n_tokens for bundle in parts) for parts in whole.snapshots()]
    assert sizes == [13 * T, 32 * T]
    halves = [merge_bundles(whole.half(name), tmp_path / name) for name in "ab"]
    assert [half.n_tokens for half in halves] == [16 * T, 16 * T]
    same_layers(merge_bundles(halves, tmp_path / "both"), whole)


@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_batch_size_changes_nothing(sparse, whole, tmp_path, batch_size):
    same_layers(collected(sparse, tmp_path / "b", batch_size=batch_size, snapshots=[], halves=False), whole)


class StopError(Exception):
    """The process dies here."""


def failing(self, *_):
    if self.layer == 1:
        raise StopError


def test_layers_counted_by_threads_beside_the_model(sparse, whole, tmp_path, monkeypatch):
    """The same for any number of threads; what fails in one of them is told, and threads made later have theirs."""
    torch.set_num_threads(3)
    try:
        bundle = collected(sparse, tmp_path / "b", snapshots=[100])
        with monkeypatch.context() as patch:
            patch.setattr(LayerAccumulator, "add", failing)
            with pytest.raises(StopError):
                collected(sparse, tmp_path / "c")
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(1)
    same_layers(bundle, whole)


def test_layers_that_do_not_fit_are_collected_in_several_passes(sparse, whole, tmp_path, caplog):
    caplog.set_level("INFO", "topklm.interp")
    bundle = collected(sparse, tmp_path / "b", snapshots=[100], memory_gb=3.5e-4)
    assert "in 3 passes over each part" in caplog.text
    same_layers(bundle, whole, rtol=0)
    only = collected(sparse, tmp_path / "c", layers=[1], halves=False, snapshots=[])
    assert only.layers == [1]
    assert_equal(only.layer(1).whole(), whole.layer(1).whole(), rtol=1e-12)
    with pytest.raises(ConfigError, match=r"layer 0 alone needs 0.0 GB.*raise it, or take fewer tokens"):
        collected(sparse, tmp_path / "d", memory_gb=1e-5)


def contents(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("passes", [1, 2])
def test_interrupted_after_any_batch_and_gone_on_with_is_the_same_to_the_last_bit(
    sparse, whole, tmp_path, monkeypatch, passes
):
    settings = {"snapshots": [100], "save_minutes": 0, **({"memory_gb": 4.5e-4} if passes > 1 else {})}
    run, budget = LayerPass.run, 0

    def dying(self, batches):
        nonlocal budget
        for n in run(self, batches):
            yield n  # saved by now
            budget -= 1
            if budget == 0:
                raise StopError

    monkeypatch.setattr(LayerPass, "run", dying)
    starts = 0
    out = tmp_path / "b"
    while not out.exists():
        starts += 1
        budget = 3
        try:
            collected(sparse, out, **settings)
        except StopError:
            assert not out.exists()
    assert starts >= 4 * passes
    assert not (tmp_path / "b.tmp").exists()
    assert contents(out) == contents(whole.path)


def test_a_damaged_state_is_not_gone_on_with(sparse, whole, tmp_path, monkeypatch):
    run = LayerPass.run

    def dying(self, batches):
        for i, n in enumerate(run(self, batches)):
            yield n
            if i == 1:
                raise StopError

    out = tmp_path / "b"
    with monkeypatch.context() as patch:
        patch.setattr(LayerPass, "run", dying)
        with pytest.raises(StopError):
            collected(sparse, out, snapshots=[100], save_minutes=0)
    (state,) = (tmp_path / "b.tmp" / "work").glob("*/layer_01.safetensors")
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    assert contents(collected(sparse, out, snapshots=[100]).path) == contents(whole.path)


def test_a_bundle_that_is_there_is_left_and_another_one_refused(sparse, tmp_path, caplog):
    caplog.set_level("INFO", "topklm.interp")
    bundle = collected(sparse, tmp_path / "b", tokens=80)
    before = bundle.path.stat().st_mtime_ns
    assert collected(sparse, tmp_path / "b", tokens=80, batch_size=1).path.stat().st_mtime_ns == before
    assert "is there already" in caplog.text
    for change, text in (
        ({"tokens": 160}, "corpus.choice: 19 of 32 windows.* and 9 of 32"),
        ({"alpha": 0.5}, "model.alpha: 0.5 and 0.0"),
        ({"near_miss": 0.2}, "settings.near_miss: 0.2 and 0.1"),
        ({"halves": False}, "snapshots, halves: other parts"),
    ):
        with pytest.raises(ConfigError, match=f"holds another collection .*{text}.*out=DIR.*overwrite=true"):
            collected(sparse, tmp_path / "b", **({"tokens": 80} | change))
    assert collected(sparse, tmp_path / "b", tokens=160, overwrite=True).n_tokens == 152
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_an_unfinished_collection_of_something_else_is_refused(sparse, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LayerPass, "run", lambda self, batches: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            collected(sparse, tmp_path / "b", tokens=80)
    with pytest.raises(ConfigError, match=r"is an unfinished collection of something else \(settings.near_miss"):
        collected(sparse, tmp_path / "b", tokens=80, near_miss=0.3)
    bundle = collected(sparse, tmp_path / "b", tokens=80, near_miss=0.3, overwrite=True)
    assert bundle.meta.settings.near_miss == 0.3


def test_initial_weights_are_a_control_from_the_same_command(sparse, data, tmp_path):
    path = tmp_path / "b"
    bundle = collected(sparse, path, init="random", snapshots=[], halves=False)
    assert (bundle.meta.model.step, bundle.meta.model.init, bundle.meta.model.sha256) == (0, "random", None)
    assert bundle.meta.model.alpha == 0.0  # the checkpoint's, not that of step 0
    trained = collected(sparse, tmp_path / "t", snapshots=[], halves=False)
    assert not np.allclose(bundle.layer(0).stats.sum, trained.layer(0).stats.sum)


def test_default_places_tell_what_was_read(sparse, dense, tmp_path, data):
    def place(checkpoint, **settings):
        config = CollectConfig(ckpt=str(checkpoint), tokens=80, **settings)
        (path,) = collect(config)
        return path.relative_to(checkpoint.parent)

    assert str(place(sparse)) == "bundles/0000000010"
    assert str(place(sparse, alpha=0.5, site="pre", dtype="bf16")) == "bundles/0000000010-alpha0.5-pre-bf16"
    assert str(place(sparse, init="random")) == "bundles/0000000000-init"
    assert str(place(dense, read_topk=ReadTopK(k=3, relu=False, n_dense_tail=1), split="all")) == (
        "bundles/0000000010-read_topk3_signed_tail1-all"
    )


def test_every_checkpoint_of_a_run(tmp_path, data):
    run = tmp_path / "run"
    for step in (5, 10):
        directory = run / "checkpoints" / f"{step:010d}"
        write_checkpoint(directory / "consolidated", data, step=step, name="consolidated.pth")
    files = [run / "checkpoints" / f"{step:010d}" for step in (5, 10)]
    paths = collect(CollectConfig(ckpt=str(run), ckpts="all", tokens=80, out=str(tmp_path / "out")))
    assert [path.name for path in paths] == ["0000000005", "0000000010"]
    assert [open_bundle(path).meta.model.alpha for path in paths] == [0.5, 0.0]
    assert [open_bundle(path).layer(0).kind for path in paths] == ["dense", "topk"]
    assert open_bundle(paths[0]).parts == []
    assert collect(CollectConfig(ckpt=str(run), ckpts=[10], tokens=80, out=str(tmp_path / "out")))[0] == paths[1]
    pure = collect(CollectConfig(ckpt=str(run), ckpts="all", alpha=0.0, tokens=80, out=str(tmp_path / "out")))
    assert [path.name for path in pure] == ["0000000005-alpha0", "0000000010"]  # the latter is pure by itself
    # The newest was collected with its corpus sizes before: the history takes it as it is.
    collect(CollectConfig(ckpt=str(files[1]), tokens=80, out=str(tmp_path / "all/0000000010")))
    history = collect(CollectConfig(ckpt=str(run), ckpts="all", tokens=80, out=str(tmp_path / "all")))
    assert [bool(open_bundle(path).parts) for path in history] == [False, True]
    with pytest.raises(ConfigError, match="snapshots, halves: other parts"):
        collect(CollectConfig(ckpt=str(run), ckpts="all", tokens=80, halves=False, out=str(tmp_path / "all")))
    (usual,) = collect(CollectConfig(ckpt=str(run), ckpts=[5], tokens=80))
    assert usual == run / "bundles" / "0000000005"
    with pytest.raises(ConfigError, match=r"ckpts: 7: not in .* which has 5, 10"):
        collect(CollectConfig(ckpt=str(run), ckpts=[7], tokens=80))
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        collect(CollectConfig(ckpt=str(files[0]), ckpts="all"))


def test_what_does_not_fit_is_told(sparse, dense, tmp_path, data):
    out = tmp_path / "b"
    with pytest.raises(ConfigError, match="read_topk: is for dense models"):
        collected(sparse, out, read_topk=ReadTopK(k=3))
    with pytest.raises(ConfigError, match=r"layers: 3: the model's are 0 ... 2"):
        collected(sparse, out, layers=[0, 3])
    with pytest.raises(ConfigError, match="is a dense model; it has no alpha"):
        collected(dense, out, alpha=0.0)
    with pytest.raises(DataError, match="no source a whole window of 500"):
        collected(sparse, out, context=500)
    with pytest.raises(DataError, match="holds no prepared source"):
        collected(sparse, out, data=str(tmp_path))
    write_source(tmp_path / "other", "x", [np.arange(100)], [np.arange(100)])
    with pytest.raises(DataError, match=r"the corpus has token \d+, the model knows 50"):
        collected(sparse, out, data=str(tmp_path / "other"))
    assert not out.exists()
    assert not out.with_name("b.tmp").exists()


def test_the_corpus_must_have_the_models_tokenizer(tmp_path, data, sparse):
    directory = tmp_path / "m"
    checkpoint = write_checkpoint(directory, data)
    ByteTokenizer().save(directory / "tokenizer")
    with pytest.raises(DataError, match="was prepared with tokenizer tttttttttttt"):
        collected(checkpoint, tmp_path / "b")


def test_a_broken_checkpoint_is_told(tmp_path, data):
    checkpoint = write_checkpoint(tmp_path / "m", data)
    content = torch.load(checkpoint)
    content["model"]["layers.1.feed_forward.w2.weight"][0] = torch.nan
    torch.save(content, checkpoint)
    with pytest.raises(NonFiniteError, match=r"layer 1: .* are NaN or infinite"):
        collected(checkpoint, tmp_path / "b", layers=[1])


def test_provenance_is_complete(whole, sparse):
    meta = json.loads((whole.path / "meta.json").read_text())
    assert meta["model"]["path"] == str(sparse)
    assert meta["model"]["model"] == dataclasses.asdict(MODEL)
    assert meta["model"]["topk"]["k"] == 4
    assert [part["n_tokens"] for part in meta["corpus"]["parts"]] == [203, 61]
    assert meta["corpus"]["choice"] == "all whole windows"
    assert meta["checks"]["one window at a time"]["tokens_differ"] == 0.0
    assert meta["made"][0]["batch_size"] == 3
    assert len(whole.types) <= V
