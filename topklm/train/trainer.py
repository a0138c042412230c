"""The training loop: batches in order, micro-batches, one optimizer step; validate, save, log, stop in good order."""

from __future__ import annotations

import gc
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
from torch.profiler import record_function

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
from topklm.config import to_dict
from topklm.data import IGNORE, TrainData, TrainLoader, open_data
from topklm.errors import EXIT_PREEMPTED, DataError, NonFiniteError
from topklm.model import build_model, init_weights
from topklm.sparsity import ActivationSteps, alpha_at, get_alpha, set_alpha
from topklm.train.config import TrainConfig
from topklm.train.diagnose import Finding, first_bad_number, first_bad_tensor
from topklm.train.evaluation import evaluate_step
from topklm.train.exit_record import ExitRecord
from topklm.train.metrics import Console
from topklm.train.nonfinite import StepRecord, as_json
from topklm.train.nonfinite_report import nonfinite_error
from topklm.train.optim import apply_settings, build_optimizer, learning_rate
from topklm.train.outputs import open_outputs
from topklm.train.parallel import World, any_rank, new_gloo_group, parallelize, start, world_from_env
from topklm.train.peers import naming_lost_peers
from topklm.train.preflight import preflight
from topklm.train.profile_tables import OPTIMIZER_SCOPE, WAITING_SCOPE
from topklm.train.profiling import Profiler
from topklm.train.rng import restore_rng, rng_state, seed_everything
from topklm.train.settle import settle
from topklm.train.signals import StopRequest
from topklm.train.throughput import Throughput
from topklm.train.watch import Watch

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
        state = self._restore()
        self.loader = self._new_loader(world.rank, world.size, config.data.load_async)
        self.watch = Watch(config, world, self._new_loader, self._explain, state)
        self._saved_at: int | None = self.step if self.step else None

    @property
    def _batch_size(self) -> int:
        return self.config.data.global_batch_size or 0  # filled by settle()

    def _new_loader(
        self, rank: int, world_size: int, load_async: bool = False, start: int | None = None
    ) -> TrainLoader:
        config = self.config.data
        return TrainLoader(
            self.data,
            global_batch_size=self._batch_size,
            micro_batch_size=config.batch_size,
            rank=rank,
            world_size=world_size,
            start_step=self.step if start is None else start,
            load_async=load_async,
            prefetch_size=config.prefetch_size,
            pin_memory=self.world.device.type == "cuda",
            with_document_ids=self.config.model.document_mask,
        )

    def _new_profiler(self) -> Profiler:
        config, world = self.config, self.world
        folder = self.dump_dir / config.profiling.trace_folder
        eager = not config.distributed.compile
        return Profiler(config.profiling, folder, world.device, world.rank, self.step, names_topk=eager)

    def run(self, stop: StopRequest | None = None) -> int:
        """Train to the last step, or until `stop` has a signal; returns the exit code."""
        config, stop = self.config, stop or StopRequest()
        with ExitStack() as stack:
            stack.callback(self.store.finish)  # a save in the background is completed whatever ends the run
            self.metrics = open_outputs(
                stack, config, self.data, self.world, step=self.step, source=self._source,
                n_checkpoints=len(list_checkpoints(self.store.directory)),
            )  # fmt: skip
            self.console = stack.enter_context(Console(config.steps, self.step, self.world.is_main))
            self.throughput = Throughput(config.model, config.data.seq_len, self.world.size, self.world.device)
            profiler = stack.enter_context(self._new_profiler())
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
                with record_function(WAITING_SCOPE):
                    batch = next(batches)
                loss, grad_norm, rate = self._train_step(batch)
                self.step += 1
                self.throughput.step()
                self._after_step(loss, grad_norm, rate)
                profiler.step()
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
        self._set_alpha(self.step)
        self.activations.before(self.step)
        own_loss, loss = self._gradients(batches)
        with record_function(OPTIMIZER_SCOPE):
            return loss, *self._update(own_loss, loss)

    def _update(self, own_loss: Tensor, loss: Tensor) -> tuple[Tensor, float]:
        """The optimizer step, unless loss or gradient is not finite. Returns (gradient norm, learning rate)."""
        config = self.config
        grad_norm = self._clip()
        rate = learning_rate(config.optim, self.step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = self.watch.verdict(self.step, own_loss, loss, grad_norm)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.activations.finish(rate / config.optim.lr, self.optimizer.found_inf)  # type: ignore[attr-defined]
        return grad_norm, rate

    def _gradients(self, batches: Any) -> tuple[Tensor, Tensor]:
        """Forward and backward pass of a step.

        Returns (sum of the losses of this rank's tokens, mean over those of the global batch), 0-d on the device.
        """
        world = self.world
        # The loss is the sum over target tokens over their global number. FSDP2 averages gradients over the ranks,
        # so each rank's share is scaled up by their number first.
        n_targets = batches.n_targets
        scale = (world.size if world.mesh is not None else 1) / n_targets
        total = torch.zeros((), device=world.device)
        for i, batch in enumerate(batches):
            if isinstance(self.model, FSDPModule):
                self.model.set_requires_gradient_sync(i == len(batches) - 1)
            rows = batch.targets[:, 0] != IGNORE  # looked at on the host; the others are padding
            self.activations.count_only(None if rows.all() else rows.to(world.device))
            batch = batch.to(world.device)
            loss = self.model(batch.tokens, batch.targets, document_ids=batch.document_ids, reduction="sum")
            (loss * scale).backward()
            self.activations.add()
            total += loss.detach()
        own_loss = total.clone()
        if world.mesh is not None:
            dist.all_reduce(total)
        return own_loss, total / n_targets

    def _clip(self) -> Tensor:
        """Clip the gradients; their norm over all ranks before it, 0-d on the device."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _explain(self, record: StepRecord, title: str) -> NonFiniteError:
        """Why a step was not finite, by computing it once more: the weights are still those it began with."""
        batches = next(iter(self._new_loader(self.world.rank, self.world.size, start=record.step)))
        self._set_alpha(record.step)
        self.activations.before(record.step)
        finding = first_bad_number(self.model, self.optimizer, lambda: self._gradients(batches), self._clip)
        return self._nonfinite(
            record.step, title, finding, loss=as_json(record.loss), grad_norm=as_json(record.grad_norm)
        )

    def _nonfinite(self, step: int, title: str, finding: Finding | None, **figures: float | str) -> NonFiniteError:
        alpha = get_alpha(self.model)
        return nonfinite_error(
            self.world, self.dump_dir, title, finding, lambda i: self.loader.documents_of_step(step, i),
            {"global_step": step + 1, "alpha": alpha, "checkpoint": self._saved_at, **figures},
        )  # fmt: skip

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
        self.watch.look()
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
            **self.watch.figures(),
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
        self.watch.look()
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
        self.watch.look()
        finding = first_bad_tensor(self.model, self.optimizer)
        if any_rank(finding is not None, self.world):
            title = f"weights or moments after step {self.step} are not finite; nothing was saved since"
            raise self._nonfinite(self.step - 1, title, finding)
        state = {
            "step": self.step,
            "acc_step": 0,
            "rank": self.world.rank,
            **self.watch.state_dict(),
            "data": {"fingerprint": self.data.fingerprint},
            "rng": rng_state(self.world.device),
        }
        with self.throughput.pause():
            self.store.save(
                self.step, self.model, self.optimizer, state, self._params(), self.data.tokenizer_dir,
                self.activations.state_dict(),
            )  # fmt: skip
        self._saved_at = self.step
        self.watch.saved()

    def _params(self) -> dict[str, Any]:
        """The whole configuration, with BOS and EOS of the data filled in: a checkpoint that has moved away from its
        data must still tell how its texts began."""
        params, manifests = to_dict(self.config), self.data.manifests.values()
        params["data"] |= {key: any(getattr(m, key) for m in manifests) for key in ("add_bos", "add_eos")}
        return params

    def _restore(self) -> dict[str, Any]:
        """Weights, optimizer and counters: from the run's newest good checkpoint, from other weights, or fresh.

        Returns the train state of the checkpoint; empty for a run that begins.
        """
        config = self.config
        state: dict[str, Any] = {}
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
            self.step = state["step"]
            apply_settings(self.optimizer, config.optim)
            seed_everything(config.seed, self.world.rank, self.step)
            if state.get("rank", 0) == self.world.rank:  # else of a run with fewer ranks, of which this was none
                restore_rng(state["rng"], self.world.device)
            log.info("resuming from %s", path)
            if state.get("sick"):
                log.warning("%s was written by a sick run: %s", path.name, state["sick"])
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
        return state

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

    def _write(self, figures: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(figures)
