import pathlib
import shutil

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'launch/colab.ipynb'


def test_no_output_is_kept():
  for cell in nbformat.read(NOTEBOOK, 4).cells:
    assert cell.cell_type == 'markdown' or (not cell.outputs and cell.execution_count is None)


@pytest.mark.slow
def test_it_runs(data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  notebook = nbformat.read(NOTEBOOK, 4)
  settings = notebook.cells[1]
  for before, after in (("'resnet14'", "'resnet8'"), ('EPOCHS = 40', 'EPOCHS = 4')):
    assert before in settings.source
    settings.source = settings.source.replace(before, after)
  nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3',
                          resources={'metadata': {'path': str(tmp_path)}}).execute()
  said = [''.join(output.get('text', '') for output in cell.get('outputs', ()))
          for cell in notebook.cells]
  assert 'test accuracy' in said[5] and '672 of 77,754' in said[5]
  assert any('image/png' in output.get('data', {}) for output in notebook.cells[5].outputs)
  assert '|gamma| < 0.05' in said[7] and 'ReLUs never fire' in said[7]
  assert 'left out' in said[9]
