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
from cudfkd_jax.models.capture import BN
from cudfkd_jax.objectives.inversion import InversionLoss
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.training.state import SYNTHESIS, purpose_key

MEAN, STD = np.array((0.5, 0.4, 0.3)), np.array((0.2, 0.3, 0.4))  # those of `nets.classifier`
RATE = 0.2  # so large that the loss oscillates
PARTS = {"bn_loss": 10.0, "class_loss": 1.0, "adversarial_loss": 1.0, "tv_loss": 0.001}


def method(pool=None, *, adversarial_weight=1.0, tv_weight=0.001, divergence=adi.competition):
    return inversion_method(
        pool=pool or rounds.pool(),
        num_classes=10,
        mean=tuple(MEAN),
        std=tuple(STD),
        optimiser=optax.sgd(RATE, momentum=0.9),  # a factor in the gradient is a factor in the update
        inversion=InversionLoss(10.0, 1.0, adversarial_weight, functools.partial(divergence, temperature=3.0)),
        tv_weight=tv_weight,
        student_loss=rounds.STUDENT_LOSS,
    )


METHOD = method()


@pytest.fixture(scope="module", name="teacher")
def _teacher():
    return nets.teacher_variables()


@pytest.fixture(scope="module", name="parts")
def _parts():
    return rounds.compiled(METHOD)


def _state():
    return rounds.copy(rounds.initial_state(METHOD))


quick_jit = functools.partial(jax.jit, compiler_options=rounds.UNOPTIMISED)


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


@quick_jit
@functools.partial(jax.value_and_grad, has_aux=True)
def _objective(pixels, state, teacher):
    """The weighted terms of a step, written out, for its jitter."""
    x = adi.jitter(purpose_key(state.key, SYNTHESIS, 0), pixels, flip=True) * jnp.asarray(STD) + jnp.asarray(MEAN)
    seen = nets.classifier(8)(teacher, x, capture=(BN,))
    bn = sum(
        jnp.sqrt(jnp.sum((b.mean - b.running_mean) ** 2)) + jnp.sqrt(jnp.sum((b.var - b.running_var) ** 2))
        for b in seen.bn
    )
    ce = -jnp.mean(jax.nn.log_softmax(seen.value)[jnp.arange(len(pixels)), state.aux.targets])
    student = nets.classifier(4)(state.student.variables, x).value
    p, q = jax.nn.softmax(seen.value / 3), jax.nn.softmax(student / 3)
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


