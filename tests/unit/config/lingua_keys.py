"""Every key of Meta Lingua's configurations, and what becomes of it here: the tables in docs/lingua.md.

    python -m tests.unit.config.lingua_keys      # writes the tables into the page

`KEYS` holds facts of Lingua (commit 437d680): key, type (a `?` where it may be null) and default. The verdicts come
from our own schema, the remarks on keys that are honoured with a difference are written here.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from topklm.config import build
from topklm.config.build import section_of
from topklm.errors import ConfigError
from topklm.evaluate.app_config import EvalAppConfig
from topklm.train import TrainConfig

PAGE = Path(__file__).parents[3] / "docs" / "lingua.md"
BEGIN, END = "<!-- keys: begin (python -m tests.unit.config.lingua_keys) -->", "<!-- keys: end -->"


@dataclass(frozen=True)
class Key:
    name: str
    type: str
    default: Any

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]


KEYS = [
    Key(name, type, ast.literal_eval(default))
    for name, type, default in (line.split(None, 2) for line in """
name                                            str         'lingua'
dump_dir                                        str         ''
seed                                            int         42
grad_acc_steps                                  int         1
gc_collect_freq                                 int         1000
probe_freq                                      int?        None
steps                                           int         1000
async_eval_gpus                                 int?        None
data.root_dir                                   str?        None
data.sources                                    dict        {}
data.batch_size                                 int         2
data.seq_len                                    int         2048
data.n_views                                    int         2
data.seed                                       int         42
data.add_bos                                    bool        True
data.add_eos                                    bool        True
data.load_async                                 bool        True
data.prefetch_size                              int         64
data.tokenizer.name                             str         'bytes'
data.tokenizer.path                             str?        None
optim.lr                                        float       3e-4
optim.weight_decay                              float       0.1
optim.epsilon                                   float       1e-8
optim.beta1                                     float       0.9
optim.beta2                                     float       0.95
optim.clip                                      float       1.0
optim.scheduler                                 str         'cosine'
optim.warmup                                    int         2000
optim.lr_min_ratio                              float       0.1
optim.cycle_length                              float       1.0
optim.cosine_theta                              float       1.0
optim.annealing_step                            int         1000
optim.decay_fraction                            float       0.1
optim.exp_factor                                float       0.5
model.dim                                       int         512
model.n_layers                                  int         8
model.head_dim                                  int?        None
model.n_heads                                   int?        None
model.n_kv_heads                                int?        None
model.ffn_dim_multiplier                        float?      None
model.multiple_of                               int         256
model.norm_eps                                  float       1e-5
model.rope_theta                                float       10000.0
model.init_base_std                             float?      None
model.init_std_factor                           str         'disabled'
model.max_seqlen                                int         1024
model.seed                                      int         42
model.vocab_size                                int         -1
model.weight_tying                              bool        False
model.sliding_window                            int?        None
distributed.dp_shard                            int         1
distributed.dp_replicate                        int         1
distributed.tp_size                             int         1
distributed.selective_activation_checkpointing  bool        False
distributed.compile                             bool        False
distributed.fsdp_type                           str         'no_shard'
distributed.model_dtype                         str         'bf16'
distributed.float8_recipe                       str?        None
distributed.float8_filter                       str         'layers\\\\.[0-9]+\\\\.'
distributed.matmul_allow_tf32                   bool        False
distributed.detect_anomaly                      bool        False
distributed.compile_cache_size_limit            int         8
distributed.spawn_method                        str         'forkserver'
env.MKL_SERVICE_FORCE_INTEL                     str         'GNU'
env.OMP_NUM_THREADS                             str         '1'
env.MKL_NUM_THREADS                             str         '1'
env.ENABLE_INTRA_NODE_COMM                      str         '1'
env.TORCH_NCCL_AVOID_RECORD_STREAMS             str         '1'
env.NCCL_IB_TIMEOUT                             str         '22'
env.NCCL_DEBUG                                  str         'INFO'
env.TORCH_NCCL_ASYNC_ERROR_HANDLING             str         '1'
checkpoint.dump.every                           int         1000
checkpoint.dump.keep                            int         0
checkpoint.eval.every                           int         1000
checkpoint.eval.keep                            int         0
checkpoint.path                                 str?        None
checkpoint.init_ckpt_path                       str?        None
checkpoint.continue_training_from_init          bool        False
profiling.run                                   bool        False
profiling.trace_folder                          str         'profiling'
profiling.mem_warmup                            int         100
profiling.mem_steps                             int         2
profiling.profile_warmup                        int         102
profiling.profile_steps                         int         2
logging.freq                                    int         10
logging.acc_freq                                int?        None
logging.wandb.job_type                          str?        None
logging.wandb.dir                               str?        None
logging.wandb.project                           str?        None
logging.wandb.entity                            str?        None
logging.wandb.tags                              list?       None
logging.wandb.group                             str?        None
logging.wandb.name                              str?        None
logging.wandb.notes                             str?        None
logging.wandb.config_exclude_keys               list?       None
logging.wandb.config_include_keys               list?       None
logging.wandb.anonymous                         str?        None
logging.wandb.mode                              str?        None
logging.wandb.allow_val_change                  bool?       None
logging.wandb.resume                            bool|str?   None
logging.wandb.force                             bool?       None
logging.wandb.tensorboard                       bool?       None
logging.wandb.sync_tensorboard                  bool?       None
logging.wandb.monitor_gym                       bool?       None
logging.wandb.save_code                         bool?       None
logging.wandb.id                                str?        None
logging.wandb.fork_from                         str?        None
logging.wandb.resume_from                       str?        None
eval.name                                       str         'evals'
eval.dump_dir                                   str?        None
eval.metric_log_dir                             str?        None
eval.ckpt_dir                                   str         ''
eval.wandb                                      any?        None
eval.global_step                                int?        None
eval.generator.temperature                      float       0.0
eval.generator.top_p                            float?      None
eval.generator.top_k                            float?      None
eval.generator.max_gen_len                      int         512
eval.generator.max_tokens                       int         1024
eval.generator.max_prompt_len                   int?        None
eval.generator.until                            list        []
eval.generator.compile_prefilling               bool        False
eval.generator.reduce_generation_overhead       bool        False
eval.generator.show_progress                    bool        False
eval.generator.dtype                            str?        'bf16'
eval.generator.device                           str?        'cuda'
eval.harness.tasks                              list?       None
eval.harness.num_fewshot                        int?        None
eval.harness.device                             str?        None
eval.harness.use_cache                          str?        None
eval.harness.cache_requests                     bool        False
eval.harness.rewrite_requests_cache             bool        False
eval.harness.delete_requests_cache              bool        False
eval.harness.limit                              int|float?  None
eval.harness.bootstrap_iters                    int         100000
eval.harness.check_integrity                    bool        False
eval.harness.write_out                          bool        False
eval.harness.log_samples                        bool        True
eval.harness.system_instruction                 str?        None
eval.harness.apply_chat_template                bool|str    False
eval.harness.fewshot_as_multiturn               bool        False
eval.harness.gen_kwargs                         str?        None
eval.harness.verbosity                          str         'INFO'
eval.harness.predict_only                       bool        False
eval.harness.random_seed                        int         0
eval.harness.numpy_random_seed                  int         1234
eval.harness.torch_random_seed                  int         1234
eval.harness.fewshot_random_seed                int         1234
eval.validation.max_steps                       int?        None
eval.validation.use_val_from_train_src          bool        True
eval.validation.root_dir                        str         ''
eval.validation.sources                         list        []
""".strip().splitlines())
]  # fmt: skip

EVAL_APP_KEYS = [
    Key(key.name.removeprefix("eval."), key.type, key.default) for key in KEYS if key.name.startswith("eval.")
]
"""Of Lingua's evaluation of a checkpoint: the same class is the section eval of a training run."""

