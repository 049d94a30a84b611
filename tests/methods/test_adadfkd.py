"""Tests of AdaDFKD: losses and their gradients, the negatives and their queue, whole rounds, devices."""

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
import rounds
import tiny

from cudfkd_jax.config import methods, networks
from cudfkd_jax.config.methods import use_method
from cudfkd_jax.methods import adadfkd, cudfkd, generative
from cudfkd_jax.methods.adadfkd import Relations, Settings
from cudfkd_jax.models.capture import BN, FEATURES, Outputs, apply
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.objectives import curriculum, losses, student
from cudfkd_jax.objectives.terms import Synthetic
from cudfkd_jax.runtime.devices import SINGLE
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training.state import STUDENT, SYNTHESIS, purpose_key

_OWN = Settings(generator_weight=0.3, student_weight=0.2, temperature=0.5, queue=20, negatives=0.6)
_LATENT_DIM, _BATCH = 8, 16


def _negatives(settings=_OWN):
    window = {"k_begin": 0.25, "k_end": 0.75, "epochs": 8, "steps_per_epoch": 3}
    return curriculum.negatives_schedule(settings.negatives, settings.queue, **window)


def _window(step: int) -> list[int]:
    return [int(edge) for edge in jax.jit(_negatives())(step)]


def _generator() -> Generator:
    return Generator(nets.IMAGE_SHAPE, _LATENT_DIM, ngf=4, stages=1, size="small", initialisation="torch")


@functools.cache
def _method():
    """AdaDFKD with networks whose features have different widths, and SGD, whose first step shows the gradient."""
    terms = cudfkd.synthesis_terms(
        alpha_adv=optax.constant_schedule(1.0),
        adversarial_loss="kl",
        adversarial_mask="none",
        adversarial_temperature=3.0,
        released_js=False,
        bn_weight=1.0,
        class_weight=1.0,
        balance_weight=20.0,
        temperature=20.0,
    )
    return generative.generative_method(
        generator=_generator(),
        optimiser=optax.sgd(0.05, momentum=0.9),
        latent_dim=_LATENT_DIM,
        batch_size=_BATCH,
        terms=terms,
        student_loss=student.self_paced_student_loss(
            sample_loss=lambda t, s: losses.kl_divergence(t, s, 20.0),
            strategy="log",
            granularity="sample",
            lambda_t=curriculum.lambda_schedule(2.0, 0.0, None),
            added=adadfkd.student_term(_OWN),
        ),
        student_capture=(FEATURES,),
        stateful=adadfkd.generator_term(_OWN, _negatives(), 8, 4),
    )


# Written out with NumPy, image by image


def _unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True))


def _info_nce(query, positive, negatives, temperature):
    scores = np.exp(np.array([query @ positive, *(query @ n for n in negatives)]) / temperature)
    return -np.log(scores[0] / scores.sum())


def _of_generator(teacher, positives, queue, first, end, temperature):
    values = []
    for query, positive in zip(_unit(teacher), positives, strict=True):
        ranked = sorted(queue, key=lambda n, q=query: q @ n)
        values.append(_info_nce(query, positive, ranked[first:end], temperature))
    return np.array(values)


def _of_student(teacher, student, temperature):
    anchors, keys = _unit(teacher), _unit(student)
    others = [[k for j, k in enumerate(keys) if j != i] for i in range(len(keys))]
    return np.array([_info_nce(a, keys[i], others[i], temperature) for i, a in enumerate(anchors)])


@pytest.fixture(name="seen")
def _seen():
    """Returns features of teacher `[6, 8]` and student `[6, 4]`, the state, and the projected features."""
    random = np.random.default_rng(3)
    teacher, student = random.normal(size=(6, 8)), random.normal(size=(6, 4))
    projection = {"kernel": random.normal(size=(4, 8)), "bias": random.normal(size=8)}
    state = Relations(_unit(random.normal(size=(20, 8))), np.int32(17), projection)
    return teacher, student, state, student @ projection["kernel"] + projection["bias"]


def _outputs(features) -> Outputs:
    return Outputs(np.zeros((len(features), 10)), {}, features=features)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def _generator_objective(teacher, student, state, step):
    term = adadfkd.generator_term(_OWN, _negatives(), 8, 4)
    synthetic = Synthetic(jnp.zeros((6, *nets.IMAGE_SHAPE)), _outputs(teacher), _outputs(student))
    return term.value(synthetic, state, step, SINGLE)


