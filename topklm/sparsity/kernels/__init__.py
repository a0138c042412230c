"""TopK in one kernel: sum, selection, annealing and ReLU of a row, read once and written once.

`op` is the operation with its gradient, `choice` tells where it is taken; `search` and `rows` are the kernels, which
are imported with Triton when the operation first runs.
"""