NULL_SECTIONS = {"logging.wandb": None, "eval": None}
"""Sections of Lingua's that are null by default; the keys above are what they may hold."""

REFUSED = {"model.sliding_window": 512, "distributed.model_dtype": "fp16", "data.tokenizer.name": "mock"}
"""Values of keys with a field of ours that Lingua takes and this project refuses."""

REMARKS = {
    "name": "",
    "grad_acc_steps": "where data.global_batch_size is null; the batch is then stored with the run, so another number "
    "of ranks does not change it",
    "data.root_dir": "prepared token shards; given Lingua's JSONL files the error holds the command that prepares them",
    "data.sources": "weights are of sequences; data.weights_of=documents: of documents, which is Lingua's meaning",
    "data.seed": "of another order: a permutation of all windows, the same on any number of ranks",
    "data.add_bos": "decided by apps.prepare (true by default, as in Lingua); if given here, the sources must be so",
    "data.add_eos": "decided by apps.prepare (true by default, as in Lingua); if given here, the sources must be so",
    "data.tokenizer.name": "decided by apps.prepare; if given here, the sources must have it",
    "data.tokenizer.path": "decided by apps.prepare; compared where the file is there",
    "data.load_async": "in a thread",
    "data.prefetch_size": "steps read ahead, nothing else; in Lingua also the buffer in which sequences are shuffled",
    "optim.scheduler": "an unknown one is refused at once",
    "optim.lr_min_ratio": "0 is refused with wsd, where Lingua divides by it",
    "model.seed": "other random numbers of the same distribution: each parameter's from (seed, its name)",
    "model.max_seqlen": "at least data.seq_len; Lingua sets it to that",
    "distributed.dp_shard": "null: as many as there are",
    "distributed.dp_replicate": "null: as many as there are; a product that is not the number of ranks is refused, "
    "where Lingua changes dp_replicate",
    "distributed.selective_activation_checkpointing": "per block; Lingua wraps the whole model once",
    "distributed.compile": "per block; Lingua compiles the whole model",
    "distributed.fsdp_type": "the same result in less memory",
    "distributed.compile_cache_size_limit": "a TopK block needs more graphs",
    "checkpoint.dump.every": "0: never, where Lingua divides by it",
    "checkpoint.eval.every": "0: never; validation too is at these steps, unless eval.every is given",
    "checkpoint.init_ckpt_path": "runs and consolidated files too",
    "checkpoint.continue_training_from_init": "takes optimizer state and step along; Lingua does not read the key",
    "logging.freq": "loss/out is the mean over the whole batch, not the last micro-batch's",
    "logging.wandb.name": "Lingua replaces it by name",
    "logging.wandb.dir": "null: dump_dir",
    "logging.wandb.id": "null: made at the first start and kept, so that a resumed run goes on with its curves",
    "eval.harness.tasks": "",
    "eval.harness.bootstrap_iters": "minutes less for one digit less of the standard errors that need it",
}  # fmt: skip
"""What is otherwise than in Lingua about a key that is honoured. Empty: another default, of which nothing follows."""


