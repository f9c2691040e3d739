#!/usr/bin/env bash
# The whole method in minutes, on a laptop:
#     bash scripts/quickstart.sh                  on synthetic skin lesions
#     bash scripts/quickstart.sh DATA_FOLDER      on a data set of the papers (docs/data.md)
# In the environment: ARCH, IMAGE_SIZE, EPOCHS, K_SHOT and SEED; OUT, the output folder; PYTHON.
set -euo pipefail
DATA=${1:+$(realpath "$1")}
OUT=${OUT:+$(realpath -m "$OUT")}
cd "$(dirname "$0")/.."
. scripts/environment.sh requirements.txt
OUT=${OUT:-runs/quickstart-$(date +%Y%m%d-%H%M%S)}

run() { echo; echo "\$ $*"; "$@"; }

if [ -z "${DATA:-}" ]; then
    DATA=$OUT/data
    run python -m datasets.synthetic "$DATA" --size 64
fi
run python main_moco.py "$DATA" --model-path "$OUT/pretrained" --arch "${ARCH:-conv4}" \
    --image-size "${IMAGE_SIZE:-48}" --epochs "${EPOCHS:-20}" --knn-every 5 --seed "${SEED:-0}"
run python generate_pseudo.py --datadir "$DATA" --resume "$OUT/pretrained" \
    --savedir "$OUT/labels" --k-shot "${K_SHOT:-5}" --seed "${SEED:-0}"
run python main_distill.py "$DATA" --savedir "$OUT/labels" --model-path "$OUT/student" \
    --seed "${SEED:-0}"
echo; echo "Baseline: logistic regression on the encoder of stage (a)"
run python test.py "$DATA" --resume "$OUT/pretrained" --savedir "$OUT/labels"
echo; echo "Student of stage (d)"
run python test.py "$DATA" --resume "$OUT/student" --load-cla
