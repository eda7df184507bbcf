#!/usr/bin/env bash
# Measures what a report of one GPU needs: steps beside training everything and beside PyTorch, and a
# trace. Writes a JSON file a row, the trace and summary.md into DIR, by default runs/benchmark.
#
#   [QUICK=1] [PYTHON=python] launch/benchmark_gpu.sh [DIR]
#
# The same call again measures only what is missing, and what failed. By estimate an H100 takes less
# than 30 minutes, with QUICK=1 (fewer rows) less than 9. Other rows: NETWORKS="resnet14 resnet110"
# (of CIFAR), DTYPES="float32 bfloat16", BATCH=128, BIG_BATCH=1024 (of resnet14 besides),
# IMAGENET=resnet50; empty for none of these.
set -uo pipefail
if (($# > 1)) || [[ ${1:-} == -* ]]; then
  echo "error: the arguments are $*; allowed is one folder to write into." >&2
  sed -n '5,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$(realpath -m "${1:-runs/benchmark}")
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python}
has() { "$python" -c "import sys, importlib.util as i; sys.exit(not i.find_spec('$1'))" 2> /dev/null; }
if ! has jax; then
  echo "error: $python is missing or has no jax; activate the environment, or set PYTHON" >&2
  exit 2
fi
mkdir -p "$out" || exit 2
if ((${QUICK:-0})); then
  networks=${NETWORKS-resnet14 resnet110} dtypes=${DTYPES-bfloat16}
  big_batch=${BIG_BATCH-} imagenet=${IMAGENET-} limit=120
else
  networks=${NETWORKS-resnet14 resnet32 resnet110 resnet866} dtypes=${DTYPES-float32 bfloat16}
  big_batch=${BIG_BATCH-1024} imagenet=${IMAGENET-resnet50} limit=240
fi
batch=${BATCH:-128}
failed=()

say() { echo "$(date +%H:%M:%S) $*"; }

# row NAME COMMAND...: runs it unless NAME.json is there; COMMAND writes that file last.
row() {
  local name=$1
  shift
  if [[ -s $out/$name.json ]]; then
    say "$name: there"
    return
  fi
  say "$name"
  if ! timeout 900 "$@" > "$out/$name.log" 2>&1; then
    failed+=("$name: $(tail -n 1 "$out/$name.log")")
    say "failed: ${failed[-1]}"
  fi
}

# step NAME CONFIG BATCH DTYPE [FLAGS...]: the rows against everything and against PyTorch.
step() {
  local name=$1 config=$2 size=$3 dtype=$4 against
  shift 4
  for against in all torch; do
    if [[ $against == torch && -n $no_torch ]]; then continue; fi
    row "${name}_b${size}_${dtype}_$against" "$python" -m bnonly_jax.benchmark step \
      --config="$config" --config.batch_size="$size" --config.compute_dtype="$dtype" \
      --against="$against" --out="$out/${name}_b${size}_${dtype}_$against.json" "$@"
  done
}

{
  date
  git log -1 --format='bnonly_jax %H' 2> /dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit \
    --format=csv 2> /dev/null
  "$python" -c 'import importlib.metadata as m, platform
print("python", platform.python_version())
print(*sorted({f"{d.name} {d.version}" for d in m.distributions()
               if d.name.startswith(("jax", "flax", "optax", "torch", "triton", "nvidia"))}), sep="\n")'
} > "$out/machine.txt"
say "writing into $out; what it runs on is in machine.txt"
no_torch=
if ! has torch; then
  no_torch="PyTorch is not installed: its rows are left out (pip install -e '.[torch]')"
  say "$no_torch"
fi

for dtype in $dtypes; do
  for network in $networks; do
    own=$limit
    # torch.compile unrolls the network: at this depth it is given a try, not the hour it may take.
    if [[ $network == resnet866 ]]; then own=90; fi
    step "$network" "configs/cifar10.py:$network" "$batch" "$dtype" --compile_limit="$own"
    if [[ $network == resnet14 && -n $big_batch ]]; then
      step "$network" "configs/cifar10.py:$network" "$big_batch" "$dtype" --compile_limit="$own"
    fi
  done
done
if [[ -n $imagenet ]]; then
  step "imagenet_$imagenet" "configs/imagenet.py:$imagenet" "$batch" bfloat16 \
    --compile_limit="$limit"
fi

# Many steps in one call, and several seeds in one program: of the first network, whose steps are the
# shortest.
first=${networks%% *}
if [[ -n $first ]]; then
  step "${first}_call25" "configs/cifar10.py:$first" "$batch" "${dtypes##* }" \
    --config.steps_per_call=25 --compile_limit="$limit"
  for replicates in 2 5; do
    no_torch=replicates step "${first}_replicates$replicates" "configs/cifar10.py:$first" "$batch" \
      "${dtypes##* }" --config.replicates="$replicates"
  done
fi

# The trace is of steps 10 to 60: so many epochs of the 1,437 scans as hold them, whole batches
# only. A batch larger than the data set has no trace.
traced=resnet110
if [[ " $networks " != *" $traced "* ]]; then traced=${networks%% *}; fi
if [[ -n $traced && ! -s $out/trace/result.json ]] && ((batch <= 1437)); then
  rm -rf "$out/trace"  # a run that goes on after a kill may be too short for a whole trace
  epochs=$((60 / (1437 / batch) + 1))
  row trace "$python" -m bnonly_jax.main --config="configs/digits.py:$traced" --profile \
    --workdir="$out/trace" --config.batch_size="$batch" --config.compute_dtype="${dtypes##* }" \
    --config.epochs="$epochs" --config.eval_every="$epochs" --config.checkpoint_every="$epochs"
fi

{
  "$python" -m bnonly_jax.benchmark table --rows="$out" 2>&1 || failed+=('summary.md')
  if [[ -n $no_torch ]]; then printf '\n%s\n' "$no_torch"; fi
  if ((${#failed[@]})); then
    printf '\nFailed (the whole output is in NAME.log):\n\n'
    printf -- '- %s\n' "${failed[@]}"
  fi
} > "$out/summary.md"
cat "$out/summary.md"
say "done: ${#failed[@]} rows failed; $out/summary.md"
((${#failed[@]} == 0))
