"""The page: its logits in a browser against the network's, and what is written into it."""

import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import jax
import networks
import numpy as np
from PIL import Image
import pytest

from bnonly_jax import analysis
from bnonly_jax.config import UserError
from bnonly_jax.data import resident
from bnonly_jax.export import compact
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export import page
from bnonly_jax.export import seed
from bnonly_jax.predict import prediction

ROOT = pathlib.Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
                None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason='needs chromium')


def in_chromium(text, folder):
  """Returns the logits of a page's examples, by name, as a browser computes them."""
  (folder / 'page.html').write_text(text)
  browser = subprocess.Popen(
      [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
       '--remote-debugging-port=0',  # so that it does not end as soon as the page is loaded
       f'--user-data-dir={folder / "chromium"}', f'{(folder / "page.html").as_uri()}#logits'],
      stderr=subprocess.PIPE, text=True)
  timer = threading.Timer(120, browser.kill)
  timer.start()
  try:
    lines = (re.search(r'"logits ({.*})", source', line) for line in browser.stderr)
    return json.loads(next(filter(None, lines))[1])
  finally:
    timer.cancel()
    browser.kill()
    browser.wait()


def expected(trained, files):
  program = jax.jit(network.classifier(trained))
  return {path.name: program(trained.variables, prediction.read_image(path, trained)[None])[0]
          for path in files}


def write_images(folder, height, width, channels, kinds=('png',), number=3):
  """Writes soft random pictures; returns their files."""
  rng, files = np.random.default_rng(height), []
  for i in range(number):
    for kind in kinds:
      pixels = np.squeeze(rng.integers(0, 256, (5, 5, channels), np.uint8))
      files.append(folder / f'{height}x{width}_{i}.{kind}')
      Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
  return files


def about(text):
  return json.loads(re.search(r'<script id="about".*?>(.*?)</script>', text, re.DOTALL)[1])


@pytest.mark.slow
@in_a_browser
def test_a_browser_finds_the_logits_of_test_images(data_dir, tmp_path):
  loaded = analysis.load(networks.trained_run(data_dir))
  trained = network.of_run(loaded)
  test_set, files = resident.open_source(loaded.config, trained.info).test_set, []
  for i in range(20):
    files.append(tmp_path / f'{i}.png')
    Image.fromarray(test_set.images[i, :64].reshape(8, 8)).save(files[-1])
  found = in_chromium(page.html(trained, examples=files), tmp_path)
  for name, logits in expected(trained, files).items():
    np.testing.assert_allclose(found[name], logits, atol=1e-3, rtol=0)


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize('name, side, threshold', [
    ('cifar_resnet14', 32, 0.01), ('cifar_resnet14', 13, 0), ('cifar_vgg11', 20, 0.01),
    ('imagenet_resnet18', 47, 0.01)])
def test_a_browser_computes_all_networks(name, side, threshold, tmp_path):
  trained = networks.random_network(name, side)
  files = write_images(tmp_path, side, side, 3, ('png', 'jpg'))
  found = in_chromium(page.html(trained, threshold, files), tmp_path)
  small = compact.compact(trained, threshold)
  for file, logits in expected(small, files).items():
    largest = max(1, np.abs(logits).max())
    np.testing.assert_allclose(found[file], logits, atol=1e-3 * largest, rtol=0)


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize('channels', [1, 3])
def test_a_browser_resizes_as_evaluation_does(channels, data_dir, tmp_path):
  trained = (networks.random_network('cifar_resnet8', 16) if channels == 3 else
             network.of_run(analysis.load(networks.trained_run(data_dir))))
  files = [file for size in ((16, 16), (12, 15), (40, 23), (100, 131), (300, 200))
           for file in write_images(tmp_path, *size, 3, ('png', 'jpg'), 1)]
  found = in_chromium(page.html(trained, examples=files), tmp_path)
  for file, logits in expected(trained, files).items():
    # A pixel may be rounded to the next whole number.
    np.testing.assert_allclose(found[file], logits, atol=0.01, rtol=0, err_msg=file)


def test_the_page_holds_the_network(tmp_path):
  trained = networks.random_network('cifar_resnet14', 13)
  files = write_images(tmp_path, 13, 13, 3)
  text = page.html(trained, 0.01, files)
  said, small = about(text), compact.compact(trained, 0.01)
  weights = re.search(r'<script id="weights".*?>(.*?)</script>', text, re.DOTALL)[1]
  numbers = np.frombuffer(base64.b64decode(weights), '<f4')
  np.testing.assert_array_equal(
      numbers, np.concatenate([value.ravel() for value in small.variables['params'].values()]))
  assert sum(np.prod(shape) for _, shape in said['tensors']) == len(numbers)
  assert said['nodes'] == small.network.nodes
  assert base64.b64decode(said['examples'][1]['base64']) == files[1].read_bytes()
  assert 0.2 < said['gammas']['all']['below_0.01'] < 0.5
  assert 'https:' not in text and '@' not in re.sub('@media', '', text)


def test_it_says_what_trained(data_dir, tmp_path):
  loaded = analysis.load(networks.trained_run(data_dir))
  seed.write(loaded, tmp_path / 'net.bnonly')
  seed.write(loaded, tmp_path / 'whole.bnonly', include_frozen=True)
  run, file, whole = network.of_run(loaded), *(
      loading.open_network(str(tmp_path / name)) for name in ('net.bnonly', 'whole.bnonly'))
  assert (run.trained_parameters, file.trained_parameters, whole.trained_parameters) == (
      672, 672, None)
  assert 'Of 77,754 parameters 672 were trained (“batchnorm”)' in about(page.html(file))['what']
  assert about(page.html(run)) == about(page.html(file))
  assert about(page.html(whole))['what'].startswith('77,754 parameters; ')


def test_a_name_of_a_class_cannot_end_the_script():
  trained = networks.random_network('cifar_resnet8', 8)
  names = ('</script><script>alert(1)</script>', '<!--', *'cdefg')
  text = page.html(trained._replace(info=trained.info._replace(class_names=names)))
  assert about(text)['class_names'] == list(names) and text.count('</script>') == 4


def test_what_is_no_picture_is_no_example(tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'nonsense')
  for name in ('bad.png', 'nowhere.png'):
    with pytest.raises(UserError, match=f'{name} cannot be an example'):
      page.html(networks.random_network('cifar_resnet8', 8), examples=[tmp_path / name])


@pytest.mark.parametrize('words, message', [
    (['page', '--output=page.html'], 'either --workdir=DIR'),
    (['page', '--output=page.html', '--workdir=x', '--network=y'], 'either --workdir=DIR'),
    (['page', '--output=page.html', '--network=y', '--step=3'], '--step belongs to --workdir'),
    (['seed', '--output=net.bnonly', '--network=y'], 'seed takes --workdir=DIR'),
    (['page', '--output=page.html', '--network=nowhere.bnonly'], 'there is no such file'),
    (['page', '--output=page.html', '--workdir=nowhere'], 'there is no such folder'),
    (['page', '--output=page.html', '--network=.'], 'there is no such file'),
    (['torch', '--output=net.pt', '--workdir=x', '--threshold=0.1'], 'compact and onnx and'),
    (['compact', '--output=net', '--workdir=x', '--dtype=bfloat16'], '--dtype is of seed; leave')])
def test_mistakes_are_one_line(words, message, tmp_path):
  done = subprocess.run([sys.executable, '-m', 'bnonly_jax.export', *words], cwd=tmp_path,
                        capture_output=True, text=True, check=False,
                        env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert done.returncode == 1 and message in done.stderr
  assert len(done.stderr.splitlines()) == 1, done.stderr
