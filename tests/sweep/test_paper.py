from bnonly_jax.sweep import paper


def test_the_paper_has_values_for_its_own_settings_only():
  point = {'network': 'cifar_resnet866', 'train': 'batchnorm'}
  assert paper.value('test_accuracy', point) == 82
  assert paper.value('test_accuracy', {**point, 'norm': 'group'}) is None
  assert paper.value('test_accuracy', {**point, 'train': 'random:2'}) is None
  assert paper.value('train_accuracy', point) is None
  assert paper.value('test_top5_accuracy',
                     {'network': 'imagenet_resnet200', 'train': 'batchnorm'}) == 32
