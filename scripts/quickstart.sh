#!/usr/bin/env bash
# From nothing to a TopK language model and its dense twin, trained on real text: no GPU, no hub, no account needed.
# Running it again goes on where it was stopped, and does nothing twice.
#   bash scripts/quickstart.sh [key=value ...]      the arguments go to both trainings, for example steps=500
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_topklm quickstart

# With a GPU the twins are larger; they have configurations and directories of their own.
size="" k=16
python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' && size="_gpu" k=64

echo "== corpus: presidential addresses, 1790 to today"
python -m apps.prepare config=configs/data/quickstart.yaml

for twin in dense topk; do
    echo "== training: $twin$size"
    python -m apps.train "config=configs/quickstart/$twin$size.yaml" "$@"
done

echo "== comparison"
python -m apps.report "runs=[runs/quickstart/dense$size,runs/quickstart/topk$size]" "out=report/quickstart$size"

echo "== evaluation: held-out text, and two tasks made of it"
python scripts/make_local_tasks.py data/quickstart data/quickstart/tasks
python -m apps.eval config=configs/eval/quickstart.yaml "ckpts=[runs/quickstart/dense$size,runs/quickstart/topk$size]"
python -m apps.eval compare "runs/quickstart/dense$size" "runs/quickstart/topk$size" "out=report/quickstart$size"

echo "== neurons: what each of them responds to, with the controls that a comparison needs"
collect() { python -m apps.collect config=configs/collect/quickstart.yaml "$@"; }
for twin in dense topk; do
    collect "ckpt=runs/quickstart/$twin$size"
    collect "ckpt=runs/quickstart/$twin$size" init=random
done
collect "ckpt=runs/quickstart/dense$size" "read_topk={k: $k}"

echo "== histories: the same over training, while annealing at the checkpoints' own alpha and at 0"
for twin in dense topk; do collect "ckpt=runs/quickstart/$twin$size" ckpts=all; done
collect "ckpt=runs/quickstart/topk$size" ckpts=all alpha=0

bundles=(runs/quickstart/{dense,topk}"$size"/bundles/*/meta.json)
bundles=("${bundles[@]%/meta.json}")
python -m apps.entropy "${bundles[@]/#/bundle=}"
python -m apps.report "bundles=[$(IFS=,; echo "${bundles[*]}")]" "out=report/quickstart$size/neurons"

cat <<EOT

Next:
  look at                report/quickstart$size/neurons/index.html, curves.png, comparison.md, evaluation.png and evaluation.md
  fewer entries kept     python -m apps.train config=configs/quickstart/topk$size.yaml topk.k=8 name=k8
  no annealing           python -m apps.train config=configs/quickstart/topk$size.yaml topk.anneal_ratio=0 name=sudden
  compare                python -m apps.report "runs=[runs/quickstart/dense$size,runs/quickstart/k8]" out=report/k8
  continue a text        python -m apps.generate ckpt=runs/quickstart/topk$size prompt="My fellow citizens, there is"
  names for neurons      docs/labels.md
  your own text          docs/prepare.md
  other evaluations      docs/evaluation.md
  the paper's models     configs/paper, docs/train.md
EOT
