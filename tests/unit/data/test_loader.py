import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data import DataConfig, TokenArray, TrainData, TrainLoader, n_micro_batches, open_data
from topklm.data.loader import IGNORE, Batch
from topklm.errors import DataError

from .synthetic import documents, two_sources, write_source


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TrainData:
    return two_sources(tmp_path_factory.mktemp("prepared"))


def global_batch(data: TrainData, batch_size: int, step: int) -> list[list[int]]:
    """The windows of a step straight from the order and the tokens, seq_len + 1 each."""
    source, window = data.order().samples(step * batch_size, (step + 1) * batch_size)
    T, rows = data.seq_len, []
    for s, w in zip(source, window, strict=True):
        tokens = data.train[data.names[s]]
        rows.append(tokens.read(0, len(tokens))[w * T : w * T + T + 1].tolist())
    return rows


def scored_rows(batches: list[Batch]) -> list[list[int]]:
    """Windows of all rows that are no padding, in order."""
    rows = []
    for batch in batches:
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            if targets == [IGNORE] * len(targets):
                assert not any(tokens)
                continue
            assert IGNORE not in targets
            assert tokens[1:] == targets[:-1]
            rows.append([*tokens, targets[-1]])
    return rows


@settings(max_examples=60, deadline=None)
@given(
    batch_size=st.integers(1, 40),
    micro=st.integers(1, 12),
    world=st.integers(1, 6),
    start=st.integers(0, 200),
    load_async=st.booleans(),
)
def test_all_ranks_together_make_the_global_batch(data, batch_size, micro, world, start, load_async):
    ranks = []
    for rank in range(world):
        loader = TrainLoader(
            data, global_batch_size=batch_size, micro_batch_size=micro, rank=rank, world_size=world,
            start_step=start, load_async=load_async, prefetch_size=2,
        )  # fmt: skip
        ranks.append(list(islice(loader, 2)))
        loader.close()
    for i in range(2):
        expected = global_batch(data, batch_size, start + i)
        for rank, steps in enumerate(ranks):
            assert steps[i].step == start + i
            assert steps[i].n_targets == batch_size * data.seq_len
            assert scored_rows(steps[i].micro_batches) == expected[rank::world]
        shapes = {tuple(tuple(b.tokens.shape) for b in steps[i]) for steps in ranks}
        assert len(shapes) == 1  # the same micro-batches on every rank
        (shape,) = shapes
        assert len(shape) == n_micro_batches(batch_size, micro, world) == len(ranks[0][i])
        assert len(set(shape)) == 1
        assert shape[0][0] <= micro
        n_rows = world * len(shape) * shape[0][0]
        assert n_rows - batch_size < world * (len(shape) + 1)  # little padding


def test_full_micro_batches_where_the_numbers_fit(data):
    loader = TrainLoader(data, global_batch_size=24, micro_batch_size=4, rank=1, world_size=2, load_async=False)
    (step,) = islice(loader, 1)
    assert [tuple(b.tokens.shape) for b in step] == [(4, 8)] * 3
    for batch in step:
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.tokens.is_contiguous()
        assert batch.targets.is_contiguous()
        assert batch.document_ids is None
        assert (batch.targets != IGNORE).all()


def test_an_epoch_shows_every_token_but_the_tail(tmp_path):
    write_source(tmp_path, "s", documents(203))
    data = open_data(DataConfig(root_dir=str(tmp_path), sources={"s": 1.0}, seq_len=10))
    assert "2 tokens at the end fill none" in data.summary()[0]
    loader = TrainLoader(data, global_batch_size=4, micro_batch_size=4, load_async=False)
    targets = torch.cat([b.targets for step in islice(loader, 5) for b in step]).flatten()
    assert sorted(targets.tolist()) == list(range(1, 201))


def test_document_ids_follow_the_documents(data):
    loader = TrainLoader(data, global_batch_size=16, micro_batch_size=5, load_async=False, with_document_ids=True)
    owner = {}
    for tokens in data.train.values():  # token values are unique over both sources
        everything = tokens.read(0, len(tokens)).tolist()
        owner |= dict(zip(everything, tokens.document_ids(0, len(tokens)).tolist(), strict=True))
    checked = 0
    for step in islice(loader, 5):
        for batch in step:
            real = batch.targets[:, 0] != IGNORE
            assert batch.document_ids[real].tolist() == [[owner[t] for t in row] for row in batch.tokens[real].tolist()]
            assert not batch.document_ids[~real].any()
            checked += int(real.sum())
    assert checked == 80


