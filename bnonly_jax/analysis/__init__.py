"""Looks into a trained network: gamma and beta, small gammas, silent ReLUs, features, likeness.

From Python, for example what a network does without its small gammas:

  from bnonly_jax import analysis

  run = analysis.load('runs/digits')
  params = run.variables['params']
  trained, zeroed = analysis.evaluate(run, params, analysis.zero_small(params, 0.01))
"""

from bnonly_jax.analysis.activations import features
from bnonly_jax.analysis.activations import image_batches
from bnonly_jax.analysis.activations import layer_names
from bnonly_jax.analysis.evaluation import evaluate
from bnonly_jax.analysis.evaluation import silent_relus
from bnonly_jax.analysis.evaluation import thresholded
from bnonly_jax.analysis.hessian import largest_eigenvalue
from bnonly_jax.analysis.hessian import sharpness
from bnonly_jax.analysis.loading import load
from bnonly_jax.analysis.loading import Loaded
from bnonly_jax.analysis.probe import linear_probe
from bnonly_jax.analysis.similarity import by_layer
from bnonly_jax.analysis.similarity import cka
from bnonly_jax.analysis.tables import beta_table
from bnonly_jax.analysis.tables import gamma_table
from bnonly_jax.analysis.tables import relu_table
from bnonly_jax.analysis.tables import THRESHOLDS
from bnonly_jax.analysis.tables import zero_small
from bnonly_jax.analysis.writing import analyse
from bnonly_jax.analysis.writing import file_name
from bnonly_jax.analysis.writing import write_cka
from bnonly_jax.analysis.writing import write_probe
from bnonly_jax.analysis.writing import write_sharpness

__all__ = ['analyse', 'beta_table', 'by_layer', 'cka', 'evaluate', 'features', 'file_name',
           'gamma_table', 'image_batches', 'largest_eigenvalue', 'layer_names', 'linear_probe',
           'load', 'Loaded', 'relu_table', 'sharpness', 'silent_relus', 'THRESHOLDS', 'thresholded',
           'write_cka', 'write_probe', 'write_sharpness', 'zero_small']
