#!/usr/bin/env bash
# Trains with several processes on this machine, each with simulated devices: the code path of a pod.
#
#   [DEVICES=2] [PYTHON=python] launch/local.sh PROCESSES --config=... --workdir=... [FLAGS...]
#
# DEVICES are simulated per process. PROGRAM is bnonly_jax.main unless set. The exit code is the first that is not 0, if any.
set -uo pipefail
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: the first argument is ${1:-missing}; it is to be the number of processes." >&2
  sed -n '3,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
processes=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-2}"

pids=()
for ((i = 0; i < processes; i++)); do
  "$python" -m "${PROGRAM:-bnonly_jax.main}" --coordinator="localhost:$port" --processes="$processes" \
    --process="$i" "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2> /dev/null' TERM
trap 'kill -INT "${pids[@]}" 2> /dev/null' INT

code=0
for pid in "${pids[@]}"; do
  # A signal ends wait, not the process waited for.
  while wait "$pid"; own=$?; kill -0 "$pid" 2> /dev/null; do :; done
  if ((code == 0)); then code=$own; fi
done
exit "$code"
