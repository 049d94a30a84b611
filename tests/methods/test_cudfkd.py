"""Tests of CuDFKD's adversarial term, Eq. 4: the mask, and JS as released."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from scipy.special import softmax

from cudfkd_jax.config import validate
from cudfkd_jax.methods import METHODS, cudfkd
from cudfkd_jax.models.capture import Outputs
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.terms import STUDENT, Synthetic
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.runtime.errors import UserError

_RNG = np.random.default_rng(0)
TEACHER, AGREEING = (np.asarray(_RNG.normal(size=(8, 5)), np.float32) for _ in range(2))
AGREEING[:4] = TEACHER[:4] / 2  # the student predicts the same class for these
AGREEING[4:] = -TEACHER[4:]  # and another class for these
TEMPERATURE = 3.0


def _term(adversarial_loss: str, adversarial_mask: str, *, released_js: bool = False):
    terms = cudfkd.synthesis_terms(
        alpha_adv=optax.constant_schedule(0.5),
        adversarial_loss=adversarial_loss,
        adversarial_mask=adversarial_mask,
        adversarial_temperature=TEMPERATURE,
        released_js=released_js,
        bn_weight=0.0,
        class_weight=0.0,
        balance_weight=0.0,
        temperature=20.0,
    )
    (term,) = terms
    assert (term.name, term.needs, term.weight_name, term.weight(0)) == (
        "adversarial_loss",
        (STUDENT,),
        "alpha_adv",
        0.5,
    )
    return term


def _value(term, teacher=TEACHER, student=AGREEING):
    return jax.jit(_traced(term))(teacher, student)


def _traced(term):
    def value(teacher, student):
        outputs = (Outputs(logits, {}) for logits in (teacher, student))
        return term.value(Synthetic(jnp.zeros((8, 1, 1, 1)), *outputs), SINGLE)

    return value


@pytest.mark.parametrize("name", ["kl", "js"])
def test_the_mask_counts_the_images_of_one_class_and_none_counts_all(name):
    divergence = {"kl": losses.kl_divergence, "js": losses.js_divergence}[name]
    each = np.asarray(jax.jit(divergence)(TEACHER, AGREEING, TEMPERATURE))
    np.testing.assert_allclose(_value(_term(name, "agreement")), -each[:4].sum() / 8, rtol=1e-6)
    np.testing.assert_allclose(_value(_term(name, "none")), -each.mean(), rtol=1e-6)


@pytest.mark.parametrize("mask", cudfkd.MASKS)
def test_released_js_is_one_minus_the_clamped_mean_over_all_images(mask):
    p, q = softmax(TEACHER / TEMPERATURE, axis=1), softmax(AGREEING / TEMPERATURE, axis=1)
    p, q, m = (np.clip(x, 0.01, 0.99) for x in (p, q, (p + q) / 2))
    js = 0.5 * np.mean(np.sum(m * np.log(m / p) + m * np.log(m / q), axis=1))
    assert 0 < js < 1
    np.testing.assert_allclose(_value(_term("js", mask, released_js=True)), 1 - js, rtol=1e-5)


def test_released_js_below_zero_counts_as_zero_and_moves_nothing():
    """The clamped vectors do not sum to 1, so that JS of two different ones can be negative."""
    teacher = np.full((8, 100), -20, np.float32)
    student = teacher.copy()
    teacher[:, 0], student[:, 0] = 200, 185
    assert np.mean(jax.jit(losses.js_divergence_released)(teacher, student, TEMPERATURE)) <= 0
    term = _term("js", "agreement", released_js=True)
    assert float(_value(term, teacher, student)) == 1


def test_released_kl_keeps_the_mask():
    kl = _value(_term("kl", "agreement"))
    assert _value(_term("kl", "agreement", released_js=True)) == kl != _value(_term("kl", "none"))


def test_gradients_flow_through_both_networks_whatever_the_mask():
    for mask in cudfkd.MASKS:
        gradients = jax.jit(jax.grad(_traced(_term("kl", mask)), argnums=(0, 1)))(TEACHER, AGREEING)
        for gradient in gradients:
            moved = np.abs(np.asarray(gradient)).sum(1) > 0
            np.testing.assert_array_equal(moved, [True] * 4 + [mask == "none"] * 4)


@pytest.mark.parametrize("method", METHODS)
def test_the_mask_is_refused_where_no_term_has_it(method):
    config = tiny.get_config("" if method == "cudfkd" else f"method={method}")
    config.synthesis.adversarial_mask = "none"
    if method in ("cudfkd", "adadfkd"):
        validate.check(config)
    else:
        text = rf"adversarial_mask=none is for cudfkd, adadfkd; leave it agreement for {method}"
        with pytest.raises(UserError, match=text):
            validate.check(config)
