"""What devices can do at most."""

from typing import NamedTuple


class Peak(NamedTuple):
  """What a device can do at most."""
  flops: float  # a second, bfloat16, dense
  memory: float  # bytes a second
  link: float  # bytes a second into the interconnect, one direction


# "TPU v5e" of the Cloud TPU documentation: 197 TFLOP/s, 819 GB/s, 1,600 Gbit/s between chips, both
# directions together. NVIDIA's H100 SXM data sheet: 989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both.
PEAKS = {'TPU v5 lite': Peak(197e12, 819e9, 100e9),
         'NVIDIA H100 80GB HBM3': Peak(989e12, 3.35e12, 450e9)}
