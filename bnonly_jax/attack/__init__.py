"""What trained networks withstand: images changed a little, against them.

  from bnonly_jax import analysis, attack

  run = analysis.load('runs/digits')
  clean, changed = attack.accuracies(run, (0.0, 8 / 255), steps=10)
"""

from bnonly_jax.attack.gradient import accuracies
from bnonly_jax.attack.gradient import perturb
from bnonly_jax.attack.gradient import STEP
from bnonly_jax.attack.writing import attack
from bnonly_jax.attack.writing import parse_eps

__all__ = ['accuracies', 'attack', 'parse_eps', 'perturb', 'STEP']