def test_documents_of_a_step_are_those_of_its_tokens(data):
    loader = TrainLoader(data, global_batch_size=6, micro_batch_size=2, rank=1, world_size=2, start_step=11)
    (step,) = islice(loader, 1)
    loader.close()
    for i, batch in [(None, None), *enumerate(step.micro_batches)]:
        shown = loader.documents_of_step(11, i)
        found = set()
        for document in shown:
            source, split, rest = document.split("/")
            shard, _, place = rest.rpartition(":")
            folder = Path(data.config.root_dir) / source / split
            offsets = np.load(folder / f"{shard}.offsets.npy")[int(place) :][:2]
            found |= set(np.load(folder / f"{shard}.tokens.npy")[slice(*offsets)].tolist())
        rows = scored_rows(step.micro_batches if batch is None else [batch])
        assert {token for row in rows for token in row} <= found
        assert len(shown) == len(set(shown))
    assert len(loader.documents_of_step(11, 0)) < len(loader.documents_of_step(11))


def test_making_and_reading_a_loader_leaves_the_random_state_alone(data):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader = TrainLoader(data, global_batch_size=4, micro_batch_size=2)
    list(islice(loader, 3))
    loader.close()
    assert torch.equal(before, torch.get_rng_state())


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "topklm-prefetch"]


def test_prefetching_reads_ahead_so_far_and_stops(data, monkeypatch):
    reads = []
    monkeypatch.setattr("topklm.data.loader._Reader.read", lambda self, step: reads.append(step) or f"step {step}")
    loader = TrainLoader(data, global_batch_size=4, micro_batch_size=2, prefetch_size=3, start_step=7)
    iterator = iter(loader)
    assert next(iterator) == "step 7"
    deadline = time.monotonic() + 5
    while len(reads) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert reads == [7, 8, 9, 10, 11]  # taken, three in the queue, one in the thread's hands
    loader.close()
    loader.close()
    assert threads() == []
    assert list(iterator) == []


def test_a_dropped_iterator_ends_its_thread(data):
    loader = TrainLoader(data, global_batch_size=4, micro_batch_size=2)
    iterator = iter(loader)
    next(iterator)
    assert len(threads()) == 1
    next(iter(loader))  # a second iteration ends the first
    assert len(threads()) == 1
    del iterator, loader
    assert threads() == []


@pytest.mark.parametrize("load_async", [True, False])
def test_an_error_while_reading_arrives_at_its_step(data, monkeypatch, load_async):
    read_into = TokenArray.read_into
    calls = []

    def fails(self, start, out):
        calls.append(start)
        if len(calls) > 8:
            raise OSError("disk on fire")
        read_into(self, start, out)

    monkeypatch.setattr(TokenArray, "read_into", fails)
    loader = TrainLoader(data, global_batch_size=4, micro_batch_size=2, load_async=load_async)
    iterator = iter(loader)
    assert [next(iterator).step, next(iterator).step] == [0, 1]
    with pytest.raises(OSError, match="disk on fire"):
        next(iterator)
    loader.close()
    assert threads() == []


def test_a_token_beyond_the_vocabulary_is_refused_with_its_document(tmp_path):
    write_source(tmp_path, "s", [[1, 2, 3], [4, 5, 65_000, 6, 7, 8]])
    data = open_data(DataConfig(root_dir=str(tmp_path), sources={"s": 1.0}, seq_len=8))
    with pytest.raises(DataError, match=r"65000 is beyond the vocabulary.*s/train/part_00000:1"):
        next(iter(TrainLoader(data, global_batch_size=1, micro_batch_size=1, load_async=False)))


