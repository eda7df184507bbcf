"""Data sets by name, through TFDS and without TensorFlow; what a run takes its images from."""

from bnonly_jax.data.sets import directory
from bnonly_jax.data.sets import find
from bnonly_jax.data.sets import find_or_assume
from bnonly_jax.data.sets import Images
from bnonly_jax.data.sets import in_use
from bnonly_jax.data.sets import Info
from bnonly_jax.data.sets import Source
from bnonly_jax.data.sets import summary
from bnonly_jax.data.sets import versions

__all__ = ['directory', 'find', 'find_or_assume', 'Images', 'in_use', 'Info', 'Source',
           'summary', 'versions']
