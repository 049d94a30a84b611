"""Compares every loss with hand-computed values, SciPy in float64, and finite differences."""

import functools
import math
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads
from scipy import special

from cudfkd_jax.objectives import losses

examples = functools.partial(hypothesis.settings, deadline=None, derandomize=True)
logit_pairs = hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(-30.0, 30.0))
temperatures = st.sampled_from([1.0, 3.0, 20.0])

# Softmax of these is [1/2, 1/4, 1/4] and [1/4, 1/2, 1/4] at temperature 1.
HALVES_T = np.log([[2.0, 1.0, 1.0]])
HALVES_S = np.log([[1.0, 2.0, 1.0]])

# Compiled as a whole, for any temperature.
kl_divergence = jax.jit(losses.kl_divergence)
js_divergence = jax.jit(losses.js_divergence)
js_divergence_released = jax.jit(losses.js_divergence_released)


class Statistics(NamedTuple):
    mean: jax.Array
    var: jax.Array
    running_mean: jax.Array
    running_var: jax.Array


def random_logits(rows=5, classes=7, seed=0, scale=3.0):
    return scale * np.random.default_rng(seed).normal(size=(2, rows, classes))


def scipy_kl(p, q):
    return special.rel_entr(p, q).sum(-1)


def scipy_js(p, q):
    m = (p + q) / 2
    return (scipy_kl(p, m) + scipy_kl(q, m)) / 2


def test_divergences_by_hand():
    t, s = HALVES_T, HALVES_S
    # ½ ln 2 + ¼ ln ½ = ¼ ln 2
    np.testing.assert_allclose(kl_divergence(t, s, 1.0), [math.log(2) / 4], rtol=1e-6)
    # M = [3/8, 3/8, 1/4]: ½ ln(4/3) + ¼ ln(2/3), for both sides
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)
    np.testing.assert_allclose(js_divergence(t, s, 1.0), [expected], rtol=1e-6)
    # Σ M (ln M − ½ ln P − ½ ln Q): twice 3/8 · (ln 3/8 − ½ ln 1/8)
    expected = 0.75 * (math.log(3 / 8) - 0.5 * math.log(1 / 8))
    np.testing.assert_allclose(js_divergence_released(t, s, 1.0), [expected], rtol=1e-5)
    # |ln 2 − 0|, |0 − ln 2|, 0
    np.testing.assert_allclose(jax.jit(losses.l1_distance)(t, s), [2 * math.log(2) / 3], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 20.0])
def test_divergences_equal_scipys(temperature):
    t, s = random_logits()
    p, q = special.softmax(t / temperature, -1), special.softmax(s / temperature, -1)
    with jax.enable_x64(True):
        kl = kl_divergence(t, s, temperature)
        js = js_divergence(t, s, temperature)
    assert kl.shape == js.shape == (5,)
    np.testing.assert_allclose(kl, temperature**2 * scipy_kl(p, q), rtol=1e-11)
    np.testing.assert_allclose(js, temperature**2 * scipy_js(p, q), rtol=1e-11)


def test_temperature_squared_keeps_the_scale_of_the_divergence():
    # For T → ∞, T²·KL tends to half the variance of z_t − z_s over the classes (Hinton et al., 2015).
    t, s = random_logits()
    with jax.enable_x64(True):
        kl = kl_divergence(t, s, 1e4)
    np.testing.assert_allclose(kl, (t - s).var(-1) / 2, rtol=1e-2)


def test_released_js_clamps_all_three_distributions():
    # P = [1, 0], Q = [0, 1], M = [½, ½]: clamped P and Q are [.99, .01] and back.
    t, s = np.array([[100.0, 0.0]]), np.array([[0.0, 100.0]])
    expected = math.log(0.5) - 0.5 * (math.log(0.99) + math.log(0.01))
    np.testing.assert_allclose(js_divergence_released(t, s, 1.0), [expected], rtol=1e-5)
    # Equal and certain: M = [1, 0] is clamped like P and Q, so JS is 0.
    np.testing.assert_allclose(js_divergence_released(t, t, 1.0), [0.0], atol=1e-6)
    # No T²: at T = 50 the distributions are softmax([2, 0]) and its mirror, inside the clamp.
    p = special.softmax([2.0, 0.0])
    expected = math.log(0.5) - 0.5 * np.log(p).sum()
    np.testing.assert_allclose(js_divergence_released(t, s, 50.0), [expected], rtol=1e-5)


