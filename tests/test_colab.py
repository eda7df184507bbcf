import contextlib
import io
import os
import pathlib
import shutil
import sys
import types

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'launch/colab.ipynb'


def cell(notebook, name):
  return next(cell for cell in notebook.cells if cell.id == name)


def run_cells(*names, **values):
  """Runs cells as plain Python in a session of these values; returns what they print."""
  notebook, said = nbformat.read(NOTEBOOK, 4), io.StringIO()
  with contextlib.redirect_stdout(said):
    for name in names:
      exec(cell(notebook, name).source, values)
  return said.getvalue()


def test_no_output_is_kept():
  for cell in nbformat.read(NOTEBOOK, 4).cells:
    assert cell.cell_type == 'markdown' or (not cell.outputs and cell.execution_count is None)


def test_opened_as_it_is_it_ends_in_one_line_that_says_what_to_fill_in(tmp_path):
  notebook = nbformat.read(NOTEBOOK, 4)
  with pytest.raises(nbclient.exceptions.CellExecutionError):
    nbclient.NotebookClient(notebook, timeout=60, kernel_name='python3',
                            resources={'metadata': {'path': str(tmp_path)}}).execute()
  output, = cell(notebook, 'cell-1').outputs
  line, = output.traceback
  assert line.startswith('SOURCE is empty: fill in') and '\n' not in line


def test_in_a_checkout_nothing_is_to_be_filled_in(monkeypatch):
  monkeypatch.chdir(ROOT / 'launch')
  assert not run_cells('cell-1')


def test_runs_are_kept_on_google_drive_if_asked(tmp_path, monkeypatch):
  mounted = []
  colab = types.ModuleType('google.colab')
  colab.drive = types.SimpleNamespace(mount=mounted.append)
  monkeypatch.setitem(sys.modules, 'google.colab', colab)
  monkeypatch.setitem(sys.modules, 'google', types.ModuleType('google'))
  monkeypatch.chdir(tmp_path)
  values = {'os': os, 'WORKDIR': 'runs/colab'}
  assert str(tmp_path / 'runs/colab') in run_cells('cell-drive', KEEP_ON_DRIVE=False, **values)
  assert not mounted
  assert '/content/drive/MyDrive/' in run_cells('cell-drive', KEEP_ON_DRIVE=True, **values)
  assert mounted == ['/content/drive']


@pytest.mark.slow
def test_it_runs(data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  notebook = nbformat.read(NOTEBOOK, 4)
  settings = cell(notebook, 'cell-1')
  for before, after in (("'resnet14'", "'resnet8'"), ('EPOCHS = 40', 'EPOCHS = 4')):
    assert before in settings.source
    settings.source = settings.source.replace(before, after)
  nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3',
                          resources={'metadata': {'path': str(tmp_path)}}).execute()
  said = {each.id: ''.join(output.get('text', '') for output in each.get('outputs', ()))
          for each in notebook.cells}
  assert 'test accuracy' in said['cell-5'] and '672 of 77,754' in said['cell-5']
  assert any('image/png' in output.get('data', {})
             for output in cell(notebook, 'cell-5').outputs)
  assert '|gamma| < 0.05' in said['cell-7'] and 'ReLUs never fire' in said['cell-7']
  assert 'left out' in said['cell-9']
  assert (tmp_path / 'runs/colab/page.html').exists()
  assert 'zero.png: ' in said['cell-export'], said['cell-export']
  assert 'runs/colab' in said['cell-drive']
