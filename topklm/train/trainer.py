"""The training loop: batches in order, micro-batches, one optimizer step; validate, save, log, stop in good order."""

from __future__ import annotations

import gc
import json
import logging
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import topklm
from topklm.checkpoint import (
    CheckpointStore,
    content_hash,
    list_checkpoints,
    load_weights,
    newest_good,
    read_activations,
    read_weights,
    resolve,
)
from topklm.config import save_config, to_dict
from topklm.data import TrainData, TrainLoader, open_data
from topklm.errors import EXIT_PREEMPTED, DataError
from topklm.model import build_model, init_weights
from topklm.model.lingua import lingua_sha256
from topklm.sparsity import ActivationSteps, alpha_at, get_alpha, set_alpha
from topklm.sparsity.registry import activation_class
from topklm.train.config import TrainConfig
from topklm.train.evaluation import EVAL_METRICS, VALIDATION_METRICS, evaluate_step
from topklm.train.exit_record import ExitRecord
from topklm.train.metrics import Console, MetricsWriter, rewind_metrics
from topklm.train.nonfinite import NonFiniteGuard
from topklm.train.optim import apply_settings, build_optimizer, learning_rate
from topklm.train.parallel import World, new_gloo_group, parallelize, start, world_from_env
from topklm.train.peers import naming_lost_peers
from topklm.train.preflight import preflight
from topklm.train.rng import restore_rng, rng_state, seed_everything
from topklm.train.settle import settle
from topklm.train.signals import StopRequest
from topklm.train.throughput import Throughput

log = logging.getLogger("topklm.train")


def train(config: TrainConfig) -> int:
    """Run or resume the training that `config` describes; returns the program's exit code.

    Everything that can be wrong with the configuration or the data is raised (`ConfigError`, `DataError`) before
    a process group is opened or a GPU touched.
    """
    world = world_from_env()
    with StopRequest(world.size) as stop:
        data = open_data(config.data)
        config = settle(config, vocab_size=data.vocab_size, world_size=world.size, tokenizer_dir=data.tokenizer_dir)
        lock = preflight(config, data, is_main=world.is_main)
        with (
            ExitRecord(Path(config.dump_dir), world.rank) as record,
            naming_lost_peers(config.checkpoint_dir, world.size),
        ):
            world = start(world, config.distributed)
            trainer = record.trainer = Trainer(config, data, world)
            code = trainer.run(stop)
            record.ends_with(code, stop.name)
    # Not after an error: other ranks may be waiting in a collective, and this would wait with them.
    if dist.is_initialized():
        dist.destroy_process_group()
        # Groups in reference cycles must end their threads now: at the interpreter's own end they abort the process.
        gc.collect()
    if lock is not None:
        lock.close()
    return code


