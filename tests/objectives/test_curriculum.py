"""Tests of self-paced weights, their objective and schedules, against hand-computed values and SciPy."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import integrate

from cudfkd_jax.models.optimisers import cosine_learning_rate
from cudfkd_jax.objectives import curriculum
from cudfkd_jax.runtime.errors import UserError

STRATEGIES = curriculum.STRATEGIES
examples = functools.partial(hypothesis.settings, deadline=None, derandomize=True)
lams = st.floats(0.05, 30.0)
# XLA flushes subnormal numbers to 0, so losses exclude them.
losses_of_size_8 = st.lists(st.floats(0.0, 60.0, allow_subnormal=False), min_size=8, max_size=8)


# Compiled as a whole for each strategy, for any λ.
by_strategy = functools.partial(jax.jit, static_argnums=0)
spl_weights, spl_regulariser = by_strategy(curriculum.spl_weights), by_strategy(curriculum.spl_regulariser)
latent_objective, majoriser = by_strategy(curriculum.latent_objective), by_strategy(curriculum.majoriser)


def literal_v(strategy: str, loss: float, lam: float) -> float:
    """Computes the formulas of §V-E as printed."""
    return {
        "none": 1.0,
        "hard": float(loss < lam),
        "soft": float(loss < lam) * (1 - loss / lam),
        "log": (1 + math.exp(-lam)) / (1 + math.exp(loss - lam)),
    }[strategy]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("none", [1, 1, 1, 1]),
        ("hard", [1, 1, 0, 0]),
        ("soft", [1, 0.5, 0, 0]),
        ("log", [1, 0.8299966, 0.5676676, 0.3053387]),
    ],
)
def test_weights_at_lambda_2(strategy, expected):
    losses = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    np.testing.assert_allclose(spl_weights(strategy, losses, 2.0), expected, rtol=3e-7)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("none", [0, 0, 0]),
        ("hard", [0, -1, -2]),
        ("soft", [0, -0.75, -1]),
        # μ ln μ + v ln v − 2v with μ = 1.1353353, 0.6353353, 0.1353353.
        ("log", [0.1441058, -1.6347632, -2.2706706]),
    ],
)
def test_regulariser_at_lambda_2(strategy, expected):
    v = np.array([0.0, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(spl_regulariser(strategy, v, 2.0), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("strategy", STRATEGIES)
@examples(max_examples=60)
@hypothesis.given(losses=losses_of_size_8, lam=lams)
def test_weights_lie_in_0_1_and_fall_with_the_loss(strategy, losses, lam):
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(True):
            v = np.asarray(spl_weights(strategy, np.array(sorted(losses), dtype), lam))
        assert v.dtype == dtype
        assert np.all((v >= 0) & (v <= 1))
        # A rounding step of the sigmoid is not an increase.
        assert np.all(np.diff(v) <= 2 * np.finfo(dtype).eps)
    np.testing.assert_allclose(v, [literal_v(strategy, x, lam) for x in sorted(losses)], rtol=1e-12)


@pytest.mark.parametrize("strategy", ["hard", "soft", "log"])
@examples(max_examples=60)
@hypothesis.given(losses=losses_of_size_8, lam=lams)
def test_weights_minimise_the_spl_objective(strategy, losses, lam):
    """Minimises v·L + g(λ, v), Eq. 1, over a fine grid of v in [0, 1]."""
    grid = np.linspace(0.0, 1.0, 2001)
    L = np.asarray(losses)
    with jax.enable_x64(True):
        g_of_grid = np.asarray(spl_regulariser(strategy, grid, lam))
        v = spl_weights(strategy, L, lam)
        g_of_v = np.asarray(spl_regulariser(strategy, v, lam))
    v = np.asarray(v)
    on_grid = grid * L[:, None] + g_of_grid
    assert np.all(v * L + g_of_v <= on_grid.min(-1) + 1e-12 * (1 + lam + L))
    if strategy != "hard":  # strictly convex in v, so the minimiser is unique
        assert np.all(np.abs(grid[on_grid.argmin(-1)] - v) <= 1 / 2000)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("loss", "lam"), [(0.0, 2.0), (0.7, 2.0), (2.5, 2.0), (40.0, 2.0), (3.0, 12.0), (0.3, 0.1)]
)
def test_latent_objective_is_the_integral_of_the_weights(strategy, loss, lam):
    expected, _ = integrate.quad(lambda x: literal_v(strategy, x, lam), 0.0, loss, points=[min(lam, loss)])
    with jax.enable_x64(True):
        actual = latent_objective(strategy, np.float64(loss), lam)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_slopes(function, strategy, losses, lam):
    value, pull = jax.vjp(lambda x: function(strategy, x, lam), losses)
    return value, *pull(jnp.ones_like(losses))


@pytest.mark.parametrize("strategy", STRATEGIES)
@examples(max_examples=40)
@hypothesis.given(losses=losses_of_size_8, lam=lams)
def test_derivative_of_the_latent_objective_is_the_weight(strategy, losses, lam):
    hypothesis.assume(all(loss not in (0.0, lam) for loss in losses))  # one-sided there
    with jax.enable_x64(True):
        L = np.asarray(losses)
        _, slope = value_and_slopes(curriculum.latent_objective, strategy, L, lam)
        v = spl_weights(strategy, L, lam)
    np.testing.assert_allclose(slope, v, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("strategy", STRATEGIES)
@examples(max_examples=60)
@hypothesis.given(losses=losses_of_size_8, lam=lams)
def test_majoriser_bounds_the_latent_objective_and_touches_it(strategy, losses, lam):
    """Checks Eq. 8 for all pairs of a loss and a reference."""
    with jax.enable_x64(True):
        at, ref = np.meshgrid(losses, losses)
        F = np.asarray(latent_objective(strategy, at, lam))
        Q = np.asarray(majoriser(strategy, at, ref, lam))
    assert np.all(F <= Q + 1e-11)
    np.testing.assert_allclose(np.diagonal(Q), np.diagonal(F), rtol=1e-14)


def test_majoriser_by_hand():
    # soft, λ = 2, tangent at 1: F = 0.75, slope 0.5.
    q = majoriser("soft", np.array([0.0, 1.0, 3.0]), np.ones(3), 2.0)
    np.testing.assert_allclose(q, [0.25, 0.75, 1.75], rtol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lam", [1e-3, 2.0, 88.0, 1e4, 1e30])
def test_extreme_losses_stay_finite_with_their_gradients(strategy, lam):
    losses = np.array([0.0, 1e-30, 1e-3, 88.0, 1e4, 1e30], np.float32)
    for function in (curriculum.spl_weights, curriculum.latent_objective):
        value, gradient = value_and_slopes(function, strategy, losses, lam)
        assert np.all(np.isfinite(value))
        assert np.all(np.isfinite(gradient))
    v = spl_weights(strategy, losses, lam)
    assert np.all(np.isfinite(spl_regulariser(strategy, v, lam)))


def test_latent_objective_saturates_at_the_area_under_the_weights():
    huge = np.array([1e20], np.float32)
    assert latent_objective("hard", huge, 2.0) == pytest.approx(2.0)
    assert latent_objective("soft", huge, 2.0) == pytest.approx(1.0)
    # (1 + e⁻²)·ln(1 + e²)
    assert latent_objective("log", huge, 2.0) == pytest.approx(2.4147747, rel=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loss_rounded_below_zero_weighs_one(strategy):
    v = spl_weights(strategy, np.array([-4e-5], np.float32), 20.0)
    assert v == 1
    assert np.isfinite(spl_regulariser(strategy, v, 20.0))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float32_stays_float32_under_a_float64_lambda(strategy):
    with jax.enable_x64(True):
        lam = np.float64(2.0)
        losses = np.ones(3, np.float32)
        assert spl_weights(strategy, losses, lam).dtype == jnp.float32
        assert spl_regulariser(strategy, losses, lam).dtype == jnp.float32
        assert latent_objective(strategy, losses, lam).dtype == jnp.float32
        assert majoriser(strategy, losses, losses, lam).dtype == jnp.float32


def test_one_weight_per_batch_takes_a_scalar_loss():
    v = jax.jit(functools.partial(curriculum.spl_weights, "soft"))(jnp.float32(0.5), jnp.float32(2.0))
    assert v.shape == ()
    assert v == 0.75


@pytest.mark.parametrize(
    "function",
    [curriculum.spl_weights, curriculum.spl_regulariser, curriculum.latent_objective],
)
def test_an_unknown_strategy_is_refused_with_the_valid_ones(function):
    with pytest.raises(UserError, match=r"'linear'.*none, hard, soft, log"):
        function("linear", jnp.ones(2), 2.0)


def test_lambda_rises_linearly_to_its_ceiling():
    steps = jnp.array([0, 1, 1000, 100_000], jnp.int32)
    # CIFAR-10: 250 epochs of 400 steps take λ from 2 to 12.
    free = jax.jit(curriculum.lambda_schedule(2.0, 1e-4, None))(steps)
    np.testing.assert_allclose(free, [2.0, 2.0001, 2.1, 12.0], rtol=1e-6)
    capped = curriculum.lambda_schedule(2.0, 1e-4, 2.05)(steps)
    np.testing.assert_allclose(capped, [2.0, 2.0001, 2.05, 2.05], rtol=1e-6)


def alpha_by_epoch(kind, *, initial, slope, k_begin, k_end, epochs, steps_per_epoch=1):
    schedule = curriculum.adversarial_schedule(
        kind,
        initial=initial,
        slope=slope,
        k_begin=k_begin,
        k_end=k_end,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
    )
    steps = np.arange(500, dtype=np.int32) * steps_per_epoch  # always as many, so that operations compile once
    return np.asarray(schedule(steps))[:epochs]


# epochs, α, k_begin, k_end, initial; final values of the released scripts and of the linear ramp.
RAMPS = [
    (250, 0.5, 0.25, 0.75, 0.0, 62.0, 62.0),
    (250, 0.05, 0.25, 0.75, 0.5, 6.7, 6.7),
    (400, 0.35, 0.2, 0.8, 0.0, 83.65, 84.0),
    (500, 0.12, 0.2, 0.75, 0.0, 32.88, 33.0),
    (400, 0.15, 0.2, 0.75, 1.0, 33.85, 34.0),
]


@pytest.mark.parametrize(("epochs", "slope", "k_begin", "k_end", "initial", "released", "linear"), RAMPS)
def test_final_alpha_of_the_papers_runs(epochs, slope, k_begin, k_end, initial, released, linear):
    settings = {"initial": initial, "slope": slope, "k_begin": k_begin, "k_end": k_end, "epochs": epochs}
    for kind, final in (("released", released), ("linear", linear)):
        alpha = alpha_by_epoch(kind, **settings)
        assert alpha[0] == np.float32(initial)
        assert alpha[-1] == pytest.approx(final, rel=1e-6)


@pytest.mark.parametrize(("epochs", "slope", "k_begin", "k_end", "initial", "released", "linear"), RAMPS)
def test_released_alpha_replays_the_released_loop(epochs, slope, k_begin, k_end, initial, released, linear):
    alpha, expected = initial, []
    for epoch in range(epochs):
        expected.append(alpha)
        if int(k_begin * epochs) < epoch < int(k_end * epochs):
            alpha += slope
    actual = alpha_by_epoch("released", initial=initial, slope=slope, k_begin=k_begin, k_end=k_end, epochs=epochs)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_alpha_of_each_kind_epoch_by_epoch():
    settings = {"initial": 1.0, "slope": 0.5, "k_begin": 0.2, "k_end": 0.7, "epochs": 10}
    linear = [1, 1, 1, 1.5, 2, 2.5, 3, 3.5, 3.5, 3.5]
    np.testing.assert_allclose(alpha_by_epoch("linear", **settings), linear)
    released = [1, 1, 1, 1, 1.5, 2, 2.5, 3, 3, 3]  # one epoch later; nothing added at epoch 7
    np.testing.assert_allclose(alpha_by_epoch("released", **settings), released)
    eq17 = [1, 1, 1, 1.5, 2, 2.5, 3, 3.5, 3.5, 3.5]  # 0.5·epoch after epoch 2
    np.testing.assert_allclose(alpha_by_epoch("eq17", **settings), eq17)
    np.testing.assert_allclose(alpha_by_epoch("constant", **settings), np.ones(10))


def test_eq17_jumps_at_k_begin_and_stays_at_or_above_its_start():
    settings = {"slope": 0.5, "k_begin": 0.25, "k_end": 0.75, "epochs": 250}
    alpha = alpha_by_epoch("eq17", initial=0.0, **settings)
    assert (alpha[62], alpha[63], alpha[187], alpha[188], alpha[249]) == (0, 31.5, 93.5, 93.5, 93.5)
    assert alpha_by_epoch("eq17", initial=40.0, **settings).min() == 40


def test_alpha_counts_whole_epochs_of_steps():
    schedule = curriculum.adversarial_schedule(
        "linear", initial=0.0, slope=1.0, k_begin=0.25, k_end=0.75, epochs=4, steps_per_epoch=400
    )
    steps = jnp.array([0, 799, 800, 1199, 1200, 1599, 10_000], jnp.int32)
    np.testing.assert_array_equal(jax.jit(schedule)(steps), [0, 0, 1, 1, 2, 2, 2])


def test_linear_alpha_is_robust_to_the_rounding_of_a_fraction():
    # 0.29 · 100 is 28.999999999999996 in floating point.
    settings = {"initial": 0.0, "slope": 1.0, "k_begin": 0.07, "k_end": 0.29, "epochs": 100}
    assert alpha_by_epoch("linear", **settings)[-1] == 22


@examples(max_examples=150)
@hypothesis.given(
    kind=st.sampled_from(curriculum.ALPHA_SCHEDULES),
    initial=st.floats(0.0, 5.0, allow_subnormal=False, width=32),
    slope=st.floats(0.0, 2.0, allow_subnormal=False, width=32),
    fractions=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    epochs=st.integers(1, 200),
)
def test_alpha_never_decreases_and_never_falls_below_its_start(kind, initial, slope, fractions, epochs):
    k_begin, k_end = sorted(fractions)
    schedule = curriculum.adversarial_schedule(
        kind,
        initial=initial,
        slope=slope,
        k_begin=k_begin,
        k_end=k_end,
        epochs=epochs,
        steps_per_epoch=3,
    )
    alpha = np.asarray(schedule(jnp.arange(620)))  # beyond the last epoch as well
    assert np.all(np.diff(alpha) >= 0)
    assert alpha[0] >= initial


@examples(max_examples=60)
@hypothesis.given(
    lambda_0=st.floats(0.01, 5.0),
    slope=st.floats(0.0, 2.0**-7, allow_subnormal=False, width=32),
    maximum=st.none() | st.floats(5.0, 20.0),
)
def test_lambda_never_decreases_nor_passes_its_ceiling(lambda_0, slope, maximum):
    lam = np.asarray(curriculum.lambda_schedule(lambda_0, slope, maximum)(jnp.arange(5000)))
    assert lam[0] == np.float32(lambda_0)
    assert np.all(np.diff(lam) >= 0)
    assert maximum is None or lam[-1] <= np.float32(maximum)


def test_an_unknown_alpha_schedule_is_refused_with_the_valid_ones():
    with pytest.raises(UserError, match=r"'cosine'.*linear, released, eq17, constant"):
        alpha_by_epoch("cosine", initial=0.0, slope=1.0, k_begin=0.2, k_end=0.8, epochs=10)


@pytest.mark.parametrize("end", [0.0, 2e-4])
def test_learning_rate_follows_a_cosine_once_per_epoch(end):
    schedule = jax.jit(cosine_learning_rate(0.1, 250, 400, end=end))
    epochs = np.arange(251)
    expected = end + (0.1 - end) / 2 * (1 + np.cos(np.pi * epochs / 250))
    for offset in (0, 399):
        np.testing.assert_allclose(schedule(jnp.asarray(epochs * 400 + offset)), expected, rtol=1e-5, atol=1e-8)
