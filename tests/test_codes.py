"""Frozen kernels as codes: what they stand for, how many bytes they take, training with them."""

import conftest
from conftest import train_and_die
import jax
import ml_dtypes
import numpy as np
import pytest
from tiny import tiny_config

import bnonly_jax
from bnonly_jax import analysis
from bnonly_jax import describe
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.export import seed
from bnonly_jax.masks import codes
from bnonly_jax.models import frozen_half
from bnonly_jax.run import checkpoint

FORMATS = ('1', '2', '4', '8', 'e4m3', 'e5m2')
each_format = pytest.mark.parametrize('bits', FORMATS)


def normal(*shape):
  return np.random.default_rng(0).standard_normal(shape, np.float32)


def cosines(a, b):
  """Of each output channel of each kernel [n, ..., C]."""
  a, b = (np.float64(x).reshape(len(x), -1, x.shape[-1]) for x in (a, b))
  return (a * b).sum(1) / np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))


@pytest.mark.parametrize('bits, cosine', [
    ('1', np.sqrt(2 / np.pi)), ('2', 0.900), ('4', 0.9935), ('8', 0.99995), ('e4m3', 0.9996),
    ('e5m2', 0.9986)])
def test_codes_are_as_near_to_normal_weights_as_any(bits, cosine):
  kernel = normal(2, 3, 3, 256, 24)
  decoded = codes.decode(codes.quantise(kernel, 1, bits))
  found = cosines(kernel, decoded)
  assert abs(found.mean() - cosine) < 6 * found.std() / np.sqrt(found.size) + 5e-5
  # Each channel keeps its length.
  lengths = [np.square(x, dtype=np.float64).sum((1, 2, 3)) for x in (decoded, kernel)]
  np.testing.assert_allclose(*lengths, rtol=1e-6)
  if bits == '2':
    assert abs(np.mean(decoded == 0) - 0.46) < 0.005


@pytest.mark.parametrize('bits', ['2', '4', '8'])
def test_no_other_distance_of_levels_is_nearer(bits):
  kernel = normal(1, 4000, 25)
  best = cosines(kernel, codes.decode(codes.quantise(kernel, 1, bits))).mean()
  for factor in (0.9, 1.1):
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(codes.STEPS, bits, factor * codes.STEPS[bits])
      assert cosines(kernel, codes.decode(codes.quantise(kernel, 1, bits))).mean() < best


@each_format
@pytest.mark.parametrize('sparse', [False, True])
@pytest.mark.parametrize('features', [1, 12, 16])
def test_levels_are_few_and_zeros_stay(bits, sparse, features):
  kernel = normal(3, 2, 3, 3, 4, features)
  if sparse:
    kernel[np.random.default_rng(1).random(kernel.shape) < 0.7] = 0
  coded = codes.quantise(kernel, 2, bits, sparse)
  decoded = codes.decode(coded)
  assert decoded.shape == kernel.shape and decoded.dtype == np.float32
  shapes = codes.shapes(jax.ShapeDtypeStruct(kernel.shape, np.float32), 2, bits, sparse)
  for leaf, shape in zip(coded, shapes, strict=True):
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
  assert not np.any(decoded[kernel == 0]) or not sparse
  most = {'1': 2 + sparse, '2': 3, '4': 15, '8': 255}.get(bits, 256)
  for channel in np.moveaxis(decoded, -1, 2).reshape(-1, 36):
    assert len(np.unique(channel)) <= most
  assert not np.any(np.sign(decoded) * np.sign(kernel) < 0)
  # On a device, within a program, the very same.
  np.testing.assert_array_equal(jax.jit(codes.decode)(coded), decoded)


def test_codes_are_packed_as_the_documentation_says():
  signs = np.array([1, -1, -1, 1, 1, 1, 1, -1, -1, 1], np.float32).reshape(1, 10)
  coded = codes.quantise(signs, 0, '1')
  np.testing.assert_array_equal(coded.codes, [[[0b01111001], [0b00000010]]])
  coded = codes.quantise(np.float32([[1, 0, -1]]), 0, '1', sparse=True)  # 3, 2, 1
  np.testing.assert_array_equal(coded.codes, [[[0b101, 0b011]]])


def test_a_channel_of_zeros_stays_one():
  kernel = normal(3, 3, 4, 8)
  kernel[..., 2] = 0
  for bits in FORMATS:
    assert not np.any(codes.decode(codes.quantise(kernel, 0, bits))[..., 2]), bits


@pytest.mark.parametrize('bits, fields', [
    ('1', {}), *(pytest.param(bits, {}, marks=pytest.mark.slow)
                 for bits in ('2', '4', '8', 'e4m3', 'e5m2')),
    pytest.param('4', {'compute_dtype': 'bfloat16'}, marks=pytest.mark.slow),
    pytest.param('1', {'weight_sparsity': 0.8}, marks=pytest.mark.slow)])
