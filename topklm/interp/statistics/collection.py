"""Collecting bundles: part by part, rank by rank, going on after an interruption, whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import topklm
from topklm.bundles import Made, Meta, Reading
from topklm.bundles.merge import windows_hash
from topklm.errors import ConfigError, Problem
from topklm.interp.progress import PassProgress
from topklm.interp.statistics.collect_config import CollectConfig, token_count
from topklm.interp.statistics.collect_files import Workplace
from topklm.interp.statistics.layer_pass import LayerPass, Piece
from topklm.interp.statistics.layer_plan import LayerPlan, group_layers, plan_layers
from topklm.interp.statistics.memory import available_bytes, plan_lines
from topklm.interp.statistics.selections import differences, selected_masks
from topklm.interp.statistics.subject import Subject, bundle_path, checkpoints_of, load_subject
from topklm.interp.statistics.windows import PlannedPart, WindowPlan, plan_windows
from topklm.model import Transformer
from topklm.ranks import Ranks

log = logging.getLogger("topklm.interp")
BATCH_TOKENS = {"cpu": 2048, "cuda": 32_768}
_CHECK_TOKENS = 2048


def collect(config: CollectConfig, ranks: Ranks | None = None) -> list[Path]:
    """Make the bundles that a configuration asks for, all ranks together; returns their directories.

    What is there already is left, what was interrupted goes on where it was. Raises `ConfigError`, `DataError`,
    `CheckpointError`, `NonFiniteError`.
    """
    ranks = ranks or Ranks()
    return [_Collection(config, ranks, path).run() for path in checkpoints_of(config)]


class _Collection:
    """Of one checkpoint."""

    def __init__(self, config: CollectConfig, ranks: Ranks, checkpoint: Path) -> None:
        self.config, self.ranks = config, ranks
        self.subject: Subject = load_subject(checkpoint, config, ranks.device)
        self.path = bundle_path(config, self.subject.loaded)
        self.windows: WindowPlan = self._windows()
        self.subject.check_tokenizer(self.windows.corpus.tokenizer_sha256)
        model = self.subject.loaded.model
        self.plans: list[LayerPlan] = plan_layers(
            model.n_layers, self.subject.loaded.topk, self.subject.loaded.alpha, config.site, config.read_topk
        )
        self.layers = sorted(set(range(model.n_layers) if config.layers is None else config.layers))
        if self.layers[-1] >= model.n_layers:
            raise ConfigError([Problem("layers", f"{self.layers[-1]}: the model's are 0 ... {model.n_layers - 1}")])
        context = self.windows.corpus.context
        self.batch_size = config.batch_size or max(1, BATCH_TOKENS.get(ranks.device.type, 2048) // context)
        every = np.sort(np.concatenate([part.windows for part in self.windows.parts]))
        self.counts = ranks.first(lambda: self.windows.counts(every, model.vocab_size))
        self.meta = self._meta(every)
        self.place = Workplace(self.path, self.meta, ranks)

    def run(self) -> Path:
        """Returns the directory of the bundle."""
        # A history needs no snapshots and halves, but the newest checkpoint may have been collected with them.
        any_parts = self.config.several and self.config.snapshots is None and self.config.halves is None
        if self.ranks.first(lambda: self.place.is_done(self.config.overwrite, any_parts)):
            log.info("%s is there already", self.path)
            return self.path
        with self.place.held(self.config.overwrite):
            groups = self.ranks.first(lambda: self.place.keep_groups(self._groups()))
            if self.ranks.is_first:
                for line in plan_lines(self.meta, self.windows, self.plans, groups, self.counts, self.ranks, self.path):
                    log.info("%s", line)
            passes = len(groups) * sum(map(self._n_mine, self.windows.parts))
            title = f"collect {self.path.name}"
            with PassProgress(title, passes * self.windows.corpus.context, self.ranks.is_first) as progress:
                for number, part in enumerate(self.windows.parts):
                    self._part(number, part, groups, progress)
            checks = self.ranks.first(self._check) if self.config.check_selections else {}
            model = self.subject.model
            self.place.publish(
                checks, model.tok_embeddings.weight.detach().float().cpu().numpy(), self.subject.tokens()
            )
        return self.path

    def _part(self, number: int, part: PlannedPart, groups: list[list[int]], progress: PassProgress) -> None:
        """Count one part, unless it is there, and put the ranks' shares of it together."""
        if self.ranks.first(lambda: self.place.has_part(number)):
            progress.skip(len(groups) * self._n_mine(part) * self.windows.corpus.context)
            return
        for group_number, group in enumerate(groups):
            self._pass(number, part, group_number, group, progress)
        self.place.assemble(number, groups)

    def _pass(
        self, number: int, part: PlannedPart, group_number: int, group: list[int], progress: PassProgress
    ) -> None:
        """Count this rank's windows of one part for some of the layers."""
        context = self.windows.corpus.context
        mine = part.windows[self.ranks.rank :: self.ranks.size]
        share = self.place.share(number, group_number, group)
        if share.is_done():
            progress.skip(len(mine) * context)
            return
        counts = self.windows.counts(mine, self.subject.loaded.model.vocab_size)
        work = LayerPass(
            self.subject.model, self.plans, group, np.flatnonzero(counts), self.config.settings,
            alpha=self.subject.loaded.alpha, site=self.config.site, device=self.ranks.device,
        )  # fmt: skip
        done = 0
        if (state := share.newest_state(mine)) is not None:
            work.load(state)
            done = len(state.windows)
            progress.skip(done * context)
        saved, every = time.monotonic(), 60 * self.config.save_minutes
        for n in work.run(self._batches(mine[done:])):
            done += n
            progress.advance(n * context)
            if done < len(mine) and (began := time.monotonic()) - saved >= every:
                share.save_state(work.type_counts(len(counts)), mine[:done], work.stats())
                saved = time.monotonic()
                # Large tables take long to write: not more than a twentieth of the time goes there.
                every = max(every, 20 * (saved - began)) if every else 0
        share.finish(counts, mine, work.stats())

    def _batches(self, windows: np.ndarray) -> Iterator[Piece]:
        context = self.windows.corpus.context
        for start in range(0, len(windows), self.batch_size):
            some = windows[start : start + self.batch_size]
            ids = self.windows.document_ids(some) if self.windows.corpus.document_mask else None
            yield self.windows.read(some), some[:, None] + np.arange(context), ids

    def _windows(self) -> WindowPlan:
        """The windows of the corpus that was configured, or of what the run was trained on."""
        config, loaded = self.config, self.subject.loaded
        trained = loaded.run.get("data") or {}
        if config.data is None and not trained.get("root_dir"):
            raise ConfigError(
                [Problem("data", f"{loaded.path} does not say what it was trained on; give prepared data")]
            )
        context = config.context or trained.get("seq_len") or loaded.model.max_seqlen
        few = config.several
        snapshots = ([] if few else None) if config.snapshots is None else config.snapshots
        return plan_windows(
            Path(config.data or trained["root_dir"]),
            config.sources or ([] if config.data else list(trained.get("sources") or {})),
            config.split,
            context=int(context),
            tokens=token_count(config.tokens) or 0,
            snapshots=None if snapshots is None else [token_count(n) or 0 for n in snapshots],
            halves=not few if config.halves is None else config.halves,
            document_mask=loaded.model.document_mask,
        )

    def _meta(self, windows: np.ndarray) -> Meta:
        cut = self.config.read_topk
        device = self.ranks.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        parts = self.windows.parts
        return Meta(
            model=self.subject.source,
            reading=Reading(site=self.config.site, read_topk=None if cut is None else dataclasses.asdict(cut)),
            corpus=self.windows.corpus,
            settings=self.config.settings,
            n_tokens=self.windows.n_tokens,
            n_windows=self.windows.n_windows,
            windows_sha256=windows_hash(windows),
            layers={str(layer): self.plans[layer].kind for layer in self.layers},
            parts=[part.meta(self.windows.corpus.context) for part in parts] if len(parts) > 1 else [],
            made=[
                Made(
                    topklm=topklm.__version__, torch=torch.__version__, device=name,
                    world_size=self.ranks.size, batch_size=self.batch_size,
                )
            ],
        )  # fmt: skip

    def _groups(self) -> list[list[int]]:
        """Layers that are counted in one pass."""
        budget = (
            available_bytes(self.ranks.device) // 2 if self.config.memory_gb is None else self.config.memory_gb * 1e9
        )
        n_types = int(np.count_nonzero(self.counts))
        return group_layers(self.layers, self.plans, self.meta.model.dim, n_types, self.config.settings, int(budget))

    def _n_mine(self, part: PlannedPart) -> int:
        return len(part.windows[self.ranks.rank :: self.ranks.size])

    def _check(self) -> dict[str, dict[str, float | int]]:
        """Selections of the first windows, against one window at a time, fp32, and a CPU, as far as these differ."""
        model, context = self.subject.model, self.windows.corpus.context
        some = self.windows.parts[0].windows[: max(2, _CHECK_TOKENS // context)]
        tokens = torch.from_numpy(self.windows.read(some))
        ids = torch.from_numpy(self.windows.document_ids(some)) if self.windows.corpus.document_mask else None
        device = self.ranks.device

        def masks(model: Transformer, device: torch.device, size: int | None = None) -> list[torch.Tensor]:
            return selected_masks(model, tokens.to(device), None if ids is None else ids.to(device), size)

        base = masks(model, device)
        if not base:
            return {}
        found = {"one window at a time": differences(base, masks(model, device, 1))}
        if next(model.parameters()).dtype == torch.bfloat16:
            found["fp32"] = differences(base, masks(copy.deepcopy(model).float(), device))
        if device.type != "cpu":
            cpu = torch.device("cpu")
            found["fp32 on a CPU"] = differences(base, masks(copy.deepcopy(model).float().to(cpu), cpu))
        return {name: dataclasses.asdict(one) for name, one in found.items()}
