"""What the paper measured (arXiv 2003.00152), to stand beside what this code measures."""

from typing import Any

# CIFAR-10 test accuracy after 160 epochs in percent, mean of 5 seeds, by network and selection:
# read off the main figure of the paper's first version to about half a point. 82 for ResNet-866 is
# the abstract's.
_SELECTIONS = ('batchnorm', 'batchnorm+output+shortcut', 'output+shortcut', 'nothing', 'all')
_CIFAR10 = {
    'cifar_resnet14': (47.8, 63.2, 48.9, 10.6, 90.5),
    'cifar_resnet32': (57.6, 66.7, 45.8, 10.3, 92.3),
    'cifar_resnet56': (62.9, 71.2, 42.5, 10.9, 93.2),
    'cifar_resnet110': (69.7, 74.7, 19.2, 10.4, 93.4),
    'cifar_resnet218': (75.7, 78.9, 17.3, 10.0, 93.4),
    'cifar_resnet434': (None, 80.0, 12.8, 10.4, 92.9),
    'cifar_resnet866': (82.0, 82.1, 13.1, 10.1, 92.8),
    'cifar_resnet14x2': (53.3, 72.6, 58.0, 10.4, 93.0),
    'cifar_resnet14x4': (59.6, 79.5, 66.0, 9.4, 94.1),
    'cifar_resnet14x8': (64.4, 83.4, 73.0, 10.1, 94.9),
    'cifar_resnet14x16': (68.3, 85.6, 77.4, 10.1, 95.1),
    'cifar_resnet14x32': (73.2, 86.9, 79.8, 9.7, 95.2),
}
# ImageNet top-5 test accuracy in percent, from the abstract.
_IMAGENET_TOP5 = {('imagenet_resnet200', 'batchnorm'): 32.0}


def value(quantity: str, changes: dict[str, Any]) -> float | None:
  """Returns the paper's value for a point of a figure.

  Args:
    quantity: test_accuracy or test_top5_accuracy; of any other no value is known here.
    changes: the point's, by dotted field. One that changes more than `network` and `train` has no
      value.

  Returns:
    Percent, or None.

  Example:
    >>> value('test_accuracy', {'network': 'cifar_resnet14', 'train': 'batchnorm'})
    47.8
  """
  if changes.keys() != {'network', 'train'}:
    return None
  network, selection = changes['network'], changes['train']
  if quantity == 'test_accuracy' and network in _CIFAR10 and selection in _SELECTIONS:
    return _CIFAR10[network][_SELECTIONS.index(selection)]
  if quantity == 'test_top5_accuracy':
    return _IMAGENET_TOP5.get((network, selection))
  return None
