import pytest
from sweeps import finish
from sweeps import make
from sweeps import set_fields
from sweeps import tear

from bnonly_jax.config import UserError
from bnonly_jax.sweep import estimate as estimate_lib
from bnonly_jax.sweep import status

CALLS = (status.print_status, status.print_list, estimate_lib.estimate)


@pytest.mark.parametrize('call', CALLS, ids=lambda call: call.__name__)
def test_a_folder_that_is_not_there_is_told(tmp_path, call, capsys):
  with pytest.raises(UserError, match='there is no such folder; needed is that of a sweep'):
    call(make(), tmp_path / 'new')
  folder = finish(make(), tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  with pytest.raises(UserError, match='is the folder of one run'):
    call(make(), folder)
  assert capsys.readouterr().out == '' and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('call', CALLS[:2], ids=lambda call: call.__name__)
def test_what_a_state_does_not_tell_is_said(tmp_path, call, capsys):
  config = make()
  torn = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  other = finish(config, tmp_path, 'cifar_resnet32-batchnorm/seed0', 0.4)
  finish(config, tmp_path, 'cifar_resnet14-all/seed0', 0.9)
  tear(torn / 'result.json')
  set_fields(other / 'config.json', train='all')
  call(config, tmp_path)
  *table, fields, damage = capsys.readouterr().out.splitlines()
  assert fields == ("1 of 10 runs are of another experiment: train = 'all' there and 'batchnorm'"
                    ' here')
  assert damage.startswith(f'{torn}/result.json is damaged')
  if call is status.print_status:
    assert table[-1].split() == ['all', '1', '1', '1', '7', '0.03']  # done, failed, other, missing
  else:
    assert [line.split()[1] for line in table].count('failed') == 1