def test_step_follows_the_gradient_of_the_weighted_terms_and_stays_in_range(teacher, parts):
    state = _state()
    pixels = np.asarray(state.aux.pixels.params)
    (loss, values), gradient = _objective(pixels, state, teacher)
    after = parts.synthesis(state, teacher)
    metrics = after.synthesis.last
    for name, value in values.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["synthesis_loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["synthesis_gradient_norm"], np.linalg.norm(np.ravel(gradient)), rtol=1e-3)
    expected = np.clip(pixels - RATE * np.asarray(gradient), (0 - MEAN) / STD, (1 - MEAN) / STD)
    np.testing.assert_allclose(after.aux.pixels.params, expected, atol=2e-4)
    shown = np.asarray(after.aux.pixels.params) * STD + MEAN
    assert shown.min() > -1e-6 and shown.max() < 1 + 1e-6
    assert (pixels * STD + MEAN).min() < 0  # some pixels were clipped
    assert abs(pixels.std() - 1) < 0.05 and abs(pixels.mean()) < 0.1


def test_terms_of_weight_zero_are_not_computed_and_the_student_not_asked(teacher):
    def nobody(*_, **__):
        raise AssertionError("the student was asked")

    metrics = _traced(method(adversarial_weight=0.0, tv_weight=0.0), teacher, nobody)
    assert metrics.keys() == {"bn_loss", "class_loss", "synthesis_loss", "synthesis_gradient_norm"}


def test_another_divergence_may_compete(teacher):
    asked = []

    def divergence(teacher_logits, student_logits, temperature):
        asked.append((teacher_logits.shape, student_logits.shape, temperature))
        return jnp.sum(student_logits, axis=1)

    student = functools.partial(nets.classifier(4), rounds.initial_state(METHOD).student.variables)
    assert _traced(method(divergence=divergence), teacher, student).keys() > PARTS.keys()
    assert asked == [((8, 10), (8, 10), 3.0)]


def _traced(made, teacher, student):
    """Returns the metrics of a step without computing them."""
    network = functools.partial(nets.classifier(8), teacher)
    rest = (network, student, jax.random.key(0), jnp.zeros((), jnp.int32), SINGLE)
    return jax.eval_shape(lambda aux: made.synthesise(aux, *rest)[1], rounds.initial_state(METHOD).aux)


def test_the_pool_gets_the_iterate_with_the_least_loss_as_it_was_evaluated(teacher, parts):
    state = _state()
    for turn in range(2):
        state = parts.begin(state, teacher)
        seen = []
        for _ in range(12):
            before = np.asarray(state.aux.pixels.params, np.float64)
            state = parts.synthesis(state, teacher)
            seen.append((float(state.synthesis.last["synthesis_loss"]), before))
        best = min(range(12), key=lambda i: seen[i][0])
        assert best not in (0, 11)  # neither first nor last, so the test would detect either being kept
        state = parts.finish(state, teacher)
        kept = np.asarray(state.aux.pool.values[turn], np.float64) / 255
        np.testing.assert_allclose(kept, np.clip(seen[best][1] * STD + MEAN, 0, 1), atol=0.501 / 255)
        assert float(state.aux.best.loss) == seen[best][0]
    assert int(state.aux.pool.pushes) == 2


def test_a_round_resets_all_but_the_pool(teacher, parts):
    state = parts.finish(parts.synthesis(_state(), teacher), teacher)
    aux = jax.device_get(state.aux)
    again = parts.begin(state, teacher).aux
    assert not np.any(np.isclose(again.pixels.params, aux.pixels.params).all((1, 2, 3)))
    assert not np.array_equal(again.targets, aux.targets)
    assert {int(t) for t in again.targets} <= set(range(10)) and again.targets.dtype == jnp.int32
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(again.pixels.opt_state))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(aux.pixels.opt_state))
    assert np.isinf(again.best.loss)
    jax.tree.map(np.testing.assert_array_equal, again.pool, aux.pool)


def test_student_sees_the_pool_without_the_held_out_rows_which_are_the_preview():
    made = method(rounds.pool(padding=0, flip=False, student_batch_size=200))
    levels = np.arange(16).reshape(2, 8)

    @quick_jit
    def draw(aux):
        ring = aux.pool
        for batch in levels:
            ring = ring.push(
                jnp.broadcast_to(batch[:, None, None, None], (8, *nets.IMAGE_SHAPE)).astype(jnp.uint8)
            )
        aux = aux.replace(pool=ring)
        return made.sample(aux, None, jax.random.key(0), SINGLE), made.preview(aux, jax.random.key(1), 100)

    drawn, shown = (np.asarray(images) * 255 for images in draw(rounds.initial_state(METHOD).aux))
    assert drawn.shape == (200, *nets.IMAGE_SHAPE) and np.allclose(drawn, np.rint(drawn), atol=1e-4)
    assert set(np.rint(drawn[:, 0, 0, 0]).astype(int)) == set(levels[:, :6].ravel())
    assert set(np.rint(shown[:, 0, 0, 0]).astype(int)) == set(levels[:, 6:].ravel())


def test_two_rounds_run_and_resume_with_the_same_bits():
    end = rounds.check_runs(METHOD)
    assert int(end.aux.pool.pushes) == 2
    assert end.synthesis.total.keys() == {*PARTS, "synthesis_loss", "synthesis_gradient_norm"}
    assert end.training.total.keys() >= {"student_loss", "difficulty"}
    weighted = sum(weight * end.synthesis.total[name] for name, weight in PARTS.items())
    np.testing.assert_allclose(end.synthesis.total["synthesis_loss"], weighted, rtol=1e-5)


def test_pixels_get_better_in_a_round(teacher, parts):
    state = parts.begin(_state(), teacher)
    seen = []
    for _ in range(30):
        state = parts.synthesis(state, teacher)
        seen.append(float(state.synthesis.last["synthesis_loss"]))
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


@pytest.mark.slow  # batches of the pool are shared in test_ring
def test_two_devices_compute_what_one_computes():
    found = rounds.device_differences(__file__)
    assert {"pixels", "targets", "best", "pool", "student", "tallies"} == found.keys()
    assert max(found.values()) < 1e-9, found


if __name__ == "__main__":
    rounds.measure_devices(METHOD)
