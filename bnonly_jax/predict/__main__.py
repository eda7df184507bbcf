r"""Says which classes a trained network finds in image files.

  python -m bnonly_jax.predict net.bnonly IMAGE... [--top=5] [--trust_code]
  python -m bnonly_jax.predict WORKDIR IMAGE... [--top=5] [--data_dir=DIR]

The network is a file of `python -m bnonly_jax.export seed` or the folder of a run. An IMAGE is a
JPEG or PNG file, or a folder: the output then is CSV. Images are decoded and resized as in
evaluation. An image that cannot be read is told, and the others go on.

Exit codes: 0 all images were read, 1 an error, 4 some images were left out.
"""

import sys

from absl import flags

from bnonly_jax import command_line

_TOP = flags.DEFINE_integer('top', 5, 'How many classes to print.', lower_bound=1)
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'WORKDIR: folder of the prepared data sets; default: where they were.')
_TRUST_CODE = flags.DEFINE_bool(
    'trust_code', False, 'A file: import the network that it names as package.module:function.')


def main(*words: str) -> None:
  from bnonly_jax.config import UserError
  from bnonly_jax.predict import prediction
  if len(words) < 2:
    raise UserError('a network and an image are needed. Try python -m bnonly_jax.predict net.bnonly'
                    ' IMAGE..., or --help.')
  bad = prediction.predict(words[0], words[1:], _TOP.value, _DATA_DIR.value, _TRUST_CODE.value)
  sys.exit(4 if bad else 0)


if __name__ == '__main__':
  command_line.run(main, lambda: '', more_words=lambda: True)
