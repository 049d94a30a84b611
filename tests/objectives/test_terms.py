"""Tests of the terms of synthesis objectives; their values are tested with the methods that use them."""

import jax.numpy as jnp
import numpy as np
import pytest

from cudfkd_jax.models.capture import Outputs
from cudfkd_jax.objectives import terms
from cudfkd_jax.objectives.terms import Synthetic
from cudfkd_jax.runtime.devices import SINGLE


@pytest.mark.parametrize("term", [terms.feature_term(1.0), terms.balance_term(1.0), terms.class_term(1.0)])
def test_terms_of_bfloat16_outputs_are_float32(term):
    """A sum over an epoch in bfloat16 would stop growing."""
    random = np.random.default_rng(0)
    outputs = Outputs(
        jnp.asarray(random.normal(size=(4, 10)), jnp.bfloat16),
        {},
        features=jnp.asarray(random.normal(size=(4, 3)), jnp.bfloat16),
    )
    found = term.value(Synthetic(jnp.zeros((4, 8, 8, 3)), outputs, None), SINGLE)
    assert found.dtype == jnp.float32
    wide = outputs._replace(value=outputs.value.astype(float), features=outputs.features.astype(float))
    np.testing.assert_allclose(found, term.value(Synthetic(None, wide, None), SINGLE), rtol=1e-5)
