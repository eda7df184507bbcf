"""The embedded data set: 1,797 scans of handwritten digits, 8x8 grey pixels.

digits.csv.gz is the test half of the UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin
and C. Kaynak, 1998, CC BY 4.0), as scikit-learn distributes it: 64 pixels from 0 to 16, the label.
"""

import io
import pathlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

_FILE = pathlib.Path(__file__).with_name('digits.csv.gz')
_TRAIN = 1437  # the first four fifths of the file; the writers of the last fifth are others


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,437 scans to train and 360 to test, in file order."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description=__doc__,
        homepage='https://archive.ics.uci.edu/dataset/80',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(num_classes=10)}),
        supervised_keys=('image', 'label'),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    rows = np.loadtxt(_FILE, delimiter=',', dtype=np.uint8)
    return {'train': self._generate_examples(rows[:_TRAIN]),
            'test': self._generate_examples(rows[_TRAIN:])}

  def _generate_examples(self, rows):
    images = np.rint(rows[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for i, (image, label) in enumerate(zip(images, rows[:, 64], strict=True)):
      # Encoded here: TFDS encodes arrays with TensorFlow, but passes encoded bytes on as they are.
      png = io.BytesIO()
      Image.fromarray(image).save(png, 'PNG')
      yield i, {'image': io.BytesIO(png.getvalue()), 'label': int(label)}
