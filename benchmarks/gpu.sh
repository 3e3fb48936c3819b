#!/usr/bin/env bash
# Everything that a GPU must show, within 8 minutes on one: benchmarks/gpu.sh [OUT] [--device cpu]
#
# Runs the parts of benchmarks/gpu.py one after another, each in a process and with a limit of its own, so that whatever
# is done before one hangs or fails is kept. OUT (default gpu-results) receives results.json, results.md, and the rows
# and log of each part. --device cpu runs the same on tiny shapes without a GPU, Triton's kernels by its interpreter.
# PYTHON names the interpreter (default python). The status is 1 if a kernel computes something wrong or a part fails.
set -u

out=gpu-results device=cuda given=0
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2-}; shift; [ $# -gt 0 ] && shift ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "gpu.sh: $1 is not an option; the only one is --device" >&2; exit 2 ;;
    *) [ $given = 1 ] && { echo "gpu.sh: there are two output directories, $out and $1; give one" >&2; exit 2; }
       out=$1 given=1; shift ;;
  esac
done
case $device in
  cpu | cuda) ;;
  *) echo "gpu.sh: --device is '$device'; it must be cuda or cpu" >&2; exit 2 ;;
esac

case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python}
# A checkout runs as it is, installed or not.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
[ "$device" = cpu ] && export TRITON_INTERPRET=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

"$python" -m benchmarks.gpu begin --out "$out" --device "$device" || exit $?
failed=0
for part in parity:90 gate:100 heads:30 models:140 training:50 rivals:60; do # seconds; what rivals need may be missing
  name=${part%:*} limit=${part#*:} start=$SECONDS
  timeout -k 5 "$limit" "$python" -m benchmarks.gpu "$name" --out "$out" --device "$device" \
    --seconds $((limit - 10)) >"$out/$name.log" 2>&1
  status=$?
  printf '%s %s %s %s\n' "$name" "$limit" $((SECONDS - start)) $status >>"$out/status.txt"
  case $status in
    0) echo "$name: done in $((SECONDS - start)) s" ;;
    124 | 137) echo "$name: stopped at its limit of $limit s; what was done before is kept" ;;
    *) failed=1; echo "$name: failed with status $status; the end of $out/$name.log:" >&2; tail -n 3 "$out/$name.log" >&2 ;;
  esac
done
"$python" -m benchmarks.gpu report --out "$out" --device "$device" || failed=1
exit $failed
