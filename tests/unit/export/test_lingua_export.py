"""`to=lingua` and `to=consolidated`: the same model comes back bit for bit, and genuine Lingua computes the same."""

import dataclasses
import json
import logging

import pytest
import torch

from tests.genuine import checkout, run_genuine
from tests.unit.checkpoint.lingua_layout import TIED, TINY, tokens, write_checkpoint
from topklm import load_model
from topklm.checkpoint import CheckpointConfig, CheckpointStore
from topklm.config import to_dict
from topklm.data import load_tokenizer
from topklm.errors import ConfigError, ParityError
from topklm.export.consolidated import export_consolidated
from topklm.export.lingua import export_lingua
from topklm.export.source import open_source
from topklm.model import build_model
from topklm.model.rope_scaling import RopeScaling
from topklm.sparsity import TopKConfig

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
ODD = dataclasses.replace(TINY, ffn_dim=37, head_dim=10, document_mask=True, backend="lingua")
SPARSE = TopKConfig(k=5, n_dense_tail=1, anneal_steps=40)


@pytest.fixture
def save(tmp_path):
    """Make a checkpoint of ours, as training does."""

    def save(config, topk=None, step=50, name="run"):
        model = build_model(dataclasses.replace(config, backend="native"), topk)
        optimizer = torch.optim.AdamW(model.parameters())
        store = CheckpointStore(tmp_path / name / "checkpoints", CheckpointConfig(), 0, None)
        load_tokenizer("bytes").save(tmp_path / "tokenizer")
        params = {"name": name, "steps": 60, "model": to_dict(config), "topk": topk and to_dict(topk),
                  "distributed": {"model_dtype": "fp32"}}  # fmt: skip
        state = {"step": step, "rng": {}, "data": {}}
        store.save(step, model, optimizer, state, params, tmp_path / "tokenizer")
        return tmp_path / name / "checkpoints" / f"{step:010d}"

    return save


CASES = {"dense": (TINY, None), "tied": (TIED, None), "topk": (TINY, SPARSE), "odd, topk, tied":
         (dataclasses.replace(ODD, weight_tying=True), SPARSE)}  # fmt: skip


