"""Tests of the kernels in Triton's interpreter, which a process has from its start or not at all.

`tests/unit/sparsity/test_kernels.py` runs them; by hand:

    TRITON_INTERPRET=1 python -m pytest tests/unit/sparsity/interpreted
"""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.unit.sparsity.interpreted import interpreter

    interpreter.repair()
else:
    collect_ignore_glob = ["test_*.py"]