@pytest.mark.parametrize("step", [0, 9, 100])
def test_loss_and_gradient_of_the_generator(seen, step):
    """The gradient goes through the teacher's features alone."""
    teacher, student, state, projected = seen
    queue = state.queue
    with jax.enable_x64(True):
        (value, after), slopes = jax.device_get(_generator_objective(teacher, student, state, np.int32(step)))
        window = _window(step)
    positives = _unit(projected)
    expected = _of_generator(teacher, positives, queue, *window, 0.5)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-8)
    assert not np.any(slopes[1])
    for at in np.ndindex(teacher.shape):
        sides = []
        for shift in (1e-6, -1e-6):
            moved = teacher.copy()
            moved[at] += shift
            sides.append(_of_generator(moved, positives, queue, *window, 0.5).mean())
        np.testing.assert_allclose(slopes[0][at], (sides[0] - sides[1]) / 2e-6, rtol=1e-4, atol=1e-8)
    found = after.queue
    np.testing.assert_allclose(found[[17, 18, 19, 0, 1, 2]], positives, rtol=1e-8)
    np.testing.assert_array_equal(found[3:17], queue[3:17])
    assert after.pointer == 3


def test_the_student_weighs_the_sum_of_both_losses(seen):
    teacher, features, state, projected = seen
    random = np.random.default_rng(4)
    logits = random.normal(size=(2, 6, 10))
    loss = student.self_paced_student_loss(
        sample_loss=losses.l1_distance,
        strategy="log",
        granularity="sample",
        lambda_t=curriculum.lambda_schedule(2.0, 0.0, None),
        added=adadfkd.student_term(_OWN),
    )
    aux = generative.CarryingState({}, {}, (), carried=state)
    with jax.enable_x64(True):
        networks = (Outputs(z, {}, features=f) for z, f in zip(logits, (features, teacher), strict=True))
        found, metrics = jax.jit(functools.partial(loss, axis=SINGLE))(*networks, aux, np.int32(0))
    relation = _of_student(teacher, projected, 0.5)
    whole = np.abs(logits[0] - logits[1]).mean(1) + 0.2 * relation
    v = (1 + math.exp(-2)) / (1 + np.exp(whole - 2))
    np.testing.assert_allclose(found, (v * whole).mean(), rtol=1e-8)
    np.testing.assert_allclose(metrics["student_contrastive_loss"], relation.mean(), rtol=1e-8)
    np.testing.assert_allclose(metrics["difficulty"], whole.mean(), rtol=1e-8)