@examples(max_examples=80)
@hypothesis.given(logits=logit_pairs, temperature=temperatures)
def test_bounds_and_symmetry_of_the_divergences(logits, temperature):
    scale = temperature**2
    t, s = logits.astype(np.float32)
    kl = np.asarray(kl_divergence(t, s, temperature))
    js = np.asarray(js_divergence(t, s, temperature))
    assert np.all(kl >= -2e-6 * scale)
    assert np.all(js >= 0)
    assert np.all(js <= scale * math.log(2) * (1 + 1e-5))
    np.testing.assert_array_equal(js, js_divergence(s, t, temperature))
    np.testing.assert_array_equal(js_divergence(t, t, temperature), np.zeros(3))


def test_js_of_nearly_equal_outputs_keeps_its_digits_in_float32():
    t = np.array([[4.0, 1.0, -2.0, 0.5]])
    s = t + np.array([[1e-3, 0.0, -1e-3, 0.0]])
    exact = scipy_js(special.softmax(t, -1), special.softmax(s, -1))
    actual = js_divergence(t.astype(np.float32), s.astype(np.float32), 1.0)
    np.testing.assert_allclose(actual, exact, rtol=2e-3)  # the textbook form is off by a fifth here


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(divergence, t, s):
    value, pull = jax.vjp(lambda a, b: divergence(a, b, 3.0), t, s)
    return value, *pull(jnp.ones_like(value))


@pytest.mark.parametrize("gap", [0.0, 1e-6, 2.0, 50.0, 1e4])
def test_divergences_of_extreme_logits_are_finite_with_their_gradients(gap):
    t = np.array([[gap, 0.0, -gap]], np.float32)
    s = np.array([[-gap, gap, 0.0]], np.float32)
    for divergence in (losses.kl_divergence, losses.js_divergence, losses.js_divergence_released):
        value, *gradients = value_and_gradients(divergence, t, s)
        assert np.all(np.isfinite(value))
        assert all(np.all(np.isfinite(g)) for g in gradients)


def check_gradients(loss, *arguments):
    check_grads(jax.jit(loss), tuple(map(jnp.asarray, arguments)), order=1, modes=("rev",))


@pytest.mark.parametrize("divergence", [losses.kl_divergence, losses.js_divergence, losses.js_divergence_released])
def test_gradients_of_the_divergences_by_finite_differences(divergence):
    t, s = random_logits(rows=3, classes=4, scale=1.5)
    with jax.enable_x64(True):
        check_gradients(lambda a, b: divergence(a, b, 3.0), t, s)


def test_gradient_of_kl_is_the_difference_of_the_softened_outputs():
    # d/dz_s of T²·KL is T·(softmax(z_s/T) − softmax(z_t/T)).
    t, s = random_logits()
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x: losses.kl_divergence(t, x, 5.0).sum()))(s)
    np.testing.assert_allclose(gradient, 5 * (special.softmax(s / 5, -1) - special.softmax(t / 5, -1)), rtol=1e-9)


def test_gradients_of_the_other_losses_by_finite_differences():
    t, s = random_logits(rows=3, classes=4, scale=1.5)
    mean, var, running_mean, running_var = np.random.default_rng(1).normal(size=(4, 6)) ** 2
    with jax.enable_x64(True):
        check_gradients(losses.l1_distance, t, s)
        check_gradients(losses.confident_class_loss, t)
        check_gradients(losses.class_balance_loss, special.softmax(t, -1).mean(0))
        check_gradients(lambda m, v: losses.bn_alignment([Statistics(m, v, running_mean, running_var)]), mean, var)


def test_cross_entropy_and_confidence_by_hand():
    logits = np.log(np.array([[2.0, 1.0, 1.0], [1.0, 3.0, 4.0]]))
    expected = [math.log(4), math.log(2)]  # probabilities ¼ and ½
    np.testing.assert_allclose(jax.jit(losses.cross_entropy)(logits, np.array([1, 2])), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(losses.confident_class_loss)(logits), [math.log(2)] * 2, rtol=1e-6)


