"""Damages a file of `export seed` in many ways, and reads each: python fuzz.py FILE NUMBER FOLDER.

Each case must give an error of one line or, where the damage is to nothing that counts, the very
network. Prints as JSON how many did which, and the most memory that the process took.
"""

import hashlib
import json
import pathlib
import struct
import sys
import time

import jax
import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.export import loading

VALUES = [None, True, -1, 0, 1, 2**31, 10**30, 1e308, 'x' * 1000, '', [], {}, [[]], [0, 0, 0],
          [4096, 4096, 3], 'cifar_resnet999998', 'cifar_resnet866x9999', 'imagenet_resnet200x99999',
          'cifar_resnet' + '9' * 40 + '2', 'os:system', 'random:99999999999', 'random:2', 'all',
          '[["(a+)+$", true]]', 'bfloat16', 'orthogonal', 'group', 'none', 'layer', '\x1b[2J']


def sign(tensors: bytes, header: dict, recipe: str) -> bytes:
  """A file with a header whose recipe is as it says."""
  header['__metadata__'] = {'recipe': recipe,
                            'sha256': hashlib.sha256(recipe.encode()).hexdigest()}
  text = json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + tensors


def mutate(content: bytes, rng: np.random.Generator) -> tuple[bytes, bool]:
  """Returns a damaged file, and whether it says of itself that it is whole."""
  kind, place = rng.integers(20), int(rng.integers(len(content)))
  length = struct.unpack('<Q', content[:8])[0]
  if kind < 8:  # bytes, most of them in the header
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 6)):
      within = len(content) if rng.random() < 0.5 else length + 8
      damaged[rng.integers(within)] = rng.integers(256)
    return bytes(damaged), False
  if kind < 12:
    return content[:place], False
  if kind < 15:
    return content[:place] + rng.bytes(int(rng.integers(1, 99))) + content[place:], False
  if kind < 17:
    return content[:place] + content[place + int(rng.integers(1, 99)):], False
  if kind < 18:
    return struct.pack('<Q', int(2 ** rng.uniform(0, 64)) % 2**64) + content[8:], False
  header = json.loads(content[8:8 + length])
  recipe = json.loads(header['__metadata__']['recipe'])
  if kind < 19:  # a recipe of another kind altogether
    text = str(rng.choice(['[' * 10**5, '{"a":' * 10**4, '9' * 10**4, 'null', '{}', '[NaN]']))
    return sign(content[8 + length:], header, text), True
  place = recipe['config'] if rng.random() < 0.7 else recipe
  name = str(rng.choice(sorted(place)))
  place[name] = VALUES[rng.integers(len(VALUES))]
  return sign(content[8 + length:], header, json.dumps(recipe)), True


def fuzz(file: pathlib.Path, number: int, folder: pathlib.Path, seed: int = 0) -> dict[str, float]:
  """Reads `number` damaged copies of a file."""
  content, whole, rng = file.read_bytes(), loading.load(file), np.random.default_rng(seed)
  counts, slowest, damaged = {'refused': 0, 'right': 0, 'other': 0}, 0.0, folder / 'damaged.bnonly'
  for case in range(number):
    changed, signed = mutate(content, rng)
    damaged.unlink(missing_ok=True)  # a file that is still mapped must not change
    damaged.write_bytes(changed)
    start = time.monotonic()
    try:
      found = loading.load(damaged)
    except UserError as error:
      assert '\n' not in str(error) and len(str(error)) < 800, (case, str(error))
      counts['refused'] += 1
    else:
      equal = (found.config == whole.config and found.info == whole.info and all(
          np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(
              whole.variables), strict=True)))
      assert equal or signed, case
      counts['right' if equal else 'other'] += 1
    slowest = max(slowest, time.monotonic() - start)
  # Not getrusage: what it says counts the process that started this one, too.
  status = pathlib.Path('/proc/self/status').read_text()
  memory = int(status.partition('VmHWM:')[2].split()[0]) * 1024
  return {**counts, 'slowest': slowest, 'memory': memory}


if __name__ == '__main__':
  print(json.dumps(fuzz(pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))))
