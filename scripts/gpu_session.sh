#!/usr/bin/env bash
# Test and measure on a GPU, in two calls of some minutes each (docs/gpu.md):
#     bash scripts/gpu_session.sh 1            versions, tests/gpu, speed, a trace
#     bash scripts/gpu_session.sh 2            a column of Table 5, ResNet-12's stage (a), scores
#     bash scripts/gpu_session.sh --list       the steps
# Each step has a time limit; if one fails, the others still run. STATE keeps finished steps, which
# are skipped when rerun; OUT gets at most eight files of 16 MB. In the environment: DATA (Pap-smear,
# for call 2), OUT, STATE, PYTHON, DEVICE, BUDGET (total seconds), GIT_COMMIT (if this is a copy
# without .git), TINY=1 (small sizes, to test this script).
set -u
cd "$(dirname "$0")/.."

TINY=${TINY:-}
DEVICE=${DEVICE:-cuda}
OUT=$(realpath -m "${OUT:-runs/gpu${TINY:+-tiny}}")
STATE=$(realpath -m "${STATE:-runs/gpu-state${TINY:+-tiny}}")
DATA=$(realpath -m "${DATA:-data/papsmear}")
export PYTHON=${PYTHON:-python3} TINY DEVICE OUT STATE DATA
export PYTHONUNBUFFERED=1 XDG_CACHE_HOME=$STATE/cache
export PYTHONPATH=$PWD:$STATE/site${PYTHONPATH:+:$PYTHONPATH}
MAX_BYTES=16000000 # of a file in OUT

# The steps of each call as step:seconds; those that compile, which takes long, come last.
STEPS_1="versions:40 tests:120 speed-a-16:45 speed-d-16:45 speed-encode-16:45 speed-a-64:45 trace:40
    compile-a-16:75 compile-d-16:75 tests-compiled:120 compile-encode-16:60"
STEPS_2="table:310 resnet12:90 scores:50 encoder:30"
BUDGET_1=235 BUDGET_2=475
if [ "$TINY" ]; then # one step of each kind, limited by the budget only
    STEPS_1="versions:900 tests:900 speed-a-16:900 trace:900 compile-d-16:900"
    STEPS_2="table:900 resnet12:900 scores:900 encoder:900"
    BUDGET_1=400 BUDGET_2=400
fi
RESERVE=75 # seconds of call 2 that resnet12 leaves for the steps after it

speed() { # TASK BATCH MODE...: time one task, the modes in alternating turns
    local task=$1 batch=$2
    shift 2
    local size="--arch resnet12 --image-size 224 --turns 7 --steps 5"
    [ "$batch" = 64 ] && size="--arch resnet12 --image-size 224 --turns 7 --steps 2"
    # Compiling for the CPU would take longer than everything else.
    [ "$TINY" ] && size="--arch conv4 --image-size 32 --turns 2 --steps 1" && batch=8 &&
        [ "$DEVICE" = cpu ] && [ "$2" = compile ] && set -- default
    # shellcheck disable=SC2086
    exec "$PYTHON" -m benchmarks.throughput --tasks "$task" --modes "$@" -b "$batch" $size \
        --device "$DEVICE" -j 0 --out "$STATE/$STEP.json"
}

