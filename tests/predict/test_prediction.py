"""Image files in, classes out; what is wrong with one is told and stops no other."""

import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.data import resident
from bnonly_jax.export import loading
from bnonly_jax.export import seed
from bnonly_jax.predict import prediction

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A run, its file, and a folder with 20 test images and one that is none."""
  folder = tmp_path_factory.mktemp('predict')
  train.train_and_evaluate(tiny_config(data_dir, epochs=4, train='all'), folder / 'run')
  loaded = analysis.load(folder / 'run')
  seed.write(loaded, folder / 'net.bnonly')
  test_set = resident.open_source(loaded.config, loaded.experiment.info).test_set
  (folder / 'images').mkdir()
  for i in range(20):
    pixels = test_set.images[i, :64].reshape(8, 8)
    Image.fromarray(pixels).save(folder / 'images' / f'{i:02}_{test_set.labels[i]}.png')
  (folder / 'images/bad.png').write_bytes(b'no image')
  return folder


def test_a_folder_becomes_csv_and_a_bad_image_is_told(run, capsys):
  assert prediction.predict(str(run / 'net.bnonly'), [str(run / 'images')], top=2) == 1
  told = capsys.readouterr()
  head, *rows = csv.reader(told.out.splitlines())
  assert head == ['file', 'class1', 'share1', 'class2', 'share2'] and len(rows) == 20
  assert told.err == f'{run / "images/bad.png"}: left out: neither JPEG nor PNG\n'
  right = [pathlib.Path(row[0]).stem[-1] == row[1] for row in rows]
  assert np.mean(right) > 0.3
  assert all(1 >= float(row[2]) >= float(row[4]) > 0 for row in rows)


def test_a_run_will_do_in_place_of_the_file(run, capsys):
  image = str(sorted((run / 'images').glob('00_*.png'))[0])
  outputs = []
  for net in (run / 'net.bnonly', run / 'run'):
    assert prediction.predict(str(net), [image], top=3) == 0
    outputs.append(capsys.readouterr().out)
  assert outputs[0] == outputs[1] and outputs[0].startswith(f'{image}: ')
  assert outputs[0].count(',') == 2


def test_images_of_other_sizes_are_resized_and_cut_to_the_centre(run, tmp_path):
  trained = loading.open_network(str(run / 'net.bnonly'))
  wide = np.zeros((80, 160), np.uint8)
  wide[:, 40:120] = 200
  Image.fromarray(wide).save(tmp_path / 'wide.png')
  Image.fromarray(np.stack([wide] * 3, -1)).save(tmp_path / 'colour.png')
  for name in ('wide', 'colour'):
    found = prediction.read_image(tmp_path / f'{name}.png', trained)
    assert found.shape == (8, 8, 1) and (found == 200).all()


@pytest.mark.parametrize('words, code, message', [
    ([], 1, 'a network and an image are needed'),
    (['net.bnonly', 'nowhere.png'], 1, 'nowhere.png is not there'),
    (['nowhere.bnonly', 'images'], 1, 'there is no such file'),
    (['net.bnonly', 'images/bad.png'], 4, 'left out: neither JPEG nor PNG')])
def test_mistakes_are_one_line(run, words, code, message):
  done = subprocess.run([sys.executable, '-m', 'bnonly_jax.predict', *words], cwd=run, check=False,
                        capture_output=True, text=True,
                        env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert done.returncode == code and message in done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr


def test_an_empty_folder_is_an_error(tmp_path):
  with pytest.raises(UserError, match='holds no image'):
    prediction.image_files([str(tmp_path)])