def test_confidence_has_the_gradient_of_a_fixed_label():
    logits = np.array([[1.0, 3.0, 0.0]])
    gradient = jax.jit(jax.grad(lambda x: losses.confident_class_loss(x).sum()))(logits)
    np.testing.assert_allclose(gradient, special.softmax(logits, -1) - np.array([[0, 1, 0]]), atol=1e-6)


def test_class_balance_is_negative_entropy_and_safe_for_an_absent_class():
    uniform = np.full(10, 0.1)
    np.testing.assert_allclose(jax.jit(losses.class_balance_loss)(uniform), -math.log(10), rtol=1e-6)
    one_class = np.array([1.0, 0.0])
    value, gradient = jax.jit(jax.value_and_grad(losses.class_balance_loss))(one_class)
    assert value == pytest.approx(0.0, abs=1e-6)
    # ln(0 + 1e-8): the gradient towards the absent class is large but finite
    np.testing.assert_allclose(gradient, [1.0, math.log(1e-8)], rtol=1e-5)


def test_bn_alignment_by_hand():
    zeros, ones = np.zeros(2), np.ones(2)
    layers = [
        Statistics(mean=np.array([3.0, 4.0]), var=ones, running_mean=zeros, running_var=ones),  # 5 + 0
        Statistics(mean=ones, var=np.array([1.0, 3.0]), running_mean=zeros, running_var=ones),  # √2 + 2
    ]
    assert jax.jit(losses.bn_alignment)(layers) == pytest.approx(7 + math.sqrt(2))
    from_iterator = jax.jit(lambda layers: losses.bn_alignment(iter(layers)))
    assert from_iterator(layers) == pytest.approx(7 + math.sqrt(2))


def test_bn_alignment_of_matched_statistics_has_gradient_zero():
    ones = np.ones(3, np.float32)
    gradient = jax.jit(jax.grad(lambda m: losses.bn_alignment([Statistics(m, ones, ones, ones)])))(ones)
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_adversarial_term_counts_only_where_the_networks_agree():
    t = np.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    s = np.array([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    agree = np.array([True, False, True])

    def with_gradients(loss, t, s, **arguments):
        value, pull = jax.vjp(functools.partial(loss, **arguments), t, s)
        return value, *pull(jnp.ones_like(value))

    @jax.jit
    def with_and_without_mask(t, s):
        masked = functools.partial(with_gradients, losses.masked_adversarial, t, s)
        return (
            (masked(), with_gradients(losses.kl_divergence, t, s, temperature=3.0)),
            (
                masked(temperature=2.0, divergence=losses.js_divergence),
                with_gradients(losses.js_divergence, t, s, temperature=2.0),
            ),
        )

    (of_kl, kl), (of_js, js) = jax.device_get(with_and_without_mask(t, s))
    np.testing.assert_array_equal(of_kl[0], np.where(agree, kl[0], 0))
    np.testing.assert_array_equal(of_js[0], np.where(agree, js[0], 0))
    for gradient, full in zip(of_kl[1:], kl[1:], strict=True):
        np.testing.assert_array_equal(gradient, np.where(agree[:, None], full, 0))
        assert np.all(np.abs(gradient[agree]).max(-1) > 0)


def test_dtypes():
    @jax.jit
    def all_losses(t, s):
        row = t[0]
        return [
            losses.kl_divergence(t, s, 2.0),
            losses.l1_distance(t, s),
            losses.js_divergence(t, s, 2.0),
            losses.js_divergence_released(t, s, 2.0),
            losses.masked_adversarial(t, s),
            losses.confident_class_loss(t),
            losses.class_balance_loss(jnp.abs(row)),
            losses.bn_alignment([Statistics(row, row, row + 1, row + 1)]),
            losses.cross_entropy(t, jnp.zeros(5, jnp.int32)),
        ]

    with jax.enable_x64(True):
        for given, expected in (("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")):
            assert {str(x.dtype) for x in all_losses(*random_logits().astype(jnp.dtype(given)))} == {expected}