run_step() { # NAME [FLAG...]: in a separate process, ended by its time limit
    case $1 in
    versions) exec "$PYTHON" -m benchmarks.gpu versions "$STATE/versions.json" \
        --device "$DEVICE" ${TINY:+--tiny} ;;
    tests | tests-compiled) # separate steps, as compiling takes long
        local parallel=() which="not compiled"
        [ "$1" = tests ] || which=compiled
        [ "$DEVICE" = cuda ] && "$PYTHON" -c "import xdist" 2> /dev/null && parallel=(-n 6 --dist worksteal)
        exec "$PYTHON" -m pytest tests/gpu -k "$which" -v -ra --durations=10 \
            -p no:cacheprovider "${parallel[@]}" ;;
    speed-*-*) IFS=- read -r _ task batch <<< "$1"; speed "$task" "$batch" plain default ;;
    compile-*-*) IFS=- read -r _ task batch <<< "$1"; speed "$task" "$batch" default compile ;;
    trace) exec "$PYTHON" -m benchmarks.gpu trace "$STATE/trace" --device "$DEVICE" \
        ${TINY:+--tiny} ;;
    table)
        local size="--arch conv4_released --image-size 224 --epochs 200 --jobs 6 -j 2"
        local methods="moco_v1 hybrid hybrid_ddl hybrid_dic"
        [ "$TINY" ] && size="--arch conv4 --image-size 32 --epochs 2 --jobs 2 -j 0 --seeds 0" &&
            methods="moco_v1 hybrid"
        # shellcheck disable=SC2086
        exec "$PYTHON" -m reproduction --table 5 --shots 5 --methods $methods $size \
            --data "$DATA" --out "$STATE/tables" --device "$DEVICE" "${@:2}" ;;
    resnet12)
        local size="--arch resnet12 --image-size 224 --epochs 200 --knn-every 20 -j 8"
        [ "$TINY" ] && size="--arch conv4 --image-size 32 --epochs 2 --knn-every 1 -j 0"
        # shellcheck disable=SC2086
        exec "$PYTHON" main_moco.py "$DATA" --model-path "$STATE/resnet12" $size \
            --device "$DEVICE" ;;
    scores)
        local failed=0 seeds="0 1 2" all="1 3 5" seed shots pids pid
        [ "$TINY" ] && seeds=0 all=5
        for seed in $seeds; do
            pids=()
            for shots in $all; do
                "$PYTHON" test.py "$DATA" --resume "$STATE/resnet12" --k-shot "$shots" -j 2 \
                    --seed "$seed" --device "$DEVICE" --output "$STATE/scores" --overwrite &
                pids+=($!)
            done
            for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
        done
        exit $failed ;;
    encoder)
        exec "$PYTHON" scripts/export.py "$STATE/resnet12" "$STATE/encoder.pt" --overwrite ;;
    *) echo "unknown step $1"; exit 2 ;;
    esac
}

