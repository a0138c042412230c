"""What all programs in `apps/` do around their main function: arguments, help, logging, errors, exit codes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NoReturn, TextIO, TypeVar

from topklm.config import describe, load_config
from topklm.errors import ConfigError, Problem, TopklmError, exit_code_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from topklm.ranks import Ranks

log = logging.getLogger("topklm")
T = TypeVar("T")
Dtype = Literal["fp64", "fp32", "bf16", "fp16"]
"""Names of the precisions of a loaded model."""


def run(
    main: Callable[[T], int | None], schema: type[T], program: str, doc: str, args: Sequence[str] | None = None
) -> None:
    """Run `main` with the configuration that the command line (or `args`) gives, then `sys.exit`.

    Exit codes: what `main` returns (None is 0), or `exit_code_of` the error.
    """
    args = sys.argv[1:] if args is None else args
    if not args or {"-h", "--help"} & set(args):
        _print_help(describe(schema, program, doc))
        sys.exit(0 if args else 2)
    _log_to_stderr()
    try:
        code = main(load_config(schema, args))
    except (TopklmError, OSError, KeyboardInterrupt) as error:  # OSError: a place that cannot be written, a full disk
        log.debug("traceback", exc_info=True)
        # In one piece: print() writes the end of the line by itself, and lines of several ranks would run together.
        sys.stderr.write(f"{program}: {str(error) or 'interrupted'}\n")
        code = exit_code_of(error)
    _leave(code or 0)


def say(lines: Iterable[str], written: Iterable[Path] = ()) -> None:
    """Print sentences as they are, whole lines, and then which files were written."""
    for line in lines:
        print(line)
    if files := ", ".join(map(str, written)):
        print(f"written: {files}")


def bare_paths(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what is given without a key, all other arguments): RUN RUN key=value --flag."""
    paths = [arg for arg in args if "=" not in arg and not arg.startswith("-")]
    return paths, [arg for arg in args if arg not in paths]


def repeated(args: Sequence[str], key: str) -> list[str]:
    """key=A key=B as key=[A,B]; a list that is given as one stays."""
    values = [arg.removeprefix(f"{key}=") for arg in args if arg.startswith(f"{key}=")]
    if not values or (len(values) == 1 and values[0].startswith("[")):
        return list(args)
    return [*(arg for arg in args if not arg.startswith(f"{key}=")), f"{key}={values!r}"]


def torch_device(name: str) -> torch.device:
    """The device of a program's `device` setting; "auto" is a GPU if there is one. Raises `ConfigError`."""
    import torch

    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(name if name != "auto" else "cuda" if has_gpu else "cpu")
    except RuntimeError:
        raise ConfigError([Problem("device", f"{name!r} is no device; give auto, cpu, cuda or cuda:1")]) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError([Problem("device", f"{name} is not here; there are {torch.cuda.device_count()} GPUs")])
    return device


def torch_dtype(name: Dtype) -> torch.dtype:
    """The dtype of a program's `dtype` setting."""
    import torch

    return {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


@contextmanager
def job(device: Literal["auto", "cpu", "cuda"], timeout_minutes: float, nccl: bool = False) -> Iterator[Ranks]:
    """This process among torchrun's ranks, each with a GPU of its own where there is one, or alone.

    They talk by gloo, since they exchange files and small objects; with `nccl` tensors on GPUs go by NCCL.
    """
    import torch
    import torch.distributed as dist

    from topklm.ranks import Ranks
    from topklm.train.parallel import world_from_env

    world = world_from_env()
    found = (
        world.device if device == "auto" else torch_device(f"cuda:{world.local_rank}" if device == "cuda" else device)
    )
    if found.type == "cuda":
        torch.cuda.set_device(found)
    if world.size > 1:
        backend = "cpu:gloo,cuda:nccl" if nccl and found.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    try:
        yield Ranks(world.rank, world.size, found)
    finally:
        if world.size > 1:
            dist.destroy_process_group()


def _print_help(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `--help | head` has seen enough; the end of the interpreter would flush once more
        os._exit(141)


def _leave(code: int) -> NoReturn:
    """End the process. Under torchrun without the interpreter's own end, where threads of process groups that are
    still winding down abort it (SIGABRT, in about one of thirty runs on gloo) although all is done."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _log_to_stderr() -> None:
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.getLogger("topklm").addHandler(handler)
    # Of many ranks only the first tells how it goes; the others what is wrong. The configuration is the same on all.
    is_main = os.environ.get("RANK", "0") == "0"
    logging.getLogger("topklm").setLevel(logging.INFO if is_main else logging.WARNING)
    logging.getLogger("topklm.config").setLevel(logging.INFO if is_main else logging.ERROR)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at the moment: a progress bar replaces it to keep lines apart."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)
