"""All the runs of a figure, and the figure drawn from them.

  from bnonly_jax.sweep.config import base, Point, sweep  # what a sweep's config file is made of
  from bnonly_jax.sweep.drawing import draw  # figures, tables and report of the runs there are
  from bnonly_jax.sweep.rows import rows  # the numbers that a panel shows
  from bnonly_jax.sweep.runs import progress, runs  # the runs, and how far each one is
  from bnonly_jax.sweep.training import run_missing  # trains what is not done
"""
