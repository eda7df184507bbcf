import os
import pathlib
import subprocess
import sys

from absl import flags
from ml_collections import config_flags
import pytest

from bnonly_jax import command_line
from bnonly_jax import mistakes
from bnonly_jax.config import default_config
from bnonly_jax.sweep import config as sweep_config

ROOT = pathlib.Path(__file__).parents[1]


def wrong(*arguments, defaults=default_config):
  """What the command line of a program with --config, --workdir and --step is told."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True,
                                  flag_values=values, sys_argv=['main', *arguments])
  flags.DEFINE_string('workdir', None, 'A folder.', flag_values=values)
  flags.DEFINE_integer('step', None, 'Which checkpoint to take.', flag_values=values)
  return command_line.parse(['main', *arguments], values, defaults)[1]


HEAD = 'from bnonly_jax.config import default_config, UserError\n\n\ndef get_config({}):\n'


@pytest.mark.parametrize('text, argument, message', [
    (HEAD.format('') + '  config = default_config()\n  config.epochs = 1 // 0\n  return config\n',
     '', '{}:6: ZeroDivisionError: integer division or modulo by zero. Correct that line.'),
    ('x = 1\n', '', '{} has no function get_config. Write def get_config(), which returns'),
    (HEAD.format('') + '  return default_config()\n', ':a',
     "{}:4: get_config() with 'a' given after the colon: too many positional arguments. Leave :a"),
    (HEAD.format('network') + '  return default_config()\n', '',
     "{}:4: get_config(network) with nothing given: missing a required argument: 'network'. Write"),
    (HEAD.format('') + '  return {"epochs": 3}\n', '',
     '{}:4: get_config returns a dict; allowed is a ConfigDict. Start from default_config()'),
    (HEAD.format('') + '  config = default_config()\n', '',
     '{}:4: get_config returns nothing; allowed is a ConfigDict.'),
    ('def get_config(:\n', '', "{}:1: invalid syntax: 'def get_config(:'. Correct that line."),
    ('\nimport nonsuch\n', '', "{}:2: No module named 'nonsuch'. Install it, or correct that line"),
    ('open("/none")\n', '', '{}:1: FileNotFoundError: [Errno 2] No such file'),
    (HEAD.format('x="a"') + '  raise UserError(f"the argument is {x!r}; allowed is a.")\n', ':b',
     "{}:5: the argument is 'b'; allowed is a."),
    (HEAD.format('') + '  raise ValueError("two\\nlines")\n', '', '{}:5: ValueError: two lines.'),
    (HEAD.format('') + '  config = default_config()\n  config.epoch = 3\n  return config\n', '',
     "{}:6: the config has no field 'epoch'. Did you mean 'epochs'? Allowed are the fields"),
    (HEAD.format('') + '  config = default_config()\n  config.epochs = "x"\n  return config\n', '',
     "{}:6: TypeError: Could not override field 'epochs'"),
])
def test_a_wrong_config_file_is_one_line_with_its_place(tmp_path, capfd, text, argument, message):
  file = tmp_path / 'e.py'
  file.write_text(text)
  said = wrong(f'--config={file}{argument}', '--workdir=x')
  assert said.startswith(message.format(file)) and '\n' not in said and said.endswith(('.', 'T'))
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('argument, message', [
    ('--config.epochs=1.5', '--config.epochs=1.5: allowed is an integer, as in --config.epochs=40'),
    ('--config.epochs=abc', '--config.epochs=abc: allowed is an integer, as in --config.epochs=40'),
    ('--step=abc', '--step=abc: allowed is an integer. Which checkpoint to take.'),
    ('--config.data.flip=maybe', ': allowed is true or false, as in --config.data.flip=false'),
    ('--config.optimizer.learning_rate=x',
     ': allowed is a number, as in --config.optimizer.learning_rate=0.1'),
    ('--config.optimizer.drops=0.5,x', '--config.optimizer.drops=0.5,x: allowed is numbers with'
     ' commas between, or () for none, as in --config.optimizer.drops=0.5,0.75'),
    ('--config.optimizer.drops=0.5 0.7', 'as in --config.optimizer.drops=0.5,0.75'),
    ('--config.optimizer.drops=', 'as in --config.optimizer.drops=0.5,0.75'),
])
def test_a_wrong_value_is_told_with_its_flag_and_what_is_allowed(argument, message):
  file = f'--config={ROOT}/configs/digits.py:resnet8'
  assert message in wrong(file, argument)
  assert message in wrong(file, *argument.split('=', 1)) or argument.endswith('=')


@pytest.mark.parametrize('arguments', [
    (), ('--config.optimizer.drops=0.1,0.2',), ('--config.optimizer.drops=()',),
    ('--config.data.mean=0.5',), ('--noconfig.data.flip',), ('--config.data.flip=True', '--step=3'),
    ('--config.seed', '7'), ('--config.optimizer.drops=(0.1, 1)',)])
def test_right_values_are_let_by(arguments):
  assert wrong(f'--config={ROOT}/configs/digits.py:resnet8', *arguments) == ''


@pytest.mark.parametrize('arguments, message', [
    (['--config.optimizer.learning_rat=1'], 'Did you mean --config.optimizer.learning_rate?'),
    (['--config.learning_rate=1'], 'Did you mean --config.optimizer.learning_rate?'),
    (['--config.lr=1'], 'Did you mean --config.optimizer.learning_rate?'),
    (['--config.optimizer=sgd'], 'each field of it has a flag of its own. Allowed are --config.o'),
    (['--config.epochs'], 'Missing value for flag --config.epochs. Write --config.epochs=VALUE.'),
    (['--resume'], "Unknown command line flag 'resume'. --help lists those that there are."),
])
def test_a_wrong_flag_gets_a_suggestion(arguments, message):
  assert message in wrong(f'--config={ROOT}/configs/digits.py', *arguments)


def test_only_the_fields_of_its_section_are_listed():
  message = mistakes.explain_flags(['main', '--config=setup.py', '--config.optimizer.x=1'],
                                   default_config())
  assert '--config.optimizer.momentum' in message and '--config.epochs' not in message
  assert mistakes.explain_flags(['main', '--config=setup.py', '--config.seed=1'],
                                default_config()) == ''


def test_a_field_before_the_config_is_told():
  message = 'no --config stands before it. Write --config=FILE.py[:ARGUMENT] first'
  assert message in wrong('--config.epochs=3', '--config=configs/digits.py')
  assert message in wrong('--config.epochs=3')


@pytest.mark.parametrize('file, message', [
    ('digits.py', 'digits.py is no file. Did you mean configs/digits.py? Allowed is'),
    ('configs/digits:resnet8', 'configs/digits is no file. Did you mean configs/digits.py?'),
    ('configs', 'configs is a folder. Allowed'), ('README.md', 'README.md is no Python file. All'),
    ('', '--config=: that is no file. Allowed is the path of a config file (here: configs/'),
    ('configs/nope.py', 'configs/nope.py is no file. Allowed is')])
def test_a_wrong_path_is_told_with_those_that_there_are(monkeypatch, file, message):
  monkeypatch.chdir(ROOT)
  assert message in wrong(f'--config={file}')
  assert 'configs/figures/' in wrong(f'--config={file}', defaults=sweep_config.skeleton)


# Of a device that is not there JAX speaks in one way for CUDA and in another for the others.
@pytest.mark.parametrize('platform, arguments', [
    pytest.param('cuda', ['main', '--describe', '--config=configs/digits.py'],
                 marks=pytest.mark.skipif(any(pathlib.Path('/dev').glob('nvidia*')),
                                          reason='needs a machine without an NVIDIA GPU')),
    ('nonsense', ['sweep', '--config=configs/figures/main_depth.py:smoke'])])
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform, arguments):
  program, *rest = arguments
  done = subprocess.run([sys.executable, '-m', f'bnonly_jax.{program}', *rest,
                         f'--workdir={tmp_path / "run"}'], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': platform}, check=False)
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith(f'error: JAX_PLATFORMS={platform}: JAX finds no such device here')
  assert 'there is ' in line and 'Unset JAX_PLATFORMS' in line and done.returncode == 1
