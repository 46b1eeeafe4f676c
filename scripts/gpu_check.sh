#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the kernels, runs the tests on the GPU, some of them under
# compute-sanitizer, and the benchmarks. Needs no network, and under ten minutes on an H200.
#
#     scripts/gpu_check.sh [FOLDER]        # gpu_check by default
#
# Leaves there log.txt, the benchmarks' rows as ops_cuda.csv, models_cuda.csv and steps_cuda.csv, and
# bar charts of the models' stages. A step that fails or outlasts its time does not keep the others
# from running; the table at the end tells.
# PYTHON names another Python than python3; its torch must be a build with CUDA.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
out=${1:-gpu_check}
mkdir -p "$out"
log=$out/log.txt
: >"$log"
export FASTINST_KERNELS=1 FASTINST_CUDA=1 PYTHONUNBUFFERED=1
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin # compute-sanitizer

deadline=590
table=()
failed=0

# step NAME SECONDS COMMAND...
step() {
  local name=$1 seconds=$2 start=$SECONDS code result
  shift 2
  # At least a second: timeout takes 0 for no limit.
  ((seconds = seconds < deadline - SECONDS ? seconds : deadline - SECONDS))
  ((seconds = seconds > 1 ? seconds : 1))
  printf '\n=== %s: %s\n' "$name" "$*" | tee -a "$log"
  timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee -a "$log" | tail -n 25
  code=${PIPESTATUS[0]}
  case $code in
    0) result=passed ;;
    124 | 137) result="outlasted $seconds s" ;;
    *) result="failed ($code)" ;;
  esac
  ((code == 0)) || failed=1
  table+=("$(printf '%-12s %4d s  %s' "$name" $((SECONDS - start)) "$result")")
}

on_gpu() { step "$1" "$2" env FASTINST_DEVICE=cuda "${@:3}"; }
pytest=("$python" -m pytest -q --tb=short -p no:cacheprovider)
ops=(deform_conv2d masked_cross_attention attention_to_queries attention_mask select_queries
  read_out_masks sample_masks uncertain_points point_losses)
op_tests=("${ops[@]/#/tests/test_}")

step machine 30 nvidia-smi
# What the package imports; a machine without network may lack some.
step imports 30 "$python" -c "import torch, numpy, scipy, pycocotools, PIL, tqdm, pytest, hypothesis
assert torch.cuda.is_available(), 'torch sees no GPU'"
# For this machine's GPU, which setup.py asks for.
step build 150 "$python" setup.py -q build_ext --inplace
step doctor 30 "$python" -m fastinst.doctor

# The masks of read-out rest on it.
step rounding 30 "${pytest[@]}" \
  tests/test_read_out_masks_cuda.py::test_numpy_has_the_order_of_pytorch
on_gpu kernels 40 "${pytest[@]}" tests/test_kernels.py tests/test_gpu.py
# Their emulated twins have run elsewhere. The emulator wants tensors on the CPU: no on_gpu here.
step hosts 90 "${pytest[@]}" tests/test_*_cuda.py -k "not emulat"
on_gpu operators 100 "${pytest[@]}" "${op_tests[@]/%/.py}"
baseline=(tests/test_mask2former.py::test_{predictions,losses_and_gradients})
on_gpu parity 60 "${pytest[@]}" tests/test_parity.py "${baseline[@]}"
step engine 60 "${pytest[@]}" tests/test_engine_gpu.py tests/test_graphs.py tests/test_predictor*.py

# Against the release's way, in one run: the table of what must be reached.
models() { step "$1" "$2" "$python" benchmark.py --device cuda --csv "$out/models_cuda.csv" "${@:3}"; }
engines=(engine-float32 engine-float16)
models d3 70 fastinst-d3-r50-640 --compare --seconds 2 --plot "$out/d3.png"
models d1 40 fastinst-d1-r50-576 --variants release "${engines[@]}" --seconds 2 --plot "$out/d1.png"
models d3-dcn 50 fastinst-d3-r50d-dcn-640 --variants release "${engines[@]}" --seconds 2 \
  --plot "$out/d3-dcn.png"
models paper 50 --paper-table --seconds 1
models deploy 40 fastinst-d3-r50-640 --protocol deploy --batch-size 1 16 --seconds 2

for dtype in float32 float16; do
  step "ops-$dtype" 75 "$python" benchmark.py --ops --device cuda --dtype $dtype \
    --seconds 0.3 --csv "$out/ops_cuda.csv"
done

on_gpu step-counts 40 "${pytest[@]}" tests/test_step_timing.py
step training 60 "$python" -m fastinst.step_timing --device cuda --csv "$out/steps_cuda.csv"

# Every kernel in every dtype, on small tensors. Without the caching allocator, memcheck sees where
# each of these ends.
few="the_gpu_runs or as_good_as_plain or exact_sums or left_out or widths or every_dtype"
for tool in memcheck racecheck synccheck; do
  step $tool 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool $tool --error-exitcode 9 --target-processes all \
    "${pytest[@]}" tests/test_kernels.py tests/test_*_cuda.py -k "not emulat and ($few)"
done

{
  echo
  printf '%s\n' "${table[@]}"
} | tee -a "$log"
exit $failed
