#!/bin/bash
# Every benchmark that a GPU should see, in about four minutes; each step is cut off after its time, and all lines that
# hold a result are repeated at the end.
#
#     bash benchmarks/gpu.sh [FOLDER FOR LOGS]
#
# Needs torch with CUDA, Triton and transformers; the extra `cuda` (liger-kernel) is used where it is installed.
set -u
cd "$(dirname "$0")/.."
logs=${1:-$(mktemp -d)}
mkdir -p "$logs"
export PYTHONUNBUFFERED=1 PYTHONPATH=.:${PYTHONPATH:-} PYTHONWARNINGS=ignore
step() {  # NAME SECONDS COMMAND..
    echo "== $1"
    local begin=$SECONDS
    timeout "$2" "${@:3}" 2>&1 | tee "$logs/$1.log"
    echo "   exit code ${PIPESTATUS[0]}, $((SECONDS - begin)) s"
}
large=(--shapes 131072x1024x16 --head-width 32 --context 1024 --rows 16 --precisions bf16 --rounds 4 --steps 4)
small=(--shapes 8192x512x8 --head-width 64 --context 512 --rows 64 --precisions bf16 --rounds 5 --steps 4)
step large 100 python3 benchmarks/training.py "${large[@]}" --contenders "ours, frozen table" ours "bare loop, compiled"
step small 60 python3 benchmarks/training.py "${small[@]}" --contenders "ours, frozen table" ours "bare loop, compiled"
step generation 60 python3 benchmarks/generation.py
step loss 40 python3 benchmarks/loss.py --vocab 131072 --width 1024 --tokens 16384 --precisions bf16
step tests 60 python3 -m pytest -q -p no:cacheprovider tests/test_loss.py tests/test_decoding_step.py -k "gpu or library or graph or compiled"
echo "== results"
grep -hE "^(V |  )[^ ].*(tokens|/s|ms|GiB|x;)" "$logs"/*.log
