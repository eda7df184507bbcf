import contextlib
import errno
import fcntl

from etils import epath
import pytest

from bnonly_jax.config import UserError
from bnonly_jax.run import workdir as workdir_lib


def test_a_folder_is_one_processs(tmp_path):
  with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
    workdir_lib.claim(epath.Path(tmp_path), first, {})
    assert workdir_lib.is_locked(epath.Path(tmp_path))
    with pytest.raises(UserError, match='is in use by process '):
      workdir_lib.claim(epath.Path(tmp_path), second, {})
  assert not workdir_lib.is_locked(epath.Path(tmp_path))


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(epath.Path(tmp_path), lock, {'a.json': 1})
  assert workdir_lib.read_json(tmp_path / 'a.json') == 1
  assert not workdir_lib.is_locked(epath.Path(tmp_path))