class Trainer:
    """One run on one rank."""

    def __init__(self, config: TrainConfig, data: TrainData, world: World):
        self.config, self.data, self.world = config, data, world
        self.dump_dir = Path(config.dump_dir)
        self.step = 0
        """Optimizer steps done."""
        seed_everything(config.seed, world.rank)
        self.model = build_model(config.model, config.topk, "meta")
        parallelize(self.model, world, config.distributed)
        self.model.to_empty(device=world.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.activations = ActivationSteps(self.model, reduce=world.mesh is not None)
        self.store = CheckpointStore(
            config.checkpoint_dir, config.checkpoint, world.rank, new_gloo_group(world, config.distributed)
        )
        self._source: dict[str, Any] | None = None  # where the first weights came from, if not from init_weights
        skipped = self._restore()
        self.loader = TrainLoader(
            data,
            global_batch_size=self._batch_size,
            micro_batch_size=config.data.batch_size,
            rank=world.rank,
            world_size=world.size,
            start_step=self.step,
            load_async=config.data.load_async,
            prefetch_size=config.data.prefetch_size,
            pin_memory=world.device.type == "cuda",
            with_document_ids=config.model.document_mask,
        )
        self.guard = NonFiniteGuard(
            config.on_nonfinite, config.max_nonfinite, world.device, self._describe_documents, skipped
        )
        self._saved_at: int | None = self.step if self.step else None

    @property
    def _batch_size(self) -> int:
        return self.config.data.global_batch_size or 0  # filled by settle()

    def run(self, stop: StopRequest | None = None) -> int:
        """Train to the last step, or until `stop` has a signal; returns the exit code."""
        config, stop = self.config, stop or StopRequest()
        with ExitStack() as stack:
            stack.callback(self.store.finish)  # a save in the background is completed whatever ends the run
            self.metrics = self._open_outputs(stack)
            self.console = stack.enter_context(Console(config.steps, self.step, self.world.is_main))
            self.throughput = Throughput(config.model, config.data.seq_len, self.world.size, self.world.device)
            batches = iter(self.loader)
            stack.callback(self.loader.close)
            if self.step >= config.steps:
                log.info("nothing to do: %d of %d steps are done", self.step, config.steps)
                return 0
            while self.step < config.steps:
                # Before the first step too: a signal may have come while the run was being set up.
                if stop.agreed(self.world.cpu_group):
                    self._stop(stop.name)
                    return EXIT_PREEMPTED
                loss, grad_norm, rate = self._train_step(next(batches))
                self.step += 1
                self.throughput.step()
                self._after_step(loss, grad_norm, rate)
            self.store.finish()
        return 0

    def _stop(self, signal_name: str) -> None:
        """Save what was trained, whatever is being saved in the background already."""
        if self.step:
            self._save()
            self.store.finish()
            log.warning("%s: saved at step %d; start the same command to go on", signal_name, self.step)
        else:
            log.warning("%s before the first step: nothing to save yet; start the same command again", signal_name)

    def _train_step(self, batches: Any) -> tuple[Tensor, Tensor, float]:
        """One optimizer step over this rank's micro-batches.

        Returns (mean loss over all tokens of the global batch, gradient norm before clipping, learning rate); the
        tensors are 0-d and on the device.
        """
        config, world = self.config, self.world
        self._set_alpha(self.step)
        self.activations.before(self.step)
        # The loss is the sum over target tokens over their global number. FSDP2 averages gradients over the ranks,
        # so each rank's share is scaled up by their number first.
        n_targets = batches.n_targets
        scale = (world.size if world.mesh is not None else 1) / n_targets
        total = torch.zeros((), device=world.device)
        for i, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(i == len(batches) - 1)
            batch = batch.to(world.device)
            loss = self.model(batch.tokens, batch.targets, document_ids=batch.document_ids, reduction="sum")
            (loss * scale).backward()
            self.activations.add()
            total += loss.detach()
        own_loss = total.clone()
        if world.mesh is not None:
            dist.all_reduce(total)
        mean_loss = total / n_targets
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        rate = learning_rate(config.optim, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = self.guard.verdict(self.step, own_loss, mean_loss, grad_norm)  # type: ignore[attr-defined]
        if world.device.type == "cpu":
            self.guard.check()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.activations.finish(rate / config.optim.lr, self.optimizer.found_inf)  # type: ignore[attr-defined]
        return mean_loss, grad_norm, rate

    def _after_step(self, loss: Tensor, grad_norm: Tensor, rate: float) -> None:
        config = self.config
        if self.step % config.logging.freq == 0 or self.step == config.steps:
            self._log(loss, grad_norm, rate)
        else:
            self.console.update(self.step)
        # Validation first: a run killed between the two validates again, instead of never.
        if config.evaluates_at(self.step):
            self._evaluate()
        if self.step == config.steps or config.checkpoint.saves_at(self.step):
            self._save()

    def _log(self, loss: Tensor, grad_norm: Tensor, rate: float) -> None:
        skipped = self.guard.check()
        loss_value, norm_value = torch.stack((loss, grad_norm)).tolist()
        tokens = self._batch_size * self.config.data.seq_len
        figures: dict[str, Any] = {
            "global_step": self.step,
            "acc_step": 0,
            # A loss that knows later tokens is no language model's, and must not be taken for one.
            "loss/out_noncausal" if self.activations.noncausal else "loss/out": loss_value,
            **self.activations.figures(),
            "optim/grad_norm": norm_value,
            "optim/lr": rate,
            "optim/total_tokens": self.step * tokens,
            "optim/skipped_steps": skipped,
            **self.throughput.figures(tokens),
        }
        # The alpha that this step ran with: set_alpha was called before it.
        if (alpha := get_alpha(self.model)) is not None:
            figures["topk/alpha"] = alpha
        self._write(figures)
        utilisation = figures.get("speed/mfu")
        self.console.update(
            self.step,
            f"loss {loss_value:.4f}{' (not causal)' if self.activations.noncausal else ''}"
            + (f"  alpha {alpha:.3f}" if alpha is not None else "")
            + f"  {figures['speed/tokens_per_second']:,.0f} tok/s"
            + (f"  mfu {utilisation:.1%}" if utilisation is not None else ""),
            f"  grad {norm_value:.3f}  lr {rate:.2e}",
        )

    def _evaluate(self) -> None:
        """What section eval asks for, at the current weights and the current alpha."""
        self.guard.check()
        self._set_alpha(self.step)
        with self.throughput.pause(), self.console.paused():
            figures = evaluate_step(self.model, self.config, self.data, self.world, self.step)
        self._write({"global_step": self.step, **figures})
        if self.world.is_main:
            scores = [k for k in figures if re.match(r"val/.*(ppl|bpb)@|eval/(?!.*_stderr)", k)]
            shown = [f"{k} {figures[k]:.4f}" for k in scores]
            tokens = [f"{k} {v:,.0f}" for k, v in figures.items() if k.startswith("val/tokens@")]
            log.info("step %d  %s", self.step, "  ".join(shown + tokens))

    def _save(self) -> None:
        if self._saved_at == self.step:
            return
        state = {
            "step": self.step,
            "acc_step": 0,
            "rank": self.world.rank,
            "skipped_steps": self.guard.check(),
            "data": {"fingerprint": self.data.fingerprint},
            "rng": rng_state(self.world.device),
        }
        with self.throughput.pause():
            self.store.save(
                self.step, self.model, self.optimizer, state, self._params(), self.data.tokenizer_dir,
                self.activations.state_dict(),
            )  # fmt: skip
        self._saved_at = self.step

    def _params(self) -> dict[str, Any]:
        """The whole configuration, with BOS and EOS of the data filled in: a checkpoint that has moved away from its
        data must still tell how its texts began."""
        params, manifests = to_dict(self.config), self.data.manifests.values()
        params["data"] |= {key: any(getattr(m, key) for m in manifests) for key in ("add_bos", "add_eos")}
        return params

    def _restore(self) -> int:
        """Weights, optimizer and counters: from the run's newest good checkpoint, from other weights, or fresh.

        Returns the number of steps that were skipped so far.
        """
        config = self.config
        skipped = 0
        path = self._agree_on_checkpoint()
        init = config.init_from or config.checkpoint.init_ckpt_path
        if path is None and init is not None and config.checkpoint.continue_training_from_init:
            path = resolve(Path(init))
        if path is not None:
            state = self.store.restore(path, self.model, self.optimizer, self.activations.state_dict())
            if state["data"]["fingerprint"] != self.data.fingerprint:
                raise DataError(
                    f"the prepared data in {config.data.root_dir} are not those that {path} was trained on (their "
                    "fingerprint differs): restore them, or start a new run from these weights with "
                    f"checkpoint.init_ckpt_path={path}"
                )
            self.step, skipped = state["step"], state["skipped_steps"]
            apply_settings(self.optimizer, config.optim)
            seed_everything(config.seed, self.world.rank, self.step)
            if state.get("rank", 0) == self.world.rank:  # else of a run with fewer ranks, of which this was none
                restore_rng(state["rng"], self.world.device)
            log.info("resuming from %s", path)
        elif init is not None:
            source = resolve(Path(init))
            weights, _ = read_weights(source, build_model(config.model, None, "meta"))
            load_weights(self.model, weights)
            read_activations(source, self.model, required=False)
            self._source = {"path": str(source), "sha256": content_hash(source) if self.world.is_main else None}
            log.info("starting from the weights of %s", init)
        else:
            init_weights(self.model, config.model)
        self._set_alpha(self.step)
        return skipped

    def _agree_on_checkpoint(self) -> Path | None:
        """Rank 0 looks for the newest good checkpoint and tells the others, an error too."""
        found: list[Any] = [None]
        if self.world.is_main:
            try:
                found[0] = newest_good(self.store.directory)
            except Exception as error:
                found[0] = error
        if self.world.cpu_group is not None:
            dist.broadcast_object_list(found, src=0, group=self.world.cpu_group)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _set_alpha(self, step: int) -> None:
        if get_alpha(self.model) is not None and self.config.topk is not None:
            set_alpha(self.model, alpha_at(step, self.config.topk.anneal_steps or 0))

    def _open_outputs(self, stack: ExitStack) -> MetricsWriter | None:
        """Files of the run; only the main rank writes."""
        if not self.world.is_main:
            return None
        handler = logging.FileHandler(self.dump_dir / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("topklm").addHandler(handler)
        stack.callback(logging.getLogger("topklm").removeHandler, handler)
        stack.callback(handler.close)
        save_config(self.config, self.dump_dir / "config.yaml")
        part = self.dump_dir / "provenance.json.tmp"
        part.write_text(json.dumps(self._provenance(), indent=1))
        part.replace(self.dump_dir / "provenance.json")
        n = self.config.model.n_params
        log.info(
            "%s: %.1f M parameters, %s, %d rank(s) on %s, global batch %d x %d tokens, checkpoints found: %d",
            self.config.name, n / 1e6, self._kind(),
            self.world.size, self.world.device.type, self._batch_size, self.config.data.seq_len,
            len(list_checkpoints(self.store.directory)),
        )  # fmt: skip
        for line in self.data.summary():
            log.info("%s", line)
        for name in (VALIDATION_METRICS, EVAL_METRICS):
            rewind_metrics(self.dump_dir / name, self.step)
        return stack.enter_context(
            MetricsWriter(self.config.logging, self.dump_dir, self.config.name, to_dict(self.config), self.step)
        )

    def _kind(self) -> str:
        topk = self.config.topk
        if topk is None:
            return "dense"
        name = "TopK" if topk.activation == "topk" else topk.activation
        return f"{name} k={topk.k_per_layer or topk.k}" if activation_class(topk.activation).uses_k else name

    def _provenance(self) -> dict[str, Any]:
        """What decides the run's figures and is not in its configuration."""
        device = self.world.device
        lingua = {"lingua/transformer.py": lingua_sha256()} if self.config.model.backend == "lingua" else {}
        return {
            "source": self._source or self._earlier_source(),
            "data_fingerprint": self.data.fingerprint,
            "tokenizer_sha256": self.data.manifests[self.data.names[0]].tokenizer["sha256"],
            "n_parameters": self.config.model.n_params,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "ranks": self.world.size,
            "versions": {"topklm": topklm.__version__, "torch": torch.__version__, **lingua},
        }

    def _earlier_source(self) -> dict[str, Any] | None:
        """What the process that began this run wrote of its source, which need not be there any more."""
        try:
            return json.loads((self.dump_dir / "provenance.json").read_text())["source"] if self.step else None
        except (OSError, json.JSONDecodeError, KeyError):
            return None

    def _write(self, figures: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(figures)

    def _describe_documents(self, step: int) -> str:
        shown = [str(document) for document in self.loader.documents_of_step(step)]
        more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        return f"Rank {self.world.rank}; documents of its batch: {', '.join(shown[:8])}{more}."
