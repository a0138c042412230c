"""What looks odd in a plan: steps that do not go together, figures that cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator

from topklm.budget.course import Checkpoints, Course, duration
from topklm.budget.setting import Setting
from topklm.train import TrainConfig

FP32_SHARE = 1 / 16
"""Of an A100's or H100's bf16 peak that its fp32 units have (without TF32); of an L4's a quarter."""
LAUNCHING = 0.3e-3
"""Seconds in which the kernels of one block's forward and backward pass are launched, roughly: some 60 of 5 us."""


def notes(
    train: TrainConfig, setting: Setting, course: Course, checkpoints: Checkpoints, seconds: float, mfu: float
) -> Iterator[str]:
    """A sentence each. `seconds`: of the communication of a step."""
    steps, warmup, topk = train.steps, train.optim.warmup, train.topk
    if train.optim.scheduler != "constant":
        if warmup >= steps:
            yield f"The run of {steps:,} steps ends in its warm-up of {warmup:,}: give optim.warmup or more steps."
        elif warmup > steps / 5:
            yield f"The warm-up of {warmup:,} steps is {warmup / steps:.0%} of the run."
    if topk is not None:
        annealing = topk.anneal_steps or 0
        if annealing >= steps:
            yield f"The annealing of {annealing:,} steps is the whole run: no step is trained at alpha = 0."
        elif annealing and annealing > 0.8 * steps:
            yield f"Only {steps - annealing:,} of {steps:,} steps are trained at alpha = 0, after the annealing."
        elif 0 < annealing <= warmup and train.optim.scheduler != "constant":
            yield f"The annealing ends at step {annealing:,}, in the warm-up of {warmup:,}."
        elif not annealing and topk.schedule != "none":
            yield "There is no annealing: the cut is there from the first step."
    if setting.shards > 1 and setting.micro_batches > 1:
        yield (
            f"{setting.micro_batches} micro-batches a step: between them FSDP2 keeps the whole fp32 gradient on every "
            f"rank, {4 * setting.model.n_params / 2**30:.1f} GiB."
        )
    if seconds > course.step_seconds:
        yield (
            f"Communication takes {duration(seconds)} a step, longer than computing at this MFU "
            f"({duration(course.step_seconds)}): it cannot hide, and the MFU is below "
            f"{mfu * course.step_seconds / seconds:.0%}. Larger global batches, or fewer ranks."
        )
    if setting.width == 4 and mfu > FP32_SHARE:
        yield (
            f"Products are in fp32, and the MFU of {mfu:.0%} is a share of the bf16 peak: an H100 has "
            f"{FP32_SHARE:.0%} of it in fp32, half of it with distributed.matmul_allow_tf32. Give a smaller mfu, or "
            "take bf16."
        )
    if train.model.backend == "lingua":
        yield (
            "Lingua's blocks are planned as ours, and keep more for the backward pass without checkpointing: four "
            "widths F of the feed-forward layer instead of two, norms in fp32."
        )
    passes = course.step_seconds / setting.micro_batches
    if passes < LAUNCHING * setting.model.n_layers:
        yield (
            f"A micro-batch would take {1000 * passes:.2g} ms, which is less than launching its kernels does: so "
            "little work does not reach this MFU."
        )
    ranks = setting.shards * setting.replicas
    computed = setting.sequences * setting.micro_batches * ranks * setting.seq_len
    if computed > course.tokens_per_step:
        yield (
            f"{1 - course.tokens_per_step / computed:.0%} of what is computed is padding: the global batch does not "
            f"divide into {setting.micro_batches} micro-batches on {ranks} ranks."
        )
    if checkpoints.waiting_seconds > max(60, 0.05 * course.hours * 3600):
        yield (
            f"Training waits {checkpoints.waiting_seconds / 60:,.0f} minutes for its {checkpoints.saves} checkpoints: "
            "checkpoint.async_save=true writes them beside it."
        )
    between = 3600 * course.hours / checkpoints.saves
    if not checkpoints.blocking and checkpoints.seconds > between:
        yield (
            f"A checkpoint takes {duration(checkpoints.seconds)} to write, longer than the {duration(between)} between "
            "two of them: training waits for it. Save less often, or write faster."
        )