packages() { # check that required packages can be imported, installing wheels in .whl if necessary
    local missing
    missing=$("$PYTHON" -c "import importlib.util as u
print(*[m for m in 'torch torchvision numpy sklearn PIL tqdm pytest'.split() if not u.find_spec(m)])")
    [ -z "$missing" ] && return
    if compgen -G ".whl/*.whl" > /dev/null && [ ! -d "$STATE/site" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$STATE/site" \
            .whl/*.whl && packages
        return
    fi
    echo "not installed: $missing; put their wheels (sklearn: scikit-learn, scipy, joblib," \
        "threadpoolctl; PIL: pillow) into .whl"
    [ "$missing" = pytest ]
}

pack() { # ARCHIVE FOLDER FIND-TEST...: atomically, to leave no broken archive
    local archive=$1 folder=$2
    shift 2
    (cd "$folder" && find . -type f "$@" -print0) |
        tar -C "$folder" --null -T - -czf "$archive.part" && mv "$archive.part" "$archive"
}

deliver() { # copy the results so far to OUT
    cp "$STATE/summary-$CALL.txt" "$OUT"
    pack "$OUT/logs-$CALL.tar.gz" "$STATE" -path "./logs/*"
    if [ "$CALL" = 1 ]; then
        [ -f "$STATE/versions.json" ] && cp "$STATE/versions.json" "$OUT"
        [ -f "$STATE/logs/tests.log" ] && cp "$STATE/logs/tests.log" "$OUT"
        cp "$STATE"/trace/trace.* "$OUT" 2> /dev/null
        local file comma=
        { # the results of each step by its name
            echo "{"
            for file in "$STATE"/speed-*.json "$STATE"/compile-*.json; do
                [ -f "$file" ] || continue
                echo "$comma\"$(basename "$file" .json)\":"
                cat "$file"
                comma=,
            done
            echo "}"
        } > "$OUT/throughput.json"
    else
        cp "$STATE"/tables/*/table5.md "$OUT" 2> /dev/null
        pack "$OUT/results.tar.gz" "$STATE" "(" -path "./tables/*" -o -path "./scores/*" -o \
            -path "./resnet12/*" ")" -size -4000k "(" -name "*.json" -o -name "*.jsonl" -o \
            -name "*.csv" -o -name "*.md" -o -name "*.log" ")"
        if [ -f "$STATE/encoder.pt" ]; then
            rm -f "$OUT"/encoder.pt.*
            split -b "$MAX_BYTES" "$STATE/encoder.pt" "$OUT/encoder.pt."
        fi
    fi
    find "$OUT" -type f -size +"$MAX_BYTES"c -printf "too large: %f\n"
}

stop() { # also ends the running step; a training run saves its state
    say "stopped by a signal"
    [ "$running" ] && kill -TERM "$running" && wait "$running"
    deliver
    exit 143
}

say() { echo "$(date +%T) $*" | tee -a "$STATE/summary-$CALL.txt"; }

step() { # NAME SECONDS
    local name=$1 limit=$2 left=$((BUDGET - SECONDS)) start=$SECONDS code
    [ -f "$STATE/$name.done" ] && say "$name: already done" && return
    [ "$name" = resnet12 ] && left=$((left - RESERVE)) && rm -f "$STATE"/{scores,encoder}.done
    [ "$left" -lt 10 ] && say "$name: no time left" && return
    [ "$limit" -gt "$left" ] && limit=$left
    timeout -s TERM -k 30 "$limit" bash scripts/gpu_session.sh --step "$name" \
        > "$STATE/logs/$name.log" 2>&1 &
    running=$!
    wait "$running"
    code=$?
    running=
    case $code in
    0) touch "$STATE/$name.done"; say "$name: done in $((SECONDS - start)) s" ;;
    124 | 137 | 143)
        say "$name: stopped at its limit of $limit s"
        [ "$name" != table ] || timeout -k 5 40 bash scripts/gpu_session.sh --step table \
            --only table >> "$STATE/logs/table.log" 2>&1 ;; # of the runs that are done
    *) say "$name: FAILED with exit code $code after $((SECONDS - start)) s" ;;
    esac
    tail -n "$([ $code = 0 ] && echo 12 || echo 25)" "$STATE/logs/$name.log" | cut -c 1-160 |
        sed "s/^/    /"
    deliver
}

case ${1:-} in
1 | 2) CALL=$1 ;;
--list)
    for name in $STEPS_1; do echo "1 ${name%:*} ${name#*:} s"; done
    for name in $STEPS_2; do echo "2 ${name%:*} ${name#*:} s"; done
    exit ;;
--step)
    export STEP=$2
    run_step "${@:2}"
    exit ;;
*) sed -n "2,8s/^# \?//p" "$0"; exit 2 ;;
esac

steps=STEPS_$CALL budget=BUDGET_$CALL running=
BUDGET=${BUDGET:-${!budget}}
mkdir -p "$OUT" "$STATE/logs"
if command -v flock > /dev/null; then # inherited by the steps, in case this is killed
    exec 9> "$STATE/lock"
    flock -w 60 9 ||
        { echo "a step of an earlier call is still running in $STATE"; exit 2; }
fi
trap stop TERM INT
packages || exit 2
[ "$CALL" = 1 ] || [ -d "$DATA" ] || { echo "no folder $DATA; set DATA"; exit 2; }
say "call $CALL on $DEVICE, limit $BUDGET s"
for name in ${!steps}; do step "${name%:*}" "${name#*:}"; done
say "ended after $SECONDS s"
deliver
ls -l "$OUT"
! grep -q FAILED <(tac "$STATE/summary-$CALL.txt" | sed "/ call $CALL on /q")
