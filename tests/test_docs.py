"""What the texts say of the code: links, modules, fields, numbers, and an example that runs."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from bnonly_jax.config import default_config
from bnonly_jax.config import flat

ROOT = pathlib.Path(__file__).parents[1]
README, RESULTS = ROOT / 'README.md', ROOT / 'RESULTS.md'
DOCS = sorted(ROOT.glob('docs/*.md'))
TEXTS = [README, RESULTS, ROOT / 'launch/README.md', *DOCS]
each_text = pytest.mark.parametrize('text', TEXTS, ids=lambda text: str(text.relative_to(ROOT)))


def anchors(text):
  """The anchors that GitHub gives to the headings of a text."""
  headings = re.findall(r'^#+ (.+)$', text.read_text(), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def examples(text):
  return re.findall(r'^```python\n(.*?)^```', text.read_text(), re.MULTILINE | re.DOTALL)


def test_the_texts_stay_short():
  assert len(README.read_text().splitlines()) <= 180
  assert DOCS
  for text in DOCS:
    assert len(text.read_text().splitlines()) < 200, text


@each_text
def test_links_lead_somewhere(text):
  shown = re.sub(r'<!--.*?-->', '', text.read_text(), flags=re.DOTALL)
  for link in map(''.join, re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', shown)):
    if not link.startswith('https://'):
      path, _, anchor = link.partition('#')
      target = (text.parent / path).resolve() if path else text
      assert target.exists(), link
      assert not anchor or anchor in anchors(target), link


@each_text
def test_programs_exist(text):
  for name in re.findall(r'python -m (bnonly_jax[\w.]*)', text.read_text()):
    spec = importlib.util.find_spec(name)
    if spec and spec.submodule_search_locations:
      spec = importlib.util.find_spec(f'{name}.__main__')
    assert spec, name


@each_text
def test_fields_exist(text):
  fields = {*flat(default_config()), 'seeds'}  # `seeds` is a sweep's
  for name in re.findall(r'\bconfig\.(\w+(?:\.\w+)*)', text.read_text()):
    assert name.removeprefix('base.') in {*fields, 'FIELD', 'py', 'json'}, f'config.{name}'


@pytest.mark.parametrize('file', sorted(ROOT.glob('configs/*.py')), ids=lambda file: file.name)
def test_percentages_of_config_files_stand_in_a_table(file):
  said = re.findall(r'([\d.]+) %', ast.get_docstring(ast.parse(file.read_text())))
  known = set(re.findall(r'\d+(?:\.\d+)?', README.read_text() + RESULTS.read_text()))
  assert set(said) <= known, sorted(set(said) - known)


@pytest.mark.slow
def test_the_examples_run(tmp_path):
  example, = examples(README)
  further, = examples(ROOT / 'docs/analysis.md')  # of the run that the README's has trained
  done = subprocess.run(
      [sys.executable, '-c', example + further.replace('runs/digits14', 'runs/python')],
      cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
      env={**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT),
           'TFDS_DATA_DIR': str(tmp_path)})
  assert not done.returncode, done.stderr
  accuracy = re.search(r'^test accuracy (0\.\d+)$', done.stdout, re.MULTILINE)
  assert float(accuracy[1]) > 0.4, done.stdout
  assert re.search(r'^without small gammas 0\.\d+$', done.stdout, re.MULTILINE), done.stdout
