#!/usr/bin/env bash
# Submit the four stages as Slurm jobs; each starts when the previous one has succeeded:
#     bash scripts/slurm/chain.sh DATA OUT --partition=gpu --gres=gpu:1 --time=24:00:00
# Options after OUT go to sbatch, for each job; PRETRAIN, LABEL, DISTILL and TEST in the environment
# are flags of the stages. Rerun the same command to resume.
set -euo pipefail
fail() { echo "chain.sh: $*" >&2; exit 2; }
[ $# -ge 2 ] && [ "${1#-}${2#-}" = "$1$2" ] || fail "usage: bash scripts/slurm/chain.sh DATA OUT" \
    "[SBATCH_OPTION ...]; PRETRAIN, LABEL, DISTILL and TEST in the environment are flags of the stages"
[ -z "${SLURM_JOB_ID:-}" ] || [ -e "$0" ] || fail "run this with bash, not with sbatch"
[ -e "$1" ] || fail "the data folder does not exist: $1"
DATA=$(realpath "$1")
OUT=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/../.."
mkdir -p "$OUT"
OPTIONS=() THEIRS= AFTER=
for option; do
    case $option in
    --dependency=*) THEIRS=,${option#*=} ;; # sbatch would take the last --dependency alone
    -d | --dependency) fail "write --dependency=LIST" ;;
    *) OPTIONS+=("$option") ;;
    esac
done

submit() { # STAGE FLAGS ARGUMENT...; FLAGS as typed, with quotes
    local flags
    eval "flags=($2)"
    # Singleton: if the chain is submitted twice, jobs of the same name run one at a time.
    AFTER=$(sbatch --parsable ${OPTIONS[@]+"${OPTIONS[@]}"} --job-name="$1 $OUT" --output="$OUT/$1.log" \
        --dependency="${AFTER:+afterok:$AFTER,}singleton$THEIRS" "scripts/slurm/$1.sbatch" "${@:3}" \
        ${flags[@]+"${flags[@]}"})
    AFTER=${AFTER%%;*} # 123;cluster
    echo "$AFTER  $1  $OUT/$1.log"
}

submit pretrain "${PRETRAIN:-}" "$DATA" --model-path "$OUT/pretrained"
submit label "${LABEL:-}" --datadir "$DATA" --resume "$OUT/pretrained" --savedir "$OUT/labels"
submit distill "${DISTILL:-}" "$DATA" --savedir "$OUT/labels" --model-path "$OUT/student"
submit test "${TEST:-}" "$DATA" --resume "$OUT/student" --load-cla