@pytest.mark.parametrize(
    ("share", "queue", "begin", "end", "epochs"),
    [
        ("0.9", 4096, "0.25", "0.75", 300),
        ("0.8", 8192, "0", "0.75", 500),
        ("0.81", 16384, "0.2", "0.75", 500),
        ("0.8", 1000, "0.29", "0.87", 100),  # 0.29 · 100 and
        ("0.8", 1000, "0.1", "0.3", 10),  # (0.3 - 0.1) · 10 are below whole numbers in floats
    ],
)
def test_negatives_get_harder(share, queue, begin, end, epochs):
    """Compares the windows of the published and some other settings with exact fractions."""
    k, b, to = map(Fraction, (share, begin, end))
    window = {"k_begin": float(b), "k_end": float(to), "epochs": epochs, "steps_per_epoch": 10}
    schedule = jax.jit(curriculum.negatives_schedule(float(k), queue, **window))
    for epoch in (*range(0, epochs, min(37, epochs // 10)), epochs - 1, epochs + 5):
        rise = (1 - k) * (min(epoch, epochs - 1) - math.floor(b * epochs)) / math.floor(epochs * (to - b))
        h = min(max(rise, Fraction(0)), 1 - k)
        expected = [math.floor(h * queue), math.floor((h + k) * queue)]
        assert [int(edge) for edge in schedule(10 * epoch + 9)] == expected
    assert expected[1] == queue


def test_the_queue_keeps_the_newest(seen):
    """In any number of rows at a time, as a slow loop does."""
    _, _, state, _ = seen
    slow, at = list(state.queue), int(state.pointer)
    push = jax.jit(Relations.push)
    random = np.random.default_rng(0)
    for rows in (7, 20, 1, 13):
        new = random.normal(size=(rows, 8)).astype(np.float32)
        for row in new:
            slow[at], at = row, (at + 1) % 20
        state = push(state, new)
    np.testing.assert_allclose(state.queue, np.array(slow), rtol=1e-6)
    assert state.pointer == at


@functools.partial(jax.jit, static_argnames=("first", "end"))
@functools.partial(jax.value_and_grad, has_aux=True)
def _synthesis_loss(params, start, teacher, *, first, end):
    """The loss of a synthesis step by the formulas of release and paper; also both networks' features."""
    z = jax.random.normal(purpose_key(start.key, SYNTHESIS, start.synthesis_step), (_BATCH, _LATENT_DIM))
    images = apply(_generator(), {"params": params, "batch_stats": start.aux.batch_stats}, z, train=True).value
    of_teacher = nets.classifier(8)(teacher, images, capture=(BN, FEATURES))
    of_student = nets.classifier(4)(start.student.variables, images, capture=(FEATURES,))
    log_p = jax.nn.log_softmax(of_teacher.value)
    mean_p = jnp.mean(jax.nn.softmax(of_teacher.value / 20), 0)
    loss = -jnp.mean(jnp.max(log_p, 1)) + 20 * jnp.sum(mean_p * jnp.log(mean_p + 1e-8))
    for layer in of_teacher.bn:
        loss += jnp.linalg.norm(layer.mean - layer.running_mean) + jnp.linalg.norm(layer.var - layer.running_var)
    log_t, log_s = (jax.nn.log_softmax(z.value / 3) for z in (of_teacher, of_student))
    loss -= 9 * jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), 1))
    relations = start.aux.carried
    query, positive = _jax_unit(of_teacher.features), jax.lax.stop_gradient(_projected(of_student, relations))
    ranked = jnp.sort(query @ relations.queue.T, 1)[:, first:end]
    scores = jnp.column_stack([jnp.sum(query * positive, 1), ranked]) / _OWN.temperature
    loss -= _OWN.generator_weight * jnp.mean(jax.nn.log_softmax(scores)[:, 0])
    return loss, (of_teacher.features, positive)


@jax.jit
@jax.value_and_grad
def _student_loss(params, start, teacher):
    """The loss of a student step, likewise."""
    z = jax.random.normal(purpose_key(start.key, STUDENT, start.step), (_BATCH, _LATENT_DIM))
    images = apply(_generator(), start.aux.variables, z).value
    of_teacher = nets.classifier(8)(teacher, images, capture=(FEATURES,))
    variables = {"params": params, "batch_stats": start.student.batch_stats}
    of_student = nets.classifier(4)(variables, images, train=True, capture=(FEATURES,))
    log_t, log_s = (jax.nn.log_softmax(z.value / 20) for z in (of_teacher, of_student))
    scores = _jax_unit(of_teacher.features) @ _projected(of_student, start.aux.carried).T / _OWN.temperature
    relation = -jnp.diagonal(jax.nn.log_softmax(scores))
    loss = 400 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), 1) + _OWN.student_weight * relation
    v = (1 + math.exp(-2)) / (1 + jnp.exp(loss - 2))
    return jnp.mean(jax.lax.stop_gradient(v) * loss)


def _projected(outputs, relations):
    return _jax_unit(outputs.features @ relations.projection["kernel"] + relations.projection["bias"])


def _jax_unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def test_both_steps_are_those_written_out():
    """In float64."""
    parts = rounds.compiled(_method())
    with jax.enable_x64(True):
        start, teacher = map(rounds.in_float64, (rounds.initial_state(_method()), nets.teacher_variables()))
        first, end = _window(0)
        after = parts.synthesis(rounds.copy(start), teacher)
        (loss, seen), slope = _synthesis_loss(start.aux.params, start, teacher, first=first, end=end)
        np.testing.assert_allclose(after.synthesis.last["synthesis_loss"], loss, rtol=1e-8)
        _check_moved(start.aux.params, after.aux.params, slope, 0.05)
        queries, positives, queue = map(np.asarray, (*seen, start.aux.carried.queue))
        scored = _of_generator(queries, positives, queue, first, end, 0.5)
        np.testing.assert_allclose(after.synthesis.last["contrastive_loss"], scored.mean(), rtol=1e-8)
        np.testing.assert_allclose(after.aux.carried.queue[:_BATCH], positives, rtol=1e-8)
        assert after.aux.carried.pointer == _BATCH

        trained = parts.student(rounds.copy(after), teacher)
        loss, slope = _student_loss(after.student.params, after, teacher)
        np.testing.assert_allclose(trained.training.last["student_loss"], loss, rtol=1e-8)
        _check_moved(after.student.params, trained.student.params, slope, 0.1)


