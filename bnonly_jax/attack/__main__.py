r"""Attacks trained networks: test accuracy with pixels changed against them.

  python -m bnonly_jax.attack --workdir=DIR[@STEP] [--eps=0,2/255,8/255] [--steps=0|10] \
      [--against=DIR2[@STEP],...] [--replicate=I] [--data_dir=DIR]

By FGSM, or with --steps by PGD. Prints a table, and writes DIR/attack.json and DIR/attack.png and
nothing else there. docs/beyond.md says what it does.
"""

from absl import flags

from bnonly_jax import command_line

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of a run, finished or not, or DIR@STEP for that checkpoint; what is'
    ' found goes there.')
_EPS = flags.DEFINE_string(
    'eps', '0,2/255,8/255', 'By how much a pixel in [0, 1] may change: numbers or fractions, with'
    ' commas between.')
_STEPS = flags.DEFINE_integer(
    'steps', 0, 'Steps of PGD, each of 2.5 eps / steps, from a random start; 0: FGSM.')
_AGAINST = flags.DEFINE_list('against', [], 'Further runs, for the same table and plot.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'Folder of the prepared data sets; default: where they were in training.')
_REPLICATE = flags.DEFINE_integer('replicate', 0, 'Which one of a run of several, from 0.')


def main() -> None:
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax import attack
  attack.attack(_WORKDIR.value, _EPS.value, _STEPS.value, _AGAINST.value, _DATA_DIR.value,
                _REPLICATE.value)


if __name__ == '__main__':
  command_line.run(main, lambda: '' if _WORKDIR.value else (
      '--workdir=DIR, the folder of a run, is needed, or --help.'))
