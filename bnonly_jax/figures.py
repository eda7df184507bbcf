r"""Draws the figures of a sweep from the runs that are there, with tables and a report beside them.

  python -m bnonly_jax.figures --config=configs/figures/main_depth.py:short --workdir=DIR

writes DIR/figures/NAME/: for each panel a PNG, an SVG, a CSV and a Markdown table, and report.html,
one file that can be sent on. Trained runs come from python -m bnonly_jax.sweep. Or any runs:

  python -m bnonly_jax.figures --output=DIR --runs A B C

draws the accuracy of the runs in the folders A, B and C over epochs, with a table, into DIR. From
Python: bnonly_jax.sweep.drawing.draw and bnonly_jax.sweep.compare.compare.
"""

from bnonly_jax import command_line
from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.sweep import flags as sweep_flags

_CONFIG, _WORKDIR, _RUNS, _OUTPUT, wrong = sweep_flags.define_figures()


def main(*more: str) -> None:
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax.sweep import compare
  from bnonly_jax.sweep import drawing
  if _RUNS.value:
    compare.print_compared(*compare.compare([*_RUNS.value, *more], _OUTPUT.value))
  else:
    drawing.print_drawn(_CONFIG.value, *drawing.draw(_CONFIG.value, _WORKDIR.value))


if __name__ == '__main__':
  command_line.run(main, wrong, defaults=sweep_config.skeleton,
                   more_words=lambda: bool(_RUNS.present))