def _check_moved(before, after, slope, rate):
    before, after, slope = map(jax.tree.leaves, jax.device_get((before, after, slope)))
    scale = max(np.abs(leaf).max() for leaf in slope)
    for a, b, g in zip(before, after, slope, strict=True):
        np.testing.assert_allclose(a - b, rate * g, rtol=0, atol=1e-8 * rate * scale)


def test_features_of_equal_width_are_not_projected():
    state = jax.jit(adadfkd.generator_term(_OWN, _negatives(), 8, 8).init)(jax.random.key(0))
    assert state.projection is None
    np.testing.assert_allclose(np.linalg.norm(state.queue, axis=-1), 1, rtol=1e-5)
    features = np.array([[3.0, 4.0] + [0.0] * 6, [0.0] * 8], np.float32)
    found = jax.jit(Relations.of_student)(state, _outputs(features))
    np.testing.assert_allclose(np.asarray(found)[:, :2], [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_a_queue_smaller_than_a_batch_is_refused():
    config = nets.config()
    use_method(config, "adadfkd")
    config.adadfkd.queue = 15
    with pytest.raises(UserError, match=r"adadfkd.queue=15 holds less than a batch of distill.batch_size=16"):
        nets.problem(config)
    config.adadfkd.update(queue=16, negatives=0.05)
    with pytest.raises(UserError, match=r"adadfkd.negatives=0.05 of adadfkd.queue=16 is less than one"):
        nets.problem(config)


def test_a_network_without_a_last_linear_layer_is_refused():
    network = nets.classifier(4)
    headless = dataclasses.replace(network, module=_Headless())
    with pytest.raises(UserError, match="features before the logits cannot be told"):
        adadfkd.feature_width(headless, nets.IMAGE_SHAPE)
    assert adadfkd.feature_width(network, nets.IMAGE_SHAPE) == 4


class _Headless(nets.nn.Module):
    @nets.nn.compact
    def __call__(self, x):
        return nets.nn.Conv(10, (3, 3))(x).mean((1, 2))


def test_two_rounds_run_and_resume_with_the_same_bits():
    with jax.enable_x64(True):
        state = rounds.check_runs(_method())
    assert state.aux.carried.pointer == 6 * _BATCH % _OWN.queue


@pytest.mark.slow
def test_two_devices_compute_what_one_computes():
    found = rounds.device_differences(__file__)
    assert found.keys() == {"params", "batch_stats", "opt_state", "carried", "student", "tallies"}
    assert max(found.values()) < 1e-9, found


if __name__ == "__main__":
    rounds.measure_devices(_method())


@pytest.mark.parametrize(("of_generator", "of_student"), [(0.0, 0.0), (0.0, 0.2), (0.3, 0.0)])
def test_a_contrast_of_weight_0_is_left_out(of_generator, of_student):
    config = tiny.get_config("method=adadfkd")
    config.adadfkd.update(generator_weight=of_generator, student_weight=of_student)
    net = networks.described(config, "teacher")
    method = methods.method(config, networks.pair(config, net, net.abstract_variables()))
    state = jax.eval_shape(method.init, jax.random.key(0))
    assert hasattr(state, "carried") == bool(of_generator or of_student)  # also the student's projection
    assert (FEATURES in method.student_capture) == bool(of_student)


def test_without_the_generators_contrast_the_queue_rests():
    term = adadfkd.generator_term(dataclasses.replace(_OWN, generator_weight=0.0), lambda step: (0, 1), 6, 4)
    assert term.needs == ()
    before = term.init(jax.random.key(0))
    value, after = term.value(None, before, 0, SINGLE)
    assert value == 0 and after is before and before.projection["kernel"].shape == (4, 6)