def test_training_with_codes_is_training_with_what_they_stand_for(bits, fields):
  setup = conftest.make_setup(weight_bits=bits, **fields)
  _, frozen = experiment.start(setup.experiment)
  kernels = frozen_half.kernels(setup.experiment.parameters)
  coded, floats = masks.flatten(frozen), masks.flatten(setup.frozen)
  for name in kernels:
    assert isinstance(coded[name], masks.Codes)
    np.testing.assert_array_equal(codes.decode(coded[name]), floats[name])
  floats, with_codes = setup.run(3), setup._replace(frozen=frozen).run(3)
  for a, b in zip(jax.tree.leaves((floats[0], floats[2])),
                  jax.tree.leaves((with_codes[0], with_codes[2])), strict=True):
    np.testing.assert_array_equal(a, b)
  # On the device there were codes, and they are what they were.
  jax.tree.map(np.testing.assert_array_equal, with_codes[1], frozen)


def test_what_trains_is_no_code():
  run = conftest.make_setup('batchnorm+conv@stage1+random:1@stage2', weight_bits='2').experiment
  state, frozen = experiment.start(run)
  drawn = masks.flatten(experiment.draw_variables(run, 0)['params'])
  frozen, trainable = masks.flatten(frozen), masks.flatten(state.trainable)
  for name in frozen_half.kernels(run.parameters):
    if name.startswith('stage1'):
      np.testing.assert_array_equal(trainable[name], drawn[name])
    elif name.startswith('stage2'):
      np.testing.assert_array_equal(frozen[name].tensor, drawn[name])
    else:
      assert isinstance(frozen[name], masks.Codes)
  assert frozen['output/kernel'].dtype == np.float32


def described(bits, network='cifar_resnet14', **fields):
  config = default_config()
  config.update(network=network, batch_size=4, weight_bits=bits, **fields)
  return describe.describe(config)


def test_bytes_are_those_of_codes():
  weights, channels = 13_914_544, 16 * 289 + 32 * 289 + 64 * 289
  values = described('1', 'cifar_resnet866')
  assert f'{weights:,} frozen weights are codes (1) of {weights // 8:,} bytes' in values['kernels']
  rest = 4 * 650  # the output layer
  assert values['frozen'] == weights // 8 + 4 * channels + rest
  weights, one = 173_488, described('1')['frozen']
  assert described('4')['frozen'] - one == weights // 2 - weights // 8
  assert described('1', weight_sparsity=0.9)['frozen'] - one == weights // 8


@each_format
def test_folders_keep_codes(tmp_path, bits):
  tree = {'conv': {'kernel': codes.quantise(normal(3, 3, 8, 16), 0, bits)}}
  written = checkpoint.keep(tmp_path / 'frozen', tree)
  read = checkpoint.keep(tmp_path / 'frozen', tree)
  for a, b in zip(jax.tree.leaves(written), jax.tree.leaves(read), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
  assert isinstance(read['conv']['kernel'], masks.Codes)


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A run with codes of sparse weights, that was killed and went on."""
  folder = tmp_path_factory.mktemp('codes')
  config = tiny_config(data_dir, weight_bits='e5m2', weight_sparsity=0.5, epochs=1,
                       checkpoint_every_steps=2)
  train_and_die(config, folder / 'run', 4)
  train.train_and_evaluate(config, folder / 'run')
  return folder / 'run', config


@pytest.mark.slow
def test_a_run_goes_on_and_is_read_by_all_who_read_runs(run, tmp_path, data_dir):
  workdir, config = run
  loaded = analysis.load(workdir)
  drawn = masks.flatten(experiment.draw_variables(loaded.experiment, 0)['params'])
  params = masks.flatten(loaded.variables['params'])
  for name in frozen_half.kernels(loaded.experiment.parameters):
    np.testing.assert_array_equal(params[name], drawn[name])
    assert 0.4 < np.mean(params[name] == 0) < 0.6
  result = train.train_and_evaluate(config, workdir)
  accuracy = analysis.evaluate(loaded, loaded.variables['params'])[0]['test_accuracy']
  assert accuracy == result['test_accuracy']
  seed.write(loaded, tmp_path / 'net.bnonly')
  jax.tree.map(np.testing.assert_array_equal, bnonly_jax.load(tmp_path / 'net.bnonly').variables,
               loaded.variables)
  small = sum(file.stat().st_size for file in (workdir / 'frozen').rglob('*') if file.is_file())
  assert small < 2 * 77_754  # bytes, of as many weights; 4 bytes each they would be twice that


@pytest.mark.slow
def test_codes_of_what_another_run_has_trained(run, data_dir):
  workdir, _ = run
  config = tiny_config(data_dir, weight_bits='4', init_from=str(workdir))
  built = experiment.build(config)
  variables = analysis.load(workdir).variables
  _, frozen = experiment.start(built, [variables])
  for name, kernel in masks.flatten(frozen).items():
    if isinstance(kernel, masks.Codes):
      there = masks.flatten(variables['params'])[name]
      assert cosines(there.reshape(1, -1, there.shape[-1]),
                     codes.decode(kernel).reshape(1, -1, there.shape[-1])).mean() > 0.97
  config.weight_bits = '1'
  with pytest.raises(UserError, match='no code for zero.*Set --config.weight_bits=2'):
    experiment.start(experiment.build(config), [variables])


def test_an_unknown_number_of_bits_is_told():
  config = conftest.pattern_config(weight_bits='3')
  with pytest.raises(UserError, match="weight_bits is '3'; allowed is 0, 1, 2, 4, 8, e4m3 or e5m2"):
    experiment.build(config, conftest.PATTERNS, jax.devices()[:1])
  assert {ml_dtypes.finfo(dtype).bits for dtype in codes.FLOATS.values()} == {8}