@pytest.mark.parametrize(("config", "topk"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("step", [10, 50])  # alpha 0.75 and 0
def test_both_forms_come_back_bit_for_bit(config, topk, step, save, tmp_path):
    source = open_source(save(config, topk, step))
    directory = export_lingua(source, tmp_path / "lingua")
    places = [directory, directory / "consolidated", export_consolidated(source),
              export_consolidated(source, tmp_path / "consolidated")]  # fmt: skip
    assert places[2] == source.config.path / "consolidated" / "consolidated.pth"
    for place in places:
        model, tokenizer, loaded = load_model(place)
        assert torch.equal(model(tokens()), source.model(tokens()))
        assert (loaded.alpha, loaded.step) == (source.config.alpha, step)
        assert loaded.alpha == (None if topk is None else 0.75 if step == 10 else 0.0)
        assert loaded.model.ffn_width == config.ffn_width
        assert tokenizer.sha256 == load_tokenizer("bytes").sha256
    assert load_model(directory)[2].sha256 is not None


def test_an_export_of_an_export_and_of_lingua_itself(save, tmp_path):
    first = export_lingua(open_source(save(ODD, SPARSE)), tmp_path / "first")
    second = export_lingua(open_source(first), tmp_path / "second")
    assert torch.equal(load_model(second)[0](tokens()), load_model(first)[0](tokens()))
    theirs = write_checkpoint(tmp_path / "theirs", TIED)
    ours = load_model(export_consolidated(open_source(tmp_path / "theirs"), tmp_path / "ours"))[0]
    assert torch.equal(ours(tokens()), theirs(tokens()))


def test_the_params_hold_what_lingua_knows_and_a_topk_section_only_where_there_is_one(save, tmp_path):
    for name, topk in (("dense", None), ("sparse", SPARSE)):
        out = export_lingua(open_source(save(ODD, topk, name=name)), tmp_path / f"of_{name}")
        for file in (out / "params.json", out / "consolidated" / "params.json"):
            params = json.loads(file.read_text())
            assert ("topk" in params) == (topk is not None)
            assert "ffn_dim" not in params["model"]
            assert (params["model"]["multiple_of"], params["model"]["sliding_window"]) == (1, None)
            assert params["data"]["tokenizer"] == {"name": "bytes", "path": None}


def test_a_topk_export_says_loudly_that_lingua_runs_it_dense(save, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        out = export_lingua(open_source(save(ODD, SPARSE)), tmp_path / "out")
    card = (out / "README.md").read_text()
    for text in (caplog.text, card):
        assert "THIS IS A TOPK MODEL" in text
        assert "as a dense model, without an error or a word" in text
        assert "document_mask" in text
    assert "sparsify(model, TopKConfig(k=5, n_dense_tail=1" in card
    caplog.clear()
    out = export_lingua(open_source(save(TINY, name="dense")), tmp_path / "dense_out")
    assert "TOPK" not in caplog.text + (out / "README.md").read_text()


def test_what_lingua_cannot_hold_is_refused_with_reasons(save, tmp_path):
    scaled = dataclasses.replace(TINY, rope_scaling=RopeScaling(), dim=50, head_dim=10)
    with pytest.raises(ConfigError, match="without scaling") as caught:
        export_lingua(open_source(save(scaled)), tmp_path / "out")
    assert [problem.key for problem in caught.value.problems] == ["rope_scaling", "n_heads"]
    checkpoint = save(TINY, SPARSE, name="other")
    with pytest.raises(ConfigError, match=r"alpha = 0\.3, which is not that of its step"):
        export_lingua(open_source(checkpoint, alpha=0.3), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pure = export_lingua(open_source(save(TINY, SPARSE, step=10, name="pure"), alpha=0.0), tmp_path / "out")
    assert load_model(pure)[2].alpha == 0.0


def test_a_wrong_export_is_noticed_and_does_not_stay(save, tmp_path, monkeypatch):
    from topklm.export import lingua

    def damaged(weights, *args):
        write(weights | {"norm.weight": weights["norm.weight"] + 1e-7}, *args)

    write = lingua.write_consolidated
    monkeypatch.setattr(lingua, "write_consolidated", damaged)
    with pytest.raises(ParityError, match=r"reads back as another model: norm\.weight"):
        export_lingua(open_source(save(TINY)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


LOAD = """
from dataclasses import asdict
from apps.main.generate import load_consolidated_model_and_tokenizer
from apps.main.train import TrainArgs
from apps.main.transformer import LMTransformer, LMTransformerArgs
from lingua.args import dataclass_from_dict
from lingua.checkpoint import load_from_checkpoint
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
x = torch.load("tokens.pt", weights_only=True)
for name in json.loads(sys.argv[1]):
    out = Path(name)
    by_file, tokenizer, config = load_consolidated_model_and_tokenizer(out / "consolidated")
    assert tokenizer.n_words == 258
    params = json.loads((out / "params.json").read_text())
    topk = params.pop("topk", None)
    args = dataclass_from_dict(TrainArgs, params)
    by_dcp = LMTransformer(args.model)
    load_from_checkpoint(out, by_dcp, model_key="model")
    models = {"by_file": by_file, "by_dcp": by_dcp}
    if topk:
        try:
            dataclass_from_dict(TrainArgs, {**params, "topk": topk})
            raise SystemExit("Lingua takes the key topk")
        except Exception as error:
            assert "topk" in str(error), error
    if (out / "ours").exists():  # a checkpoint of our training, as it is
        models["by_training"] = LMTransformer(args.model)
        load_from_checkpoint((out / "ours").read_text(), models["by_training"], model_key="model")
    answers = {}
    for key, model in models.items():
        answers[key] = model(x).detach()
        if topk:
            from topklm import TopKConfig, sparsify
            torch.Tensor.float = torch.Tensor.double
            sparsify(model.double(), TopKConfig(k=topk["k"], n_dense_tail=topk["n_dense_tail"]))
            model.rope_embeddings.reset_parameters()
            answers[key + ", topk"] = model(x).detach()
            torch.Tensor.float = torch._C.TensorBase.float
    torch.save(answers, out / "answers.pt")
"""


def test_genuine_lingua_loads_it_and_computes_the_same(save, tmp_path):
    """Dense logits in fp32 to 1e-5; with sparsify on Lingua's model ours in float64 to 1e-9, without it dense ones."""
    checkout()
    names = {"dense": (TINY, None), "tied": (TIED, None), "sparse": (TINY, SPARSE), "odd": (ODD, SPARSE)}
    torch.save(tokens(), tmp_path / "tokens.pt")
    for name, (config, topk) in names.items():
        checkpoint = save(config, topk, name=name)
        out = export_lingua(open_source(checkpoint), tmp_path / f"{name}_out")
        if not config.weight_tying:
            (out / "ours").write_text(str(checkpoint))
    run_genuine(LOAD, json.dumps([f"{name}_out" for name in names]), cwd=tmp_path)
    for name, (config, topk) in names.items():
        ours = load_model(tmp_path / f"{name}_out", dtype=torch.float64)[0]
        dense = load_model(tmp_path / f"{name}_out", alpha=None if topk is None else 1.0)[0]
        answers = torch.load(tmp_path / f"{name}_out" / "answers.pt", weights_only=True)
        assert len(answers) == (2 if config.weight_tying else 3) * (1 if topk is None else 2)
        for key, logits in answers.items():
            if key.endswith("topk"):
                torch.testing.assert_close(ours(tokens()), logits, atol=1e-9, rtol=1e-9)
            else:
                torch.testing.assert_close(dense(tokens()), logits, atol=1e-5, rtol=1e-5)
        if topk is not None:
            assert (dense(tokens()) - ours(tokens()).float()).abs().max() > 0.1
