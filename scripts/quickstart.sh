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
topk="runs/quickstart/topk$size" dense="runs/quickstart/dense$size" report="report/quickstart$size"
collect() { python -m apps.collect config=configs/collect/quickstart.yaml "$@"; }
for run in "$dense" "$topk"; do
    collect "ckpt=$run"
    collect "ckpt=$run" init=random
done
collect "ckpt=$dense" "read_topk={k: $k}"

echo "== histories: the same over training, while annealing at the checkpoints' own alpha and at 0"
for run in "$dense" "$topk"; do collect "ckpt=$run" ckpts=all; done
collect "ckpt=$topk" ckpts=all alpha=0
bundles=("$dense"/bundles/*/meta.json "$topk"/bundles/*/meta.json)
bundles=("${bundles[@]%/meta.json}")
python -m apps.entropy "${bundles[@]/#/bundle=}"
python -m apps.trace match "$topk/bundles" "$dense/bundles" "out=$report/match"
python -m apps.trace persistence "$topk/bundles" "$dense/bundles" "out=$report/persistence"
python -m apps.trace "run=$topk" "token= United" "out=$report/trace"

echo "== causes: a neuron that looks like a concept is steered, beside random ones of its density"
plain=("$topk"/bundles/??????????) # with nothing appended to the step: the model as it is
bundle="${plain[-1]}"
python -m apps.label words "bundle=$bundle" "out=$report/words"
python -m apps.label candidates "bundle=$bundle" "out=$report/candidates"
python -m apps.steer dose config=configs/steer/quickstart.yaml "ckpt=$topk" "bundle=$bundle" "candidates=$report/candidates" "out=$report/steering"

echo "== the page on neurons"
results="$report/steering,$report/candidates,$report/match,$report/persistence,$report/trace"
python -m apps.report "bundles=[$(IFS=,; echo "${bundles[*]}")]" "results=[$results]" "out=$report/neurons"

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
