import importlib.util
import json

import conftest
import jax
import pytest

from bnonly_jax.benchmark import elsewhere
from bnonly_jax.benchmark import program
from bnonly_jax.benchmark import targets
from bnonly_jax.config import UserError


def config(**fields):
  found = conftest.data_config('none')
  found.update(network='cifar_resnet8', batch_size=512, compute_dtype='bfloat16')
  found.update(fields)
  return found


def pretend(monkeypatch, kind='CPU', memory=2**30):
  """Lets two devices of this machine stand for what is not there."""
  target = targets.Target('some', tuple(jax.devices()[:2]), kind, memory, 'a test', 1e9, 'a test',
                          {'jax': '1'})
  monkeypatch.setattr(targets, 'find', lambda name: target)
  return target


@pytest.mark.slow
def test_the_steps_beside_those_of_all(monkeypatch, capsys):
  pretend(monkeypatch)
  result = elsewhere.measure(config(), 'all', 'some')
  json.dumps(result)
  assert list(result['estimates']) == ['batchnorm', 'all', 'evaluation']
  part, whole, evaluation = result['estimates'].values()
  assert part['temporary'] < whole['temporary'] and part['all_reduced'] < whole['all_reduced']
  assert result['ratio']['temporary'] == part['temporary'] / whole['temporary'] < 1
  for row in (part, whole, evaluation):
    assert row['fits'] and row['peak'] > row['temporary'] > 0 and row['compile_seconds'] > 0
    assert row['kernels'] == sum(stage['kernels'] for stage in row['stages'].values()) > 0
  # What of the other data set, 50,000 and 10,000 images with labels, and of the optimizer's 336
  # scales, as many biases and a counter, lies there besides.
  assert part['beside'] == 10_000 * 3076
  assert evaluation['beside'] == 50_000 * 3076 + 4 * (2 * 336 + 1)
  printed = capsys.readouterr().out
  assert "the compiler's estimate (jax 1); nothing was run or measured" in printed
  assert 'memory of a device: 1.0 GiB (a test)' in printed


@pytest.mark.parametrize('memory, said', [(2**20, 'no'), (None, 'unknown')])
def test_whether_the_steps_fit(monkeypatch, capsys, memory, said):
  pretend(monkeypatch, memory=memory)
  elsewhere.print_fit(config(), 'some')
  assert f'fits {said} {said}' in ' '.join(capsys.readouterr().out.split())


def test_a_program_that_its_compiler_refuses_does_not_fit(monkeypatch):
  class Refused:
    def compile(self):
      raise jax.errors.JaxRuntimeError(
          'RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 20G of 15.75G hbm.\nmore')

  target = pretend(monkeypatch)
  row = elsewhere.estimate(Refused, target)
  assert row['told'].endswith('Used 20G of 15.75G hbm.') and not elsewhere.fits(row, target)


def test_cycles_are_those_of_a_step(monkeypatch):
  line = ('  %{0} = f32[8]{{0}} add(%p, %p), metadata={{op_name="{1}"}},'
          ' backend_config={{"estimated_cycles":"{2}"}}\n')
  text = ('ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n'
          + line.format('a', 'jit(f)/images/add', 600) + line.format('b', 'jit(f)/jvp(N)/add', 1000)
          + '}\n')
  runs = list(program.runs(program.parse(text)))
  row = elsewhere._cycles(runs, pretend(monkeypatch), steps=2, trains=True)
  assert row['cycles'] == 800 and row['milliseconds'] == pytest.approx(8e-4)
  assert row['stages']['images']['cycles'] == 300 and row['stages']['forward']['cycles'] == 500
  assert [each['cycles'] for each in row['largest']] == [500, 300]


@pytest.mark.parametrize('name, message', [
    ('v5e:2x2', r"needs libtpu, .* not installed here. Install it with pip install -e '.\[tpu\]'"),
    ('h100', r"needs jax_cuda12_plugin or .* pip install -e '.\[cuda12\]'"),
    ('a100', "'a100'; allowed is h100, or a TPU slice GENERATION:SHAPE")])
def test_what_is_told_without_the_packages(monkeypatch, name, message):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=message) as told:
    targets.find(name)
  assert '\n' not in str(told.value)


def test_a_slice_that_libtpu_does_not_know_is_told_with_its_reason(monkeypatch):
  def refuse(**_):
    raise RuntimeError('INVALID_ARGUMENT: Topology layout "v5e:2x3" is not divisible.\nmore')

  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
  monkeypatch.setattr(targets.topologies, 'get_topology_desc', refuse)
  with pytest.raises(UserError) as told:
    targets.find('v5e:2x3')
  assert 'does not know (INVALID_ARGUMENT: Topology layout "v5e:2x3" is not' in str(told.value)
  assert 'such as v5e:1x1' in str(told.value) and '\n' not in str(told.value)


@pytest.mark.parametrize('fields, against, message', [
    ({'batch_size': 511}, 'all', 'batch_size is 511; allowed is a multiple of the 2 devices'),
    ({}, 'torch', '--against is torch.* Set --against=flax'),
    ({}, 'foo', "^--against=foo: 'foo' is no group"),
    ({'norm': 'group'}, 'flax', 'allowed is batch with --against=flax')])
def test_what_cannot_be_compiled_is_told_before_anything_is(monkeypatch, fields, against, message):
  pretend(monkeypatch)
  monkeypatch.setattr(elsewhere, 'estimate', None)
  with pytest.raises(UserError, match=message):
    elsewhere.measure(config(**fields), against, 'some')


def compiled(name, module):
  """The training step of ResNet-8, 128 images a device, compiled for a target and read."""
  if not importlib.util.find_spec(module):
    pytest.skip(f'{module} is not installed here: nothing is compiled for {name}')
  target = targets.find(name)
  run = elsewhere.build(config(batch_size=128 * len(target.devices)), target)
  return target, program.parse(elsewhere.lower_training(run).compile().as_text())


@pytest.mark.slow
def test_on_a_tpu_no_operation_touches_the_whole_data_set():
  target, parsed = compiled('v5e:2x2', 'libtpu')
  whole = 50_000 * 3072
  large = [(name, operation.name, operation.shape)
           for name, operations in parsed.computations.items() for operation in operations
           if operation.opcode not in program.FREE
           and program.size(program.largest(operation.shape)) >= whole]
  assert not large
  entry = parsed.computations[parsed.entry]
  assert any(program.size(operation.shape) >= whole for operation in entry)  # as a parameter
  row = elsewhere._cycles(list(program.runs(parsed)), target, 1, True)
  assert all(row['stages'][stage]['cycles'] > 0
             for stage in ('images', 'forward', 'backward', 'optimizer'))


@pytest.mark.slow
def test_on_a_gpu_no_activations_are_transposed():
  _, parsed = compiled('h100', 'jax_cuda12_plugin')
  smallest = 2 * 128 * 8 * 8 * 64  # bytes of the last stage's, and more than any kernel has
  turned = [(name, operation.name, operation.shape)
            for name, operations in parsed.computations.items() for operation in operations
            if operation.opcode in ('transpose', 'copy')
            and program.size(operation.shape) >= smallest]
  assert not turned
