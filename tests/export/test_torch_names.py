"""What is written under PyTorch's names is what config.init_from reads."""

from etils import epath
import jax
import networks
import numpy as np
import pytest

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.export import network
from bnonly_jax.export import torch_names
from bnonly_jax.models import from_torch
from bnonly_jax.run import origin


@pytest.mark.parametrize('name', ['cifar_resnet14', 'cifar_vgg11', 'imagenet_resnet50'])
def test_reading_it_back_gives_the_same_variables(name):
  trained = networks.random_network(name, 32)
  shapes = models.variable_shapes(trained.network, trained.info.image_shape)
  back = from_torch.convert(torch_names.state_dict(trained), trained.network, shapes)
  assert jax.tree.structure(back) == jax.tree.structure(trained.variables)
  jax.tree.map(np.testing.assert_array_equal, back, trained.variables)


def test_a_run_starts_from_the_file_with_the_same_logits(data_dir, tmp_path):
  workdir, path = networks.trained_run(data_dir), tmp_path / 'net.safetensors'
  torch_names.export(str(workdir), str(path))
  loaded = analysis.load(workdir)
  config = loaded.config.copy_and_resolve_references()
  config.init_from = str(path)
  start = origin.find(experiment.build(config), epath.Path(tmp_path / 'new'), {}).variables[0]
  ours = network.of_run(loaded)
  np.testing.assert_array_equal(networks.logits(ours._replace(variables=start)),
                                networks.logits(ours))
  with pytest.raises(UserError, match='ends in .safetensors'):
    torch_names.export(str(workdir), str(tmp_path / 'net.bin'))


def test_torchvisions_names_and_axes():
  named = torch_names.state_dict(networks.random_network('imagenet_resnet50', 32))
  assert named['conv1.weight'].shape == (64, 3, 7, 7)
  assert named['layer1.0.downsample.0.weight'].shape == (256, 64, 1, 1)
  assert named['layer4.2.bn3.running_var'].shape == (2048,)
  assert named['fc.weight'].shape == (7, 2048)


def test_other_norms_have_no_such_names():
  trained = networks.random_network('cifar_resnet14', 32)
  config = trained.config.copy_and_resolve_references()
  config.norm = 'group'
  with pytest.raises(UserError, match="norm is 'group'"):
    torch_names.state_dict(trained._replace(config=config))
