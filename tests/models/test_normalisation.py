"""Compares batch statistics and BatchNorm in the form for oneDNN with flax in float32."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cudfkd_jax.models import normalisation
from cudfkd_jax.models.capture import BN, apply
from cudfkd_jax.models.normalisation import column_sums, moments


@pytest.mark.parametrize("shape", [(6, 7, 5, 4), (32, 8, 8, 16), (3, 5), (16, 1), (2, 5, 3, 2)])
def test_sums_hold_every_row_once(shape):
    """Covers the remainder when the rows are not a multiple of the parts."""
    a, b = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    exact = a.astype(np.float64) * b.astype(np.float64)
    found = jax.jit(functools.partial(column_sums, jnp.multiply))(a, b)
    np.testing.assert_allclose(found, exact.reshape(-1, shape[-1]).sum(0), rtol=1e-5, atol=1e-5)


def test_a_large_mean_does_not_drown_the_variance():
    x = (1000 + np.random.default_rng(0).standard_normal((64, 8, 8, 3))).astype(np.float32)
    mean, var = jax.jit(moments)(x)
    np.testing.assert_allclose(mean, np.mean(x, (0, 1, 2), np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, np.var(np.asarray(x, np.float64), (0, 1, 2)), rtol=1e-3)


class Norm(nn.Module):
    scale: bool = True
    mode: str = "attribute"

    @nn.compact
    def __call__(self, x, train: bool):
        options = {
            "use_scale": self.scale,
            "momentum": 0.9,
            "dtype": x.dtype,
            "scale_init": nn.initializers.normal(1.0),
        }
        if self.mode == "attribute":
            return nn.BatchNorm(use_running_average=not train, **options)(x)
        return nn.BatchNorm(**options)(x, not train)


@pytest.mark.parametrize("module", [Norm(), Norm(scale=False), Norm(mode="argument")], ids=str)
def test_training_in_bfloat16_is_that_of_flax_in_float32(module, monkeypatch):
    monkeypatch.setattr(normalisation, "in_use", lambda dtype: jnp.dtype(dtype) == jnp.bfloat16)
    random = np.random.default_rng(1)
    x = (3 * random.standard_normal((6, 7, 5, 4)) + 5).astype(jnp.bfloat16)
    weights = random.standard_normal(x.shape, np.float32)
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), x)

    def objective(x, params):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        out = apply(module, given, x, train=True, capture=(BN,))
        captured = sum(jnp.sum(jnp.sin(layer.mean)) + jnp.sum(layer.var**2) for layer in out.bn)
        return jnp.sum(out.value.astype(jnp.float32) * weights) + captured, (out.value, out.batch_stats)

    differentiate = jax.jit(jax.grad(objective, (0, 1), has_aux=True))
    params = variables.get("params", {})
    ours, exact = differentiate(x, params), differentiate(x.astype(np.float32), params)
    assert ours[0][0].dtype == ours[1][0].dtype == jnp.bfloat16

    def close(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-7 * np.abs(b).max())

    jax.tree.map(close, ours, exact)
    # Running statistics stay float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours[1][1], exact[1][1])
