#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: queued resources, spot by default, logs of worker 0 only.
#
#   launch/tpu_pod.sh create            asks for the slice and waits until it is there
#   launch/tpu_pod.sh setup             copies this repository to all workers and installs it
#   launch/tpu_pod.sh run FLAGS...      trains (PROGRAM, bnonly_jax.main unless set) until result.json is
#                                       in the workdir; survives preemption; exit code 3: it diverged
#   launch/tpu_pod.sh status            the state of the request and of the slice
#   launch/tpu_pod.sh logs              the last lines of worker 0, and those to come
#   launch/tpu_pod.sh stop              SIGTERM to all workers: a checkpoint is written, run ends
#   launch/tpu_pod.sh delete            gives the slice back
#
# Environment: NAME and ZONE are needed. PROJECT (gcloud's own if not set), TYPE (v5litepod-8),
# VERSION (v2-alpha-tpuv5-lite), SPOT (1; 0: on demand), WAIT (30: seconds between two looks).
# --workdir of run is to be a bucket, gs://..., which all workers see.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

usage() {
  sed -n '3,16s/^# \{0,1\}//p' "$0"
}

action=${1:-}
[[ $action =~ ^(create|setup|run|status|logs|stop|delete)$ ]] || {
  usage >&2
  fail "the first argument is ${action:-missing}; it is to be one of the above"
}
shift
name=${NAME:-}
zone=${ZONE:-}
[[ $name && $zone ]] || fail 'NAME and ZONE are needed, as in NAME=bn ZONE=us-west4-a'
command -v gcloud > /dev/null || fail 'there is no gcloud; install the Google Cloud CLI'
type=${TYPE:-v5litepod-8}
version=${VERSION:-v2-alpha-tpuv5-lite}
wait=${WAIT:-30}
tpu=(gcloud compute tpus)
where=(--zone="$zone" --quiet)
if [[ ${PROJECT:-} ]]; then where+=(--project="$PROJECT"); fi

on() { # WORKER COMMAND
  "${tpu[@]}" tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

request_state() {
  "${tpu[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)' \
    2> /dev/null || echo NONE
}

create() {
  local state spot=()
  if [[ ${SPOT:-1} == 1 ]]; then spot=(--spot); fi
  state=$(request_state)
  # What was preempted stays in the list until it is deleted.
  if [[ $state =~ ^(SUSPENDED|SUSPENDING|FAILED)$ ]]; then
    "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force
    state=NONE
  fi
  if [[ $state == NONE ]]; then
    "${tpu[@]}" queued-resources create "$name" "${where[@]}" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$version" ${spot[@]+"${spot[@]}"}
  fi
  while state=$(request_state); [[ $state != ACTIVE ]]; do
    if [[ $state == FAILED ]]; then fail "the request failed; look with: $0 status"; fi
    echo "$(date +%T) $name is $state"
    sleep "$wait"
  done
}

setup() {
  local root archive
  root=$(cd "$(dirname "$0")/.." && pwd)
  archive=$(mktemp)
  git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  "${tpu[@]}" tpu-vm scp "$archive" "$name:bnonly.tar.gz" "${where[@]}" --worker=all
  rm "$archive"
  on all 'mkdir -p bnonly && tar -xzf bnonly.tar.gz -C bnonly && cd bnonly &&
    { command -v python3.11 || { sudo apt-get update -qq &&
      sudo apt-get install -y -qq python3.11 python3.11-venv; }; } > /dev/null &&
    python3.11 -m venv .venv && .venv/bin/pip install -q -e ".[tpu,bucket]"'
}

# What worker 0 finds in WORKDIR: whether there is a result (True or False), and all checkpoints.
look() {
  on 0 "cd bnonly && .venv/bin/python -c 'import sys; from etils import epath
found, saved = epath.Path(sys.argv[1]), \"checkpoints/*/commit_success.txt\"
print((found / \"result.json\").exists(),
      *sorted(str(path) for where in (\"\", \"*/*/\") for path in found.glob(where + saved)))' $1"
}

run() {
  local flag flags workdir='' said codes found before='' program=${PROGRAM:-bnonly_jax.main} tries=0
  for flag in "$@"; do
    if [[ $flag == --workdir=gs://* ]]; then printf -v workdir '%q' "${flag#--workdir=}"; fi
  done
  [[ $workdir ]] || fail "--workdir is to be a bucket, gs://..., in: $*"
  printf -v flags ' %q' "$@"
  while true; do
    # Each worker says how its process ended; one that is taken away meanwhile does not.
    said=$(on all "cd bnonly && rm -f stopped &&
      { .venv/bin/python -m $program --distributed$flags; echo \"exit \$?\"; } > run.log 2>&1
      if [ -e stopped ]; then echo stopped; else tail -n 1 run.log; fi") || said+=$'\nexit ssh'
    codes=$(grep -oE '(exit ([0-9]+|ssh)|stopped)$' <<< "$said" | sort -u | tr '\n' ' ') || true
    if [[ $codes == *stopped* ]]; then
      echo 'stopped; the same command goes on from the last checkpoint'
      exit 143
    fi
    sleep "$wait"  # a slice that is being taken away is ACTIVE for a while
    found=$(look "$workdir") || found=''
    if [[ $program == *sweep && $codes == 'exit 0 ' ||
      $found == True* && $codes =~ exit\ [03]\  && ! $codes =~ exit\ (1|2|ssh)\  ]]; then
      on 0 'tail -n 3 bnonly/run.log' || true
      if [[ $codes == *'exit 3 '* ]]; then exit 3; fi
      return
    fi
    if [[ $(request_state) != ACTIVE ]]; then
      echo "$(date +%T) $name was preempted; asking again"
      create
      setup
      continue
    fi
    if ! [[ $codes =~ ^(exit\ 0\ )?exit\ 143\ $ ]]; then
      on 0 'tail -n 30 bnonly/run.log' || true
      fail "the run ended with an error; its log is above, and bnonly/run.log on each worker"
    fi
    if [[ $found != "$before" ]]; then tries=0; fi
    before=$found
    if ((++tries == 3)); then
      on 0 'tail -n 30 bnonly/run.log' || true
      fail 'the run was told to end 3 times in a row and saved nothing new; its log is above'
    fi
    echo "$(date +%T) the run was told to end, and $name is there; starting again"
  done
}

case $action in
  create | setup) "$action" ;;
  run) run "$@" ;;
  status)
    echo "request: $(request_state)"
    "${tpu[@]}" tpu-vm describe "$name" "${where[@]}" --format='value(state,health)' || true
    ;;
  logs) on 0 'tail -n 100 -f bnonly/run.log' ;;
  # Anchored: the shell that waits for the run has these words in its command line too.
  stop) on all 'touch bnonly/stopped; pkill -TERM -f ^.venv/bin/python' ;;
  delete) "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force ;;
esac