@dataclass(frozen=True)
class Verdict:
    kind: str
    """honoured, warned or refused."""
    remark: str
    default: Any = None
    """Ours, of a key that is honoured."""


def base() -> dict[str, Any]:
    """The smallest configuration that trains."""
    return {"dump_dir": "x", "data": {"root_dir": "y", "sources": {"z": 1.0}}, "model": {"n_heads": 8}}


def given(name: str, value: Any) -> dict[str, Any]:
    """`base` with one key set."""
    data = base()
    *parents, leaf = name.split(".")
    node = data
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    return data


def refusal(name: str, value: Any) -> str | None:
    """What our schema says against a value; None if it takes it."""
    try:
        build(TrainConfig, given(name, value))
    except ConfigError as error:
        return "; ".join(problem.message for problem in error.problems if problem.key == name)
    return None


def verdict(key: Key, schema: Any = TrainConfig) -> Verdict:
    """What becomes of a key: by our schema. Raises `LookupError` for a key that the schema does not know."""
    *sections, leaf = key.name.split(".")
    for part in [*sections, leaf]:
        if part in getattr(schema, "unused_keys", {}):
            return Verdict("warned", schema.unused_keys[part])
        if part in getattr(schema, "only_values", {}):
            value, reason = schema.only_values[part]
            return Verdict("refused", f"unless {_shown(value)}: {reason}")
        hints = get_type_hints(schema)
        if part not in {field.name for field in dataclasses.fields(schema)}:
            raise LookupError(key.name)
        if part is not leaf:
            schema = section_of(hints[part])
    if key.name == "model.sliding_window":
        return Verdict("refused", f"unless null: {str(refusal(key.name, 512)).partition(': ')[2].partition(',')[0]}")
    remark = REMARKS.get(key.name, "")
    if key.name in REFUSED:
        value = REFUSED[key.name]
        message = str(refusal(key.name, value)).removeprefix(f"{value} ").removeprefix(f"{value!r} ")
        remark = "; ".join(filter(None, [remark, f"{value} is refused: it {message}"]))
    return Verdict("honoured", remark, _default(schema, leaf))


def _default(schema: Any, leaf: str) -> Any:
    field = next(field for field in dataclasses.fields(schema) if field.name == leaf)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def table(keys: list[Key], schema: Any) -> str:
    """A table of the page: a line for neighbouring keys of a section that have the same verdict and remark."""
    lines = ["| keys, with Lingua's defaults | | here |", "|---|---|---|"]
    rows = [(key, verdict(key, schema)) for key in keys]
    for (_, kind, remark), group in itertools.groupby(rows, lambda row: (row[0].section, row[1].kind, row[1].remark)):
        names, differ = [], []
        for key, found in group:
            names.append(f"`{key.name}` {_shown(key.default)}")
            if kind == "honoured" and found.default != key.default:
                differ.append(f"{key.name.rpartition('.')[2]} {_shown(found.default)}")
        defaults = f"default {', '.join(differ)}" if differ else ""
        cell = "; ".join(filter(None, [defaults, remark])).replace("|", "\\|")
        lines.append(f"| {', '.join(names)} | {kind} | {cell} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value or value == 0 else repr(value)


def page() -> str:
    """docs/lingua.md with the tables of now."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    own = [key for key in EVAL_APP_KEYS if not key.name.startswith(("harness.", "validation."))]
    between = "`apps.eval` takes Lingua's `eval.yaml`, whose `harness` and `validation` are those above:"
    tables = f"{table(KEYS, TrainConfig)}\n\n{between}\n\n{table(own, EvalAppConfig)}"
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
