import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax.data import device

IMAGES = np.random.default_rng(0).integers(1, 256, (500, 6, 7, 3)).astype(np.uint8)


@pytest.mark.parametrize('mean, std', [((0.1, 0.5, 0.9), (0.2, 0.3, 0.4)), ((0.5,), (0.25,))])
def test_normalisation(mean, std):
  out = device.normalise(jnp.asarray(IMAGES), device.Preparation((6, 7, 3), mean=mean, std=std))
  np.testing.assert_allclose(out, (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-6)
  assert out.dtype == jnp.float32