@pytest.mark.parametrize("how", ["falls off the end", "exits", "raises", "SIGTERM handled", "SIGKILL"])
def test_the_process_ends_as_it_wants_to(tmp_path, how):
    """A trainer with a full queue: no hang, no crash at exit, no disturbed signal."""
    write_source(tmp_path, "s", documents(500))
    program = f"""
import signal, sys
from topklm.data import DataConfig, TrainLoader, open_data
data = open_data(DataConfig(root_dir={str(tmp_path)!r}, sources={{"s": 1.0}}, seq_len=8))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
loader = TrainLoader(data, global_batch_size=4, micro_batch_size=2, load_async=True)
iterator = iter(loader)
next(iterator)
how = {how!r}
if how == "exits": sys.exit(3)
if how == "raises": raise KeyError("x")
if how.startswith("SIG"):
    print("ready", flush=True)
    while not stop: next(iterator)
    print(next(iterator).step > 0)
    sys.exit(4)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if how.startswith("SIG"):
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL if how == "SIGKILL" else signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    codes = {"falls off the end": 0, "exits": 3, "raises": 1, "SIGTERM handled": 4, "SIGKILL": -9}
    assert process.returncode == codes[how], err
    assert ("True" in out) == (how == "SIGTERM handled")
    assert ("KeyError" in err) == (how == "raises")


def test_fingerprint_knows_what_decides_the_batches(tmp_path, data):
    def fingerprint(**change):
        return dataclasses.replace(data, config=dataclasses.replace(data.config, **change)).fingerprint

    assert fingerprint() == data.fingerprint == TrainLoader(data, global_batch_size=1, micro_batch_size=1).fingerprint
    assert fingerprint(sources={"a": 0.75, "b": 0.25}) == data.fingerprint  # 3 : 1 as well
    assert fingerprint(batch_size=17, global_batch_size=5, load_async=False) == data.fingerprint
    for change in ({"seed": 6}, {"seq_len": 9}, {"sources": {"a": 1.0, "b": 1.0}}):
        assert fingerprint(**change) != data.fingerprint
    assert two_sources(tmp_path).fingerprint == data.fingerprint  # elsewhere, but the same
    write_source(tmp_path, "b", documents(301, 10_000), documents(30, 30_000))
    assert open_data(dataclasses.replace(data.config, root_dir=str(tmp_path))).fingerprint != data.fingerprint


def test_open_data_tells_everything_at_once(tmp_path):
    two_sources(tmp_path)
    write_source(tmp_path, "short", [[1, 2, 3]], sha256="t" * 64)
    write_source(tmp_path, "other", documents(50), sha256="u" * 64)
    write_source(tmp_path, "broken", documents(50))
    (tmp_path / "broken" / "train" / "part_00000.tokens.npy").unlink()
    sources = dict.fromkeys(["a", "short", "other", "broken", "bb", "nowhere"], 1.0)
    with pytest.raises(DataError) as error:
        open_data(DataConfig(root_dir=str(tmp_path), sources=sources, seq_len=8))
    message = str(error.value)
    for part in (
        "5 problems",
        "source short has 3 training tokens",
        "different tokenizers",
        "part_00000.tokens.npy is missing",
        "source bb is not in",
        "did you mean b?",
        "source nowhere is not in",
        "python -m apps.prepare",
    ):
        assert part in message
    with pytest.raises(DataError, match=r"data\.root_dir .* does not exist; .* python -m apps\.prepare"):
        open_data(DataConfig(root_dir=str(tmp_path / "no"), sources={"a": 1.0}))


def test_open_data_verifies_on_request(tmp_path):
    config = two_sources(tmp_path).config
    path = tmp_path / "b" / "val" / "part_00000.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    open_data(config)
    with pytest.raises(DataError, match="b/val/part_00000"):
        open_data(dataclasses.replace(config, verify=True))


def test_data_knows_its_tokenizer(data):
    assert data.vocab_size == 60_000
    assert data.tokenizer_dir == Path(data.config.root_dir) / "a" / "tokenizer"
    assert data.names == ["a", "b"]


def test_config_problems():
    config = DataConfig(
        sources={"a": 0.0, "b": float("nan"), "c": 1.0}, batch_size=0, global_batch_size=0, seq_len=0, seed=-1,
        prefetch_size=0,
    )  # fmt: skip
    assert {p.key for p in config.problems()} == {
        "root_dir", "sources.a", "sources.b", "batch_size", "global_batch_size", "seq_len", "seed", "prefetch_size",
    }  # fmt: skip
    assert {p.key for p in DataConfig(root_dir="x").problems()} == {"sources"}
    assert not list(DataConfig(root_dir="x", sources={"a": 1.0}).problems())


def test_importing_the_room_costs_no_torch():
    code = (
        "import sys, topklm.data; from topklm.data import ShardWriter, DataConfig, open_data;"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
