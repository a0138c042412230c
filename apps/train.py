"""Train a TopK language model or its dense twin, or resume a run.

    python -m apps.train config=configs/quickstart/topk.yaml
    torchrun --nproc-per-node 8 -m apps.train config=configs/paper/topk_d1024_l8.yaml

The same program on a CPU, one GPU or many. Starting it again with the same dump_dir resumes; `topk=null` trains the
dense twin. Exit codes: 0 done, 2 wrong configuration, 3 data, 4 loss or gradient not finite, 5 checkpoint, 8 storage,
9 another rank was lost, 75 stopped by SIGTERM, SIGUSR1 or SIGUSR2 after saving.
"""

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.train config=FILE")

from apps._program import run
from topklm.train import TrainConfig, train

if __name__ == "__main__":
    run(train, TrainConfig, "train", __doc__)
