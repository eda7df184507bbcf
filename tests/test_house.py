"""The shape of the house: what imports what, and how large its pieces are."""

import ast
import functools
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'bnonly_jax'
# From the ground up: a room imports from those before it and from itself.
ROOMS = (
    ('config', 'seeds', 'validation'), ('mistakes',), ('command_line',), ('models',), ('masks',),
    ('data',), ('optimizer',), ('objective',), ('steps',), ('experiment',), ('run', 'describe'),
    ('train',), ('analysis',), ('attack',), ('export',), ('predict',), ('benchmark',), ('sweep',),
    ('main', 'figures', 'data.show', 'analysis.__main__', 'attack.__main__', 'benchmark.__main__',
     'export.__main__', 'predict.__main__', 'sweep.__main__'))
# What may be imported where alone.
LIBRARIES = {
    'orbax': ('run.checkpoint',), 'matplotlib': ('run.plots', 'sweep'), 'optax': (
        'optimizer', 'objective', 'steps', 'experiment', 'benchmark.flax_peer'),
    'tensorflow_datasets': ('data',), 'grain': ('data',),
    'absl': ('command_line', 'mistakes', 'main', 'figures', 'sweep.flags', 'sweep.__main__',
             'data.show', 'data.prepare', 'data.streamed', 'analysis.__main__', 'attack.__main__',
             'benchmark.__main__', 'export.__main__', 'predict.__main__'),
    'onnx': ('export.onnx_file',), 'onnxruntime': ('export.onnx_file',),
    'tensorflow': (), 'clu': (), 'torch': ('benchmark', 'models.from_torch')}


def name_of(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob('*.py'))}


@functools.cache
def tree(module):
  return ast.parse(MODULES[module].read_text())


def imported(module):
  """Yields all that a module imports, by dotted name, within functions too."""
  for node in ast.walk(tree(module)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imported_modules(module):
  """Returns the modules of the package that a module imports."""
  found = set()
  for name in imported(module):
    if name.split('.')[0] == 'bnonly_jax':
      parts = name.split('.')[1:]
      found.add(next((m for m in ('.'.join(parts), '.'.join(parts[:-1])) if m in MODULES), ''))
  return found - {'', module}


def within(module, place):
  return module == place or module.startswith(f'{place}.')


def room(module):
  places = [(len(place), i) for i, places in enumerate(ROOMS) for place in places
            if within(module, place)]
  assert places, f'{module} is in no room: give it one in ROOMS'
  return max(places)[1]


def test_no_import_runs_back_up():
  back = [(module, other) for module in MODULES if module for other in imported_modules(module)
          if room(other) > room(module)]
  assert not back


def test_imports_form_no_circle():
  done, open_ = set(), []

  def visit(module):
    assert module not in open_, ' -> '.join([*open_[open_.index(module):], module])
    if module not in done:
      open_.append(module)
      for other in imported_modules(module):
        visit(other)
      done.add(open_.pop())

  for module in MODULES:
    visit(module)


@pytest.mark.parametrize('library', LIBRARIES)
def test_a_library_has_its_place(library):
  users = [module for module in MODULES if any(within(name, library) for name in imported(module))]
  assert all(any(within(user, place) for place in LIBRARIES[library]) for user in users), users
  assert bool(users) == bool(LIBRARIES[library])


def test_modules_and_functions_fit_on_a_screen():
  long = [f'{module}: {lines} lines' for module, path in MODULES.items()
          if (lines := len(path.read_text().splitlines())) > 350]
  for module in MODULES:
    for node in ast.walk(tree(module)):
      if isinstance(node, ast.FunctionDef) and node.name != 'default_config':
        lines = node.end_lineno - node.lineno + 1
        long += [f'{module}.{node.name}: {lines} lines'] if lines > 60 else []
  assert not long


def test_few_modules_stand_at_the_top():
  assert len([module for module in MODULES if module and '.' not in module
              and MODULES[module].name != '__init__.py']) <= 12
