"""Tests of ADI: its terms against NumPy, the step against its definition, and the kept iterate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
import rounds
from scipy.special import rel_entr, softmax

from cudfkd_jax.methods import adi
from cudfkd_jax.methods.adi import inversion_method
from cudfkd_jax.methods.memory.ring import to_uint8
from cudfkd_jax.models.capture import BN
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.inversion import InversionLoss
from cudfkd_jax.runtime.devices import SINGLE

MEAN, STD = np.array((0.5, 0.4, 0.3)), np.array((0.2, 0.3, 0.4))  # those of `nets.classifier`
PARTS = {"bn_loss": 10.0, "class_loss": 1.0, "adversarial_loss": 1.0, "tv_loss": 0.001}


def method(pool=None, *, adversarial_weight=1.0, tv_weight=0.001, divergence=adi.competition, optimiser=None):
    return inversion_method(
        pool=pool or rounds.pool(),
        num_classes=10,
        mean=tuple(MEAN),
        std=tuple(STD),
        optimiser=optimiser or optax.adam(0.1, b1=0.5, b2=0.99),
        inversion=InversionLoss(10.0, 1.0, adversarial_weight, functools.partial(divergence, temperature=3.0)),
        tv_weight=tv_weight,
        student_loss=rounds.STUDENT_LOSS,
    )


@pytest.fixture(scope="module", name="teacher")
def _teacher():
    return nets.teacher_variables()


quick_jit = functools.partial(jax.jit, compiler_options=rounds.UNOPTIMISED)


def _synthesise(made, state, key=None):
    """One step of the loop, with its networks."""
    networks = _networks(state)
    key = jax.random.key(9) if key is None else key
    step = quick_jit(lambda aux, key: made.synthesise(aux, *networks, key, state.step, SINGLE))
    return step(state.aux, key)


def _networks(state):
    return (
        functools.partial(nets.classifier(8), nets.teacher_variables()),
        functools.partial(nets.classifier(4), state.student.variables),
    )


def _tv(x):
    """Sums over individual pairs of neighbours."""
    batch, height, width, channels = x.shape
    total = 0.0
    for down, across in ((0, 1), (1, 0), (1, -1), (1, 1)):
        differences = [
            np.abs(x[b, i + down, j + across, c] - x[b, i, j, c])
            for b, i, j, c in itertools.product(range(batch), range(height), range(width), range(channels))
            if i + down < height and 0 <= j + across < width
        ]
        total += np.mean(differences)
    return total


def test_total_variation_is_the_mean_of_neighbours_in_four_directions():
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    np.testing.assert_allclose(jax.jit(adi.total_variation)(x), _tv(x), rtol=1e-5)


def test_competition_is_jensen_shannon_at_a_temperature_and_no_more():
    t, s = (np.random.default_rng(seed).normal(size=(5, 10)) * 4 for seed in (0, 1))
    p, q = softmax(t / 3, axis=1), softmax(s / 3, axis=1)
    m = (p + q) / 2
    expected = (rel_entr(p, m).sum(1) + rel_entr(q, m).sum(1)) / 2
    np.testing.assert_allclose(jax.jit(adi.competition)(t, s, 3.0), expected, rtol=1e-4)


@pytest.mark.parametrize("flip", [True, False])
def test_jitter_moves_the_whole_batch_by_up_to_an_eighth(flip):
    x = np.random.default_rng(0).normal(size=(3, 8, 16, 1)).astype(np.float32)
    jitter = jax.jit(functools.partial(adi.jitter, flip=flip))
    found = []
    for seed in range(300):
        moved = np.asarray(jitter(jax.random.key(seed), x))
        for down, across, mirrored in itertools.product((-1, 0, 1), (-2, -1, 0, 1, 2), (False, True)):
            rolled = np.roll(x, (down, across), (1, 2))
            if np.array_equal(rolled[:, :, ::-1] if mirrored else rolled, moved):
                found.append((down, across, mirrored))
    assert len(found) == 300  # each draw is one of these
    assert len(set(found)) == (30 if flip else 15)
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert counts.max() < 4 * 300 / len(counts)


def test_step_follows_the_gradient_of_the_weighted_terms_and_stays_in_range(teacher):
    """Computes the objective for every possible roll and flip; one of them must match the step."""
    made = method(optimiser=optax.sgd(1.0))
    state = rounds.initial_state(made)
    teacher_net, student_net = _networks(state)
    pixels, targets = state.aux.pixels.params, np.asarray(state.aux.targets)
    aux, metrics = _synthesise(made, state)

    def terms(pixels, down, across, mirrored):
        x = jnp.roll(pixels, (down, across), (1, 2))
        x = jnp.where(mirrored, jnp.flip(x, 2), x) * jnp.asarray(STD) + jnp.asarray(MEAN)
        seen = teacher_net(x, capture=(BN,))
        bn = sum(
            jnp.sqrt(jnp.sum((b.mean - b.running_mean) ** 2)) + jnp.sqrt(jnp.sum((b.var - b.running_var) ** 2))
            for b in seen.bn
        )
        log_p = jax.nn.log_softmax(seen.value)
        ce = -jnp.mean(log_p[jnp.arange(len(targets)), targets])
        p, q = jax.nn.softmax(seen.value / 3), jax.nn.softmax(student_net(x).value / 3)
        m = (p + q) / 2
        js = jnp.mean(jnp.sum(p * jnp.log(p / m) + q * jnp.log(q / m), axis=1)) / 2
        tv = sum(
            jnp.mean(jnp.abs(a - b))
            for a, b in (
                (pixels[:, :, 1:], pixels[:, :, :-1]),
                (pixels[:, 1:], pixels[:, :-1]),
                (pixels[:, 1:, 1:], pixels[:, :-1, :-1]),
                (pixels[:, :-1, 1:], pixels[:, 1:, :-1]),
            )
        )
        values = {"bn_loss": bn, "class_loss": ce, "adversarial_loss": -js, "tv_loss": tv}
        return 10 * bn + ce - js + 0.001 * tv, values

    values = quick_jit(lambda *arguments: terms(*arguments)[1])
    candidates = itertools.product((-1, 0, 1), (-1, 0, 1), (False, True))
    fits = [
        candidate
        for candidate in candidates
        if all(
            np.allclose(value, metrics[name], rtol=1e-4, atol=1e-6)
            for name, value in values(pixels, *candidate).items()
        )
    ]
    assert len(fits) == 1
    loss, gradient = quick_jit(jax.value_and_grad(lambda x: terms(x, *fits[0])[0]))(pixels)
    np.testing.assert_allclose(metrics["synthesis_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["synthesis_gradient_norm"], np.linalg.norm(np.ravel(gradient)), rtol=1e-3)
    expected = np.clip(np.asarray(pixels) - np.asarray(gradient), (0 - MEAN) / STD, (1 - MEAN) / STD)
    np.testing.assert_allclose(aux.pixels.params, expected, atol=2e-4)
    shown = np.asarray(aux.pixels.params) * STD + MEAN
    assert shown.min() > -1e-6 and shown.max() < 1 + 1e-6
    assert (np.asarray(pixels) * STD + MEAN).min() < 0  # some pixels were clipped
    assert abs(np.asarray(pixels).std() - 1) < 0.05 and abs(np.asarray(pixels).mean()) < 0.1


def test_terms_of_weight_zero_are_not_computed_and_the_student_not_asked(teacher):
    made = method(adversarial_weight=0.0, tv_weight=0.0)
    state = rounds.initial_state(made)

    def nobody(*_, **__):
        raise AssertionError("the student was asked")

    _, metrics = jax.eval_shape(
        lambda aux: made.synthesise(aux, _networks(state)[0], nobody, jax.random.key(0), state.step, SINGLE),
        state.aux,
    )
    assert metrics.keys() == {"bn_loss", "class_loss", "synthesis_loss", "synthesis_gradient_norm"}


def test_another_divergence_may_compete():
    made = method(divergence=losses.js_divergence_released)
    state = rounds.initial_state(made)
    _, metrics = _synthesise(made, state)
    _, plain = _synthesise(method(), state)
    assert float(metrics["bn_loss"]) == float(plain["bn_loss"])
    assert float(metrics["adversarial_loss"]) != float(plain["adversarial_loss"])


def test_the_pool_gets_the_iterate_with_the_least_loss_as_it_was_evaluated(teacher):
    made = method(optimiser=optax.adam(1.0))  # far too large, so the loss oscillates
    state = rounds.initial_state(made)
    networks = _networks(state)
    step = quick_jit(lambda aux, key: made.synthesise(aux, *networks, key, state.step, SINGLE))
    for turn in range(2):
        aux = made.begin(state.aux, networks[0], jax.random.key(20 + turn), state.step, SINGLE)
        seen = []
        for key in jax.random.split(jax.random.key(turn), 12):
            before = np.asarray(aux.pixels.params, np.float64)
            aux, metrics = step(aux, key)
            seen.append((float(metrics["synthesis_loss"]), before))
        best = min(range(12), key=lambda i: seen[i][0])
        assert best not in (0, 11)  # neither first nor last, so the test would detect either being kept
        aux = made.finish(aux, networks[0], jax.random.key(0), state.step, SINGLE)
        kept = np.asarray(aux.pool.values[turn], np.float64) / 255
        np.testing.assert_allclose(kept, np.clip(seen[best][1] * STD + MEAN, 0, 1), atol=0.501 / 255)
        assert float(aux.best.loss) == seen[best][0]
        state = state.replace(aux=aux)
    assert int(aux.pool.pushes) == 2


def test_a_round_resets_all_but_the_pool():
    made = method()
    state = rounds.initial_state(made)
    aux, _ = _synthesise(made, state)
    aux = made.finish(aux, None, jax.random.key(0), state.step, SINGLE)
    again = made.begin(aux, None, jax.random.key(5), state.step, SINGLE)
    assert not np.any(np.isclose(again.pixels.params, aux.pixels.params).all((1, 2, 3)))
    assert not np.array_equal(again.targets, aux.targets)
    assert {int(t) for t in again.targets} <= set(range(10)) and again.targets.dtype == jnp.int32
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(again.pixels.opt_state))
    assert np.isinf(again.best.loss)
    jax.tree.map(np.testing.assert_array_equal, again.pool, aux.pool)


def test_student_sees_the_pool_without_the_held_out_rows_which_are_the_preview():
    made = method(rounds.pool(padding=0, flip=False, student_batch_size=200))
    state = rounds.initial_state(made)
    levels = np.arange(16).reshape(2, 8)
    ring = state.aux.pool
    push = quick_jit(lambda ring, images: ring.push(to_uint8(images)))
    for batch in levels:
        images = np.broadcast_to(batch[:, None, None, None] / 255, (8, *nets.IMAGE_SHAPE))
        ring = push(ring, images)
    aux = state.aux.replace(pool=ring)
    draw = quick_jit(lambda aux: made.sample(aux, None, jax.random.key(0), SINGLE))
    drawn = np.asarray(draw(aux)) * 255
    assert drawn.shape == (200, *nets.IMAGE_SHAPE) and np.allclose(drawn, np.rint(drawn), atol=1e-4)
    assert set(np.rint(drawn[:, 0, 0, 0]).astype(int)) == set(levels[:, :6].ravel())
    show = quick_jit(lambda aux: made.preview(aux, jax.random.key(1), 100))
    shown = np.asarray(show(aux)) * 255
    assert set(np.rint(shown[:, 0, 0, 0]).astype(int)) == set(levels[:, 6:].ravel())


def test_two_rounds_run_and_resume_with_the_same_bits():
    end = rounds.check_runs(method())
    assert int(end.aux.pool.pushes) == 2
    assert end.synthesis.total.keys() == {*PARTS, "synthesis_loss", "synthesis_gradient_norm"}
    assert end.training.total.keys() >= {"student_loss", "difficulty"}
    weighted = sum(weight * end.synthesis.total[name] for name, weight in PARTS.items())
    np.testing.assert_allclose(end.synthesis.total["synthesis_loss"], weighted, rtol=1e-5)


def test_pixels_get_better_in_a_round(teacher):
    made = method()
    parts = rounds.compiled(made)
    state = parts.begin(rounds.copy(rounds.initial_state(made)), teacher)
    seen = []
    for _ in range(30):
        state = parts.synthesis(state, teacher)
        seen.append(float(state.synthesis.last["synthesis_loss"]))
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


@pytest.mark.slow  # the pool is that of test_contrastive
def test_two_devices_compute_what_one_computes():
    found = rounds.device_differences(__file__)
    assert {"pixels", "targets", "best", "pool", "student", "tallies"} == found.keys()
    assert max(found.values()) < 1e-9, found


if __name__ == "__main__":
    rounds.measure_devices(method(optimiser=optax.sgd(0.5)))  # a factor in the gradient is a factor in the update
