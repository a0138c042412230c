"""Which way blocks compute, and the kernels' own tests in a process with Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_stack as tiny
import torch

from topklm.errors import ConfigError
from topklm.sparsity import TopKConfig, activations_of, set_kernel
from topklm.sparsity.kernels import choice
from topklm.sparsity.kernels.choice import Kernel

FOLDER = Path(__file__).parent / "interpreted"


def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    options = ["-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]  # NumPy's, of infinities
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(FOLDER)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=FOLDER.parents[3], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_they_compile_for_a_gpu_that_is_not_here(kind: str) -> None:
    """The interpreter takes much that the compiler does not."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from topklm.sparsity.kernels import rows

    shared = {"D": 1000, "BLOCK": 1024, "ANNEALS": True}
    forward = {**shared, "SHIFT": 16 if kind == "bf16" else 0, "ADDS": True, "FORM": "blend", "MARKS": True}
    types = {"bits": "*u8", "k": "i32", "z": "fp32", "alpha": "fp32"}
    for kernel, constants in ((rows._forward, forward), (rows._backward, {**shared, "RELU": True})):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, f"*{kind}") for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def test_a_cpu_does_without() -> None:
    x = torch.randn(2, 8)
    assert not Kernel.of("auto").takes(x)
    assert not Kernel.of("torch").takes(x)
    with pytest.raises(ConfigError, match="take auto"):
        Kernel.of("triton").takes(x)


def test_what_a_gpu_takes() -> None:
    kernel = Kernel("auto", ("cuda",))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 8, device="cuda", dtype=torch.bfloat16)
        assert kernel.takes_sum(x, x)
        assert not kernel.takes_sum(x, x.float())
        assert not kernel.takes_sum(x, x.new_empty(1, 8))
        assert not kernel.takes(x.double())
    gpu = torch.device("cuda")
    assert "float64" in str(kernel.why_not(gpu, torch.float64, 8))
    assert "at most 8192" in str(kernel.why_not(gpu, torch.float32, 8193))
    assert "on cpu" in str(kernel.why_not(torch.device("cpu"), torch.float32, 8))
    with pytest.raises(ConfigError, match="at most 8192 entries, not 8193; take auto"):
        Kernel("triton", ("cuda",)).why_not(gpu, torch.float32, 8193)


@pytest.mark.parametrize(("missing", "told"), [("gcc", "a C compiler"), ("header", "Python.h")])
def test_what_triton_needs_is_told(missing: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(choice.shutil, "which", lambda name: None if missing == "gcc" else name)
    monkeypatch.setattr(choice.sysconfig, "get_path", lambda name: "/nowhere")
    assert told in str(choice.why_absent.__wrapped__())


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = "the package triton is needed: pip install triton"
    monkeypatch.setattr(choice, "why_absent", lambda: absent)
    kernel = Kernel.of("auto")
    with pytest.raises(ConfigError, match="pip install triton; or take auto"):
        set_kernel(tiny.make_stack(TopKConfig(k=4)), "triton")
    monkeypatch.setattr(choice, "why_absent", None)  # a pass, which may be compiled, does not search for it again
    assert kernel.why_not(torch.device("cuda"), torch.float32, 8) == absent


def test_wrong_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "why_absent", lambda: None)
    with pytest.raises(ConfigError, match="'cuda' is not one of auto, triton, torch"):
        set_kernel(tiny.make_stack(TopKConfig(k=4)), "cuda")  # type: ignore[arg-type]
    model = tiny.make_stack(TopKConfig(activation="batchtopk", k=4))
    with pytest.raises(ConfigError, match="there is none for batchtopk"):
        set_kernel(model, "triton")
    set_kernel(model, "torch")
    assert {a.kernel.choice for a in activations_of(model)} == {"torch"}
