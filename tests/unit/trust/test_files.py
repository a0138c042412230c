"""Files of strangers: none runs code, none leads a reader out of its directory."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from tests.unit.wrong_inputs.case import Case, run
from tests.unit.wrong_inputs.checkpoints import Marker
from tests.unit.wrong_inputs.place import STEP, again
from tests.unit.wrong_inputs.programs import sealed
from topklm import load_model
from topklm.bundles import open_bundle
from topklm.checkpoint import defects
from topklm.checkpoint.trusted import read_metadata
from topklm.config import read_yaml
from topklm.errors import CheckpointError, ConfigError, DataError

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
WAYS_IN = {
    "load_model": None,
    "resume": ("train", "config=train.yaml", "dump_dir=run"),
    "init_ckpt_path": ("train", "config=train.yaml", f"checkpoint.init_ckpt_path={STEP}"),
    "init_from": ("train", "config=train.yaml", f"init_from={STEP}"),
    "going on": ("train", "config=train.yaml", f"checkpoint.init_ckpt_path={STEP}",
                 "checkpoint.continue_training_from_init=true"),
    "export": ("export", f"ckpt={STEP}", "out=exported", "to=lingua"),
    "collect": ("collect", f"ckpt={STEP}", "out=collected", "tokens=64", "context=16"),
}  # fmt: skip


def enter(way):
    """Read the checkpoint; what is told."""
    if WAYS_IN[way] is None:
        with pytest.raises(CheckpointError) as caught:
            load_model(STEP)
        return str(caught.value)
    program, *args = WAYS_IN[way]
    found = run(Case(mistake="", program=program, args=tuple(args), environment=ALONE, key="", value="", remedy=""))
    assert found.exit_code in (2, 5), found.log
    assert "Traceback" not in found.log
    return found.message


@pytest.fixture
def no_code(place):
    """Nothing made the directory that a `Marker` makes."""
    yield
    assert not (place / "marker").exists()


@pytest.mark.parametrize("way", WAYS_IN)
def test_metadata_of_a_stranger(way, no_code):
    (Path(STEP) / ".metadata").write_bytes(pickle.dumps(Marker()))
    again(STEP)  # with hashes that fit: only the reader stands between
    told = enter(way)
    assert "nothing in it was run" in told
    assert "mkdir" in told


@pytest.mark.parametrize("way", ["resume", "going on"])
def test_entries_of_bytes_of_a_stranger(way, no_code):
    """Numbers of the optimizer's groups are pickles, which torch would load without restraint."""
    file = Path(STEP) / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    info = metadata.storage_data[MetadataIndex("optim.param_groups.0.lr")]
    harm = io.BytesIO()
    torch.save(Marker(), harm)
    weights = Path(STEP) / info.relative_path
    info.offset, info.length = weights.stat().st_size, len(harm.getvalue())
    weights.write_bytes(weights.read_bytes() + harm.getvalue())
    file.write_bytes(pickle.dumps(metadata))
    again(STEP)
    told = enter(way)
    assert "optim.param_groups.0.lr holds more than plain values; nothing in it was run" in told


@pytest.mark.parametrize("name", ["../../../model.pth", "/etc/hostname", "link"])
def test_metadata_name_files_of_the_checkpoint_only(place, name):
    shutil.move(f"{STEP}/__0_0.distcp", "weights")
    os.symlink(place / "weights", f"{STEP}/link")
    file = Path(STEP) / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = name
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="is not in this directory"):
        read_metadata(Path(STEP))


@pytest.mark.parametrize("content", [Marker(), {"model": {"norm.weight": Marker()}}])
def test_a_consolidated_file_of_a_stranger(content, no_code):
    torch.save(content, "model.pth")
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        load_model("model.pth")


def test_code_beside_a_model_of_hugging_face_is_not_run(no_code):
    Path("hf/modeling_evil.py").write_text("import os\nos.mkdir('marker')\nclass Evil: pass\n")
    config = json.loads(Path("hf/config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
               "trust_remote_code": True}  # fmt: skip
    Path("hf/config.json").write_text(json.dumps(config))
    load_model("hf")


def test_a_configuration_of_a_stranger(no_code):
    for tag in ("!!python/object/apply:os.mkdir ['marker']", "!!python/name:os.system", "!!python/module:os"):
        Path("evil.yaml").write_text(f"name: {tag}\n")
        with pytest.raises(ConfigError, match="nothing in a configuration is run"):
            read_yaml(Path("evil.yaml"))


# Paths that lead out


@pytest.mark.parametrize("name", ["../../../docs.jsonl", "/etc/hostname", "link"])
def test_files_json_names_files_of_the_checkpoint_only(place, name):
    os.symlink(place / "docs.jsonl", f"{STEP}/link")
    content = json.loads(Path(f"{STEP}/files.json").read_text())
    content[name] = {"size": 1, "sha256": "0" * 64}
    Path(f"{STEP}/files.json").write_text(json.dumps(content))
    assert [found for found in defects(Path(STEP)) if "not in this directory" in found]


@pytest.mark.parametrize("what", ["files", "parts", "link"])
def test_a_bundle_names_its_own_files_only(place, what):
    meta = json.loads(Path("bundle/meta.json").read_text())
    if what == "files":
        sealed(files={**meta["files"], "/etc/hostname": {"size": 1, "sha256": "0" * 64}})
    elif what == "parts":
        sealed(parts=[{**meta["parts"][0], "name": "../.."}])
    else:
        shutil.move("bundle/corpus.safetensors", "corpus.safetensors")
        os.symlink(place / "corpus.safetensors", "bundle/corpus.safetensors")
    with pytest.raises(DataError, match=r"is no name of a file in this directory|leads out of it"):
        open_bundle("bundle")


def test_a_shard_is_no_link_that_leads_out(place):
    from topklm.data import DataConfig, open_data

    file = Path("data/web/train/part_00000.tokens.npy")
    shutil.move(file, "elsewhere.npy")
    os.symlink(place / "elsewhere.npy", file)
    with pytest.raises(DataError, match="leads out of the source's directory"):
        open_data(DataConfig(root_dir="data", sources={"web": 1.0}, seq_len=16))


def test_a_directory_that_is_a_link_itself_is_read(place):
    """Data and runs lie on other disks; the hub's cache is made of links, whose names are what is checked."""
    from topklm.data import DataConfig, open_data

    for name in ("data", "run", "bundle", "hf"):
        shutil.move(name, f"disk_{name}")
        os.symlink(place / f"disk_{name}", name)
    open_data(DataConfig(root_dir="data", sources={"web": 1.0}, seq_len=16))
    open_bundle("bundle")
    load_model("run")
    shutil.move("hf/model.safetensors", "blob")
    os.symlink(place / "blob", "hf/model.safetensors")
    load_model("hf")


@pytest.mark.parametrize("name", ["../../docs", "/etc/hostname"])
def test_a_result_names_its_own_figures_only(place, name):
    from topklm.report.result import read_results

    Path("result").mkdir()
    content = {"format_version": 1, "kind": "k", "title": "t", "statements": [], "provenance": [], "tables": {},
               "data": {}, "figures": [{"name": name, "title": "t", "text": "t"}]}  # fmt: skip
    Path("result/result.json").write_text(json.dumps(content))
    Path("docs.svg").write_text("<svg/>")
    with pytest.raises(ConfigError):
        read_results(["result"])
