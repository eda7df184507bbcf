"""Several processes that train together: starting, agreeing, and who writes.

Every process runs the same program on the same config. What touches the workdir is done by the main
process alone, inside `on_main`, which gives its result, or its error, to all.
"""

from collections.abc import Callable
from collections.abc import Mapping
import hashlib
import itertools
import json
import os
import secrets
import sys
import threading
import time
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from bnonly_jax.config import UserError

_PIECE = 1 << 16  # a message is filled up to a multiple of so many bytes, so that few sizes compile
_PEER_SECONDS = 30  # without a sign of life, after which a process counts as dead
_calls = itertools.count()  # of `preempted`, over all runs of a sweep


def cluster(environment: Mapping[str, str]) -> str:
  """Returns what JAX finds its cluster by, or '' where this process is the only one.

  These are the variables that jax.distributed.initialize reads (jax/_src/clusters).
  """
  if environment.get('OMPI_COMM_WORLD_SIZE', '1') != '1':
    return 'Open MPI'
  if environment.get('SLURM_JOB_ID') and environment.get('SLURM_STEP_NUM_TASKS', '1') != '1':
    return 'Slurm'
  if environment.get('KUBERNETES_SERVICE_HOST') and environment.get('JOB_COMPLETION_INDEX'):
    return 'Kubernetes'
  hosts = environment.get('TPU_WORKER_HOSTNAMES') or environment.get('TPU_PROCESS_ADDRESSES')
  return 'Cloud TPU' if hosts and ',' in hosts else ''


def initialize(environment: Mapping[str, str], coordinator: str = '', number: int = 0,
               index: int = -1, timeout: int = 300, force: bool = False) -> None:
  """Joins the other processes, if there are any; must come before anything else of JAX.

  Args:
    environment: the process's environment variables.
    coordinator: HOST:PORT of process 0; '' leaves all to the cluster, if this is one.
    number: of processes, with a coordinator.
    index: of this process, with a coordinator.
    timeout: seconds to wait for the others.
    force: let JAX look for a cluster whatever the environment says.

  If they do not come in time, the process ends with one line and code 1.

  Raises:
    UserError: the flags do not fit together, or JAX does not find its way.
  """
  found = cluster(environment)
  if coordinator and not (0 <= index < number):
    raise UserError(f'--coordinator={coordinator} with --processes={number} and --process={index};'
                    ' allowed are --processes=N and --process=I with I from 0 to N - 1. Give all'
                    ' three.')
  if not coordinator and (number or index >= 0):
    raise UserError(f'--processes={number} and --process={index} need --coordinator=HOST:PORT, the'
                    ' address of process 0. Give all three.')
  if not coordinator and not found and not force:
    return
  where = f'at {coordinator}' if coordinator else f'in the cluster ({found or "as JAX finds it"})'

  def give_up():
    print(f'error: the processes {where} did not come together within {timeout} s. Look whether all'
          ' were started, with the same coordinator; --start_timeout gives them more time.',
          file=sys.stderr, flush=True)
    os._exit(1)

  # JAX's runtime would end the process by a signal, and say nothing that helps.
  timer = threading.Timer(timeout, give_up)
  timer.daemon = True
  timer.start()
  explicit = (coordinator, number, index) if coordinator else ()
  try:
    jax.distributed.initialize(*explicit, initialization_timeout=timeout + 60,
                               heartbeat_timeout_seconds=_PEER_SECONDS)
  except (ValueError, RuntimeError) as error:
    raise UserError(f'the processes {where} cannot be joined ({error}). Say where they are with'
                    ' --coordinator=HOST:PORT --processes=N --process=I. To find them itself JAX'
                    ' needs mpi4py with Open MPI 5, and the package kubernetes on Kubernetes.'
                    ) from error
  finally:
    timer.cancel()


def is_main() -> bool:
  """Whether this process writes the workdir and speaks."""
  return jax.process_index() == 0


def on_main(call: Callable[[], Any]) -> Any:
  """Calls a function in the main process and returns its result, as JSON holds it, in all.

  Raises:
    UserError: the call raised it; then it is raised in all processes.
  """
  if jax.process_count() == 1:
    return call()
  message = None
  if is_main():
    try:
      message = {'result': call()}
    except Exception as error:
      message = {'error': str(error) if isinstance(error, UserError) else
                 f'process 0 failed: {type(error).__name__}: {error}'}
  message = json.loads(_from_main(json.dumps(message).encode()))
  if 'error' in message:
    raise UserError(message['error'])
  return message['result']


def _from_main(message):
  """Returns the bytes that the main process has, in all: how many there are comes first."""
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  buffer = np.zeros(-(-length // _PIECE) * _PIECE, np.uint8)
  if is_main():
    buffer[:length] = np.frombuffer(message, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()[:length]


def require_equal(what: str, value: Any) -> None:
  """Checks that all processes have an equal value.

  Raises:
    UserError: one has another.
  """
  if jax.process_count() == 1:
    return
  digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
  all_of_them = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
  differ = [i for i, other in enumerate(all_of_them) if np.any(other != all_of_them[0])]
  if differ:
    raise UserError(f'process {differ[0]} has another {what} than process 0. Start all of them with'
                    ' the same command.')


def require_shared(folder: epath.Path) -> None:
  """Checks that all processes see one and the same folder.

  Raises:
    UserError: one does not.
  """
  if jax.process_count() == 1:
    return
  name = on_main(lambda: f'.seen-{secrets.token_hex(8)}')
  if is_main():
    (folder / name).touch()
  multihost_utils.sync_global_devices('token written')
  deadline = time.monotonic() + 5  # a network file system may take its time
  while not (folder / name).exists() and time.monotonic() < deadline:
    time.sleep(0.1)
  seen = multihost_utils.process_allgather(np.array((folder / name).exists()))
  if is_main():
    (folder / name).unlink()
  if not seen.all():
    raise UserError(f'--workdir={folder} is not one folder for all processes: process'
                    f' {int(np.argmin(seen))} does not see what process 0 writes there. Choose a'
                    ' --workdir on a file system that all share, or a bucket.')


def preempted() -> bool:
  """Whether a process was told to end (SIGTERM); the same answer in all at one call.

  All must call it equally often: JAX has the processes stop at the number that follows the largest
  that any of them has given, and one that leaves it out never stops.
  """
  return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls))
