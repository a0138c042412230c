"""Mistakes in the configuration of a training run: told by its reader and its rules."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.unit.wrong_inputs.case import Case
from tests.unit.wrong_inputs.place import config_file, write


def _train(mistake: str, *args: str, **expected: Any) -> Case:
    return Case(mistake=mistake, program="train", args=("config=train.yaml", *args), **expected)


def _file(mistake: str, content: str | bytes, **expected: Any) -> Case:
    return _train(mistake, make=partial(write, "train.yaml", content), **expected)


def _with(mistake: str, section: dict[str, Any], **expected: Any) -> Case:
    return _train(mistake, make=partial(config_file, **section), **expected)


READING = [
    Case(mistake="the file is not there", program="train", args=("config=trian.yaml",), key="trian.yaml",
         value="does not exist", remedy="train.yaml"),
    Case(mistake="the file without `config=`", program="train", args=("train.yaml",), key="train.yaml",
         value="key=value", remedy="config=train.yaml"),
    Case(mistake="two files", program="train", args=("config=train.yaml", "config=prepare.yaml"), key="config",
         value="2 times", remedy="give one"),
    Case(mistake="a directory as the file", program="train", args=("config=data",), key="data",
         value="directory", remedy="give a file"),
    _file("YAML that ends in the middle", "model: {dim: 16\nsteps: 3\n", key="train.yaml", value="line",
           remedy="correct"),
    _file("a tab as indentation", "model:\n\tdim: 16\n", key="train.yaml", value="line 2", remedy="spaces"),
    _file("a key that is there twice", "steps: 3\nname: a\nsteps: 4\n", key="steps", value="duplicate",
           remedy="keep one"),
    _file("an empty file", "", key="train.yaml", value="empty", remedy="--help"),
    _file("a list in place of keys", "- steps: 3\n", key="train.yaml", value="list", remedy="lines of `key: value`"),
    _file("a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe", key="train.yaml", value="not text", remedy="UTF-8"),
    _file("a file in Latin-1", "name: Zürich\n".encode("latin1"), key="train.yaml", value="not text", remedy="UTF-8"),
    _file("an object of Python", "name: !!python/object/apply:os.system ['touch marker']\n", key="train.yaml",
          value="python/object", remedy="plain values"),
    _file("a base that is not there", "base: ../base.yaml\nsteps: 3\n", key="base", value="base.yaml",
          remedy="does not exist"),
    _file("a file that is its own base", "base: train.yaml\n", key="base", value="circle", remedy="remove"),
    _with("a reference to a key that is not there", {"name": "${model.width}"}, key="name", value="${model.width}",
          remedy="refer to what there is"),
    _with("an environment variable that is not set", {"name": "${oc.env:NO_SUCH_VARIABLE}"}, key="name",
          value="NO_SUCH_VARIABLE", remedy="refer to what there is"),
    _train("no `=`", "model.dim", key="model.dim", value="key=value", remedy="model.dim=VALUE"),
    _train("a value that is no YAML", "data.sources={web: 1.0", key="data.sources", value="{web: 1.0", remedy="quote"),
]  # fmt: skip

KEYS_AND_TYPES = [
    _train("a key with a typing error", "model.n_layer=4", key="model.n_layer", value="unknown key",
           remedy="did you mean model.n_layers?"),
    _train("a key at the wrong place", "n_layers=4", key="n_layers", value="unknown key", remedy="model.n_layers"),
    _train("a section that nobody knows", "zebra={a: 1}", key="zebra", value="unknown key", remedy="known here: ",
           words_of=r"(?<=known here: ).*"),
    _train("a key below a section that is null", "topk=null", "topk.k=8", key="topk.k", value="null here",
           remedy="topk={k: 8}"),
    _train("a key below a value", "steps.more=3", key="steps.more", value="steps is a value",
           remedy="give steps=VALUE"),
    _train("a value in place of a section", "model=16", key="model", value="16", remedy="a mapping of keys to values"),
    _train("text for a number", "steps=many", key="steps", value="'many'", remedy="a whole number"),
    _train("a fraction for a whole number", "steps=2.5", key="steps", value="2.5", remedy="a whole number"),
    _train("1e4 for a whole number", "steps=1e4", key="steps", value="10000.0", remedy="write 10000"),
    _train("yes for a number", "model.dim=true", key="model.dim", value="True", remedy="a whole number"),
    _train("a number for text", "name=7", key="name", value="7", remedy="quote it: '7'"),
    _train("null where there must be a value", "optim.lr=null", key="optim.lr", value="null", remedy="a number"),
    _train("text for true or false", "distributed.compile='yes'", key="distributed.compile", value="'yes'",
           remedy="true or false"),
    _train("one number for a list", "topk.k_per_layer=4", key="topk.k_per_layer", value="4", remedy="[4]"),
    _train("a list of sources", "data.sources=[web]", key="data.sources", value="['web']", remedy="mapping"),
    _train("a weight in words", "data.sources={web: half}", key="data.sources.web", value="'half'", remedy="a number"),
    _train("a choice that there is not", "optim.scheduler=cosin", key="optim.scheduler", value="'cosin'",
           remedy="did you mean cosine?"),
]  # fmt: skip

RULES = [
    _train("no directory for the run", "dump_dir=''", key="dump_dir", value="missing", remedy="dump_dir=runs/small"),
    _train("no steps", "steps=0", key="steps", value="0", remedy="below 1"),
    _train("a negative learning rate", "optim.lr=-0.001", key="optim.lr", value="-0.001", remedy="above 0"),
    _train("an infinite learning rate", "optim.lr=.inf", key="optim.lr", value="inf", remedy="finite"),
    _train("no number as learning rate", "optim.lr=.nan", key="optim.lr", value="nan", remedy="finite"),
    _train("a negative warm-up", "optim.warmup=-1", key="optim.warmup", value="-1", remedy="0"),
    _train("beta2 of 1", "optim.beta2=1.0", key="optim.beta2", value="1.0", remedy="below 1"),
    _train("wsd that ends at 0", "optim.scheduler=wsd", "optim.lr_min_ratio=0", key="optim.lr_min_ratio", value="0",
           remedy="small positive"),
    _train("a seed of more than 32 bits", "seed=99999999999", key="seed", value="99999999999",
           remedy="between -2147483647"),
    _train("heads that do not divide the width", "model.n_heads=3", key="model.n_heads",
           value="16 is not divisible by 3",
           remedy="give head_dim"),
    _train("key-value heads that do not divide the heads", "model.n_heads=4", "model.n_kv_heads=3",
           key="model.n_kv_heads", value="3", remedy="evenly"),
    _train("an odd width of a head", "model.dim=18", "model.n_heads=6", key="model.head_dim", value="3",
           remedy="pairs"),
    _train("neither heads nor their width", "model.n_heads=null", key="model.n_heads", value="null",
           remedy="give n_heads or head_dim"),
    _train("a width of 0", "model.dim=0", key="model.dim", value="0", remedy="below 1"),
    _train("two widths of the feed-forward layer", "model.ffn_dim=32", "model.ffn_dim_multiplier=1.5",
           key="model.ffn_dim", value="32", remedy="not both"),
    _train("k of more than the width", "topk.k=17", key="topk.k", value="17", remedy="16"),
    _train("k of 0", "topk.k=0", key="topk.k", value="0", remedy="leave out the section"),
    _train("a tail of more blocks than there are", "topk.n_dense_tail=4", key="topk.n_dense_tail", value="4",
           remedy="at most 3"),
    _train("a k for another number of blocks", "topk.k_per_layer=[4,4,4]", key="topk.k_per_layer", value="3 numbers",
           remedy="the 2 sparse blocks"),
    _train("an annealing of more than the run", "topk.anneal_ratio=1.5", key="topk.anneal_ratio", value="1.5",
           remedy="[0, 1]"),
    _train("an activation that there is not", "topk.activation=topp", key="topk.activation", value="topp",
           remedy="topk"),
    _train("an option that another activation has", "topk.options={bandwidth: 0.1}", key="topk.options",
           value="bandwidth", remedy="leave it out"),
    _train("an annealing without a schedule", "topk.schedule=none", "topk.anneal_steps=5", key="topk.anneal_steps",
           value="5", remedy="schedule=mask"),
    _train("a negative weight of a source", "data.sources={web: -1.0}", key="data.sources.web", value="-1.0",
           remedy="above 0"),
    _train("no source", "data.sources={}", key="data.sources", value="empty", remedy="sources={NAME: 1.0}"),
    _train("a batch of 0", "data.batch_size=0", key="data.batch_size", value="0", remedy="below 1"),
    _train("fp16", "distributed.model_dtype=fp16", key="distributed.model_dtype", value="fp16", remedy="use bf16"),
    _train("no sharding over several ranks", "distributed.fsdp_type=no_shard", "distributed.dp_shard=2",
           key="distributed.dp_shard", value="2", remedy="fsdp_type"),
    _train("a mesh that does not have the world's size", "distributed.dp_shard=3", key="distributed.dp_shard",
           value="3", remedy="leave one of them null"),
    _train("two ways of saving memory", "distributed.selective_activation_checkpointing=true",
           "distributed.activation_checkpointing=full", key="distributed.activation_checkpointing", value="full",
           remedy="remove one"),
    _train("no time for a collective", "distributed.timeout_minutes=0", key="distributed.timeout_minutes", value="0",
           remedy="above 0"),
    _train("a checkpoint every -1 steps", "checkpoint.dump.every=-1", key="checkpoint.dump.every", value="-1",
           remedy="0 means never"),
    _train("going on from nothing", "checkpoint.continue_training_from_init=true",
           key="checkpoint.continue_training_from_init", value="true", remedy="init_ckpt_path"),
    _train("two models to start from", "init_from=hf", "checkpoint.init_ckpt_path=model.pth", key="init_from",
           value="hf", remedy="one of them"),
    _train("a log every 0 steps", "logging.freq=0", key="logging.freq", value="0", remedy="below 1"),
    _train("a mode that wandb does not have", "logging.wandb={mode: off}", key="logging.wandb.mode", value="False",
           remedy="text"),
]  # fmt: skip

LINGUA = [
    _train("tensor parallelism", "distributed.tp_size=2", key="distributed.tp_size", value="2", remedy="only 1"),
    _train("float8", "distributed.float8_recipe=rowwise", key="distributed.float8_recipe", value="'rowwise'",
           remedy="only null"),
    _train("several tokens predicted at once", "data.n_views=3", key="data.n_views", value="3", remedy="only 2"),
    _train("a sliding window", "model.sliding_window=512", key="model.sliding_window", value="512", remedy="only null"),
    _train("Lingua's tokenizer for tests", "data.tokenizer={name: mock}", key="data.tokenizer.name", value="'mock'",
           remedy="bytes"),
]  # fmt: skip

SURROUNDINGS = [
    _train("a rank that is no number", environment={"RANK": "first"}, key="RANK", value="'first'", remedy="torchrun"),
    _train("a rank beyond the world", environment={"RANK": "2"}, key="RANK", value="2", remedy="torchrun"),
    _train("the directory of the run is a file", "dump_dir=docs.jsonl", key="dump_dir", value="docs.jsonl",
           remedy="directory"),
    _train("the directory of the run is below a file", "dump_dir=docs.jsonl/run", key="dump_dir",
           value="docs.jsonl/run", remedy="directory"),
    _train("the checkpoints' directory is a file", "checkpoint.path=docs.jsonl", key="checkpoint.path",
           value="docs.jsonl", remedy="choose another"),
    _train("a world without an address", environment={"MASTER_ADDR": ""}, key="WORLD_SIZE", value="MASTER_ADDR",
           remedy="torchrun"),
]  # fmt: skip

SEVERAL = [
    _train("six mistakes", "steps=0", "model.n_layer=4", "topk.k=99", "optim.lr=-1.0", "data.sources={web: half}",
           "distributed.tp_size=2", key="steps", value="steps: 0", remedy="did you mean model.n_layers?",
           also=("topk.k: 99", "optim.lr: -1.0", "data.sources.web: 'half'", "distributed.tp_size: 2", "6 problems")),
    _train("a wrong file and a wrong argument", "seed=x",
           make=partial(config_file, steps="ten", model={"dim": 16, "n_heads": 3}), key="seed", value="'x'",
           remedy="a whole number", also=("steps: 'ten'", "model.n_heads", "3 problems")),
]  # fmt: skip

GROUPS = {
    "Reading a configuration": READING,
    "Keys and types": KEYS_AND_TYPES,
    "Rules of a training run": RULES,
    "Keys of Meta Lingua that are refused": LINGUA,
    "Surroundings of a training run": SURROUNDINGS,
    "Several mistakes at once": SEVERAL,
}
