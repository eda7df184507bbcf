from conftest import data_config
from conftest import write_folder
import numpy as np
from PIL import Image
import pytest

from bnonly_jax.config import UserError
from bnonly_jax.data import show


@pytest.mark.slow
def test_a_sheet_of_training_and_one_of_evaluation_images(data_dir, tmp_path):
  config = data_config('digits', data_dir, mean=(0.5,), std=(0.25,),
                       augment='flip,randaugment,cutout=2,mixup')
  for path in show.show(config, tmp_path / 'out'):
    pixels = np.asarray(Image.open(path).convert('L'))
    assert path.name in ('train.png', 'eval.png') and pixels.shape[0] > 1000
    # Eight rows and columns of scans: dark pixels in every eighth of the sheet.
    for part in np.array_split(pixels[60:], 8, axis=0) + np.array_split(pixels[60:], 8, axis=1):
      assert np.mean(part < 50) > 0.1


def test_a_file_in_the_place_of_the_folder_is_told(data_dir, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'--out={tmp_path}/file cannot be written .File exists'):
    show.show(data_config('digits', data_dir, mean=(0.5,), std=(0.25,)), tmp_path / 'file')


def test_images_of_many_sizes_and_few_of_them(tmp_path):
  write_folder(tmp_path / 'images')
  config = data_config(f'folder:{tmp_path / "images"}', image_size=24, eval_resize=28)
  config.update(batch_size=8, eval_batch_size=4)
  train, evaluation = (Image.open(path) for path in show.show(config, tmp_path))
  assert train.height > 3 * evaluation.height  # 64 images against 11
