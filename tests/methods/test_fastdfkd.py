"""Tests of FastDFKD: its losses, the steps of a round, the meta generator, whole rounds, devices."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
import rounds
from scipy.special import log_softmax

from cudfkd_jax.data.augment import random_crop_flip
from cudfkd_jax.methods import fastdfkd
from cudfkd_jax.methods.fastdfkd import Settings, Weights
from cudfkd_jax.models.capture import BN, BNStatistics, apply
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training.state import SYNTHESIS, purpose_key

_LATENT_DIM, _BATCH, _LR_G, _LR_Z, _STEPS = 8, 8, 5e-3, 0.015, 3
_WEIGHTS, _WARMUP, _RESET = Weights(10.0, 0.4, 1.1), 2, 3


def _generator() -> Generator:
    return Generator(nets.IMAGE_SHAPE, _LATENT_DIM, ngf=4, stages=1, size="small", initialisation="torch")


@functools.cache
def _method(sgd: bool = False):
    kinds = {"generator": "generator", "latents": "latents"}
    optimiser = optax.sgd if sgd else functools.partial(optax.adam, b1=0.5, b2=0.999)
    return fastdfkd.meta_method(
        pool=rounds.pool(batch_size=_BATCH),
        num_classes=10,
        generator=_generator(),
        latent_dim=_LATENT_DIM,
        optimiser=optax.partition({"generator": optimiser(_LR_G), "latents": optimiser(_LR_Z)}, kinds),
        meta_optimiser=optimiser(_STEPS * _LR_G),
        weights=_WEIGHTS,
        temperature=1.0,
        warmup_rounds=_WARMUP,
        settings=Settings(reset_round=_RESET),
        statistics=fastdfkd.statistics_of(nets.classifier(8), nets.IMAGE_SHAPE),
        student_loss=rounds.STUDENT_LOSS,
    )


def test_alignment_remembers_earlier_rounds():
    random = np.random.default_rng(0)
    layers, old = [], []
    for width in (3, 5):
        layers.append(BNStatistics(*random.uniform(0.5, 2, (4, width))))
        old.append(tuple(random.uniform(0.5, 2, (2, width))))
    for memory in (0.0, 0.9):
        expected = sum(
            np.linalg.norm((1 - memory) * new + memory * past - running)
            for layer, pasts in zip(layers, old, strict=True)
            for new, past, running in zip(layer[:2], pasts, layer[2:], strict=True)
        )
        with jax.enable_x64(True):
            found = fastdfkd.bn_alignment_with_memory(tuple(layers), tuple(old), memory)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def _rounds(count: int):
    """Returns the states of some rounds after the beginning, after every step and at the end, as they were."""
    teacher, state = map(rounds.in_float64, (nets.teacher_variables(), rounds.initial_state(_method())))
    steps = rounds.compiled(_method())
    for _ in range(count):
        states = [state := steps.begin(state, teacher)]
        for _ in range(_STEPS):
            states.append(state := steps.synthesis(rounds.copy(state), teacher))
        finished = steps.finish(rounds.copy(state), teacher)
        yield [*map(rounds.copy, states), finished]
        state = rounds.copy(finished)


def _objective(params, state, teacher, adversarial: float, memory: float):
    """The loss of a step, written out; returns the images too."""
    key = purpose_key(state.key, SYNTHESIS, state.synthesis_step)
    variables = {"params": params["generator"], "batch_stats": state.aux.fast.batch_stats}
    images = apply(_generator(), variables, params["latents"], train=True).value
    augmented = random_crop_flip(key, images, padding=1, flip=True)
    outputs = nets.classifier(8)(teacher, augmented, capture=(BN,))
    student = jax.nn.log_softmax(nets.classifier(4)(state.student.variables, augmented).value)
    log_p = jax.nn.log_softmax(outputs.value)
    loss = 0.0
    for layer, (mean, var) in zip(outputs.bn, state.aux.remembered, strict=True):
        for new, past, running in ((layer.mean, mean, layer.running_mean), (layer.var, var, layer.running_var)):
            loss += 10 * jnp.sqrt(jnp.sum(((1 - memory) * new + memory * past - running) ** 2))
    loss -= 0.4 * jnp.mean(log_p[jnp.arange(_BATCH), state.aux.targets])
    kl = jnp.sum(jnp.exp(log_p) * (log_p - student), axis=1)
    agree = jnp.argmax(log_p, axis=1) == jnp.argmax(student, axis=1)
    return loss - adversarial * jnp.mean(jnp.where(agree, kl, 0)), images


def _adam(rate: float, gradients: list) -> np.ndarray:
    """Returns the last of Adam's updates (b1 0.5, b2 0.999) after these gradients."""
    m = v = 0.0
    for gradient in gradients:
        gradient = np.asarray(gradient, np.float64)
        m, v = 0.5 * m + 0.5 * gradient, 0.999 * v + 0.001 * gradient**2
    count = len(gradients)
    return -rate * (m / (1 - 0.5**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)


def _kernel(params):
    return np.asarray(params["conv1"]["kernel"])


@pytest.fixture(name="float64")
def _float64():
    with jax.enable_x64(True):
        yield


def test_rounds_are_those_written_out(float64):
    """Three rounds: the adversarial term from the second on, the memory too, the reset before the third."""
    value_and_grad = jax.jit(jax.value_and_grad(_objective, has_aux=True))
    teacher = rounds.in_float64(nets.teacher_variables())
    slopes, meta, previous = [], _kernel(rounds.initial_state(_method()).aux.meta.params), None
    for number, (begun, *stepped, finished) in enumerate(_rounds(3), 1):
        assert int(begun.aux.rounds) == number
        assert (_kernel(begun.aux.fast.params["generator"]) == meta).all()
        if previous is not None:
            linear = [np.asarray(s.aux.meta.params["linear"]["kernel"]) for s in (previous, begun)]
            assert (linear[0] == linear[1]).all() == (number != _RESET)
            assert not (previous.aux.fast.params["latents"] == begun.aux.fast.params["latents"]).any()
        adversarial, memory = (1.1, 0.9) if number >= 2 else (0.0, 0.0)
        gradients, found, before = [], [], begun
        for after in stepped:
            (loss, images), gradient = value_and_grad(before.aux.fast.params, before, teacher, adversarial, memory)
            np.testing.assert_allclose(after.synthesis.last["synthesis_loss"], loss, rtol=1e-8)
            gradients.append(gradient)
            found.append((float(loss), images))
            update = _adam(_LR_Z, [g["latents"] for g in gradients])
            moved = np.asarray(after.aux.fast.params["latents"]) - np.asarray(before.aux.fast.params["latents"])
            np.testing.assert_allclose(moved, update, atol=1e-8 * _LR_Z)
            before = after
        slopes.append(sum(_kernel(g["generator"]) for g in gradients))
        scale = np.abs(slopes[-1]).max()
        np.testing.assert_allclose(_kernel(before.aux.slope), slopes[-1], atol=1e-8 * scale)
        best = min(found, key=lambda pair: pair[0])[1]
        np.testing.assert_allclose(before.aux.best.value, best, atol=1e-8)
        stored = np.asarray(finished.aux.pool.values[number - 1], np.float32) / 255
        np.testing.assert_allclose(stored, np.asarray(best), atol=0.501 / 255)
        moved = _kernel(finished.aux.meta.params) - meta
        np.testing.assert_allclose(moved, _adam(_STEPS * _LR_G, slopes), atol=1e-8 * _STEPS * _LR_G)
        seen, past, kept = (jax.tree.leaves(part) for part in _memories(before, finished))
        for new, old, mixed in zip(seen, past, kept, strict=True):
            np.testing.assert_allclose(mixed, memory * old + (1 - memory) * new, rtol=1e-8)
        meta, previous = _kernel(finished.aux.meta.params), finished


def _memories(before, finished):
    return before.aux.seen, before.aux.remembered, finished.aux.remembered


def test_a_drawn_first_layer_is_small_and_without_biases():
    wide = Generator(nets.IMAGE_SHAPE, _LATENT_DIM)
    shapes = jax.eval_shape(lambda: wide.init(jax.random.key(0), jnp.zeros((1, _LATENT_DIM)), train=False))
    params = shapes["params"]
    drawn = fastdfkd.draw_first_layer(params, jax.random.key(1))
    for layer, weight in (("linear", "kernel"), ("bn0", "scale")):
        values = np.asarray(drawn[layer][weight])
        assert abs(values.mean()) < 0.02 and 0.01 < values.std() < 0.03
        assert values.shape == params[layer][weight].shape and not drawn[layer]["bias"].any()
    assert drawn["conv1"] is params["conv1"]


@pytest.mark.parametrize(("steps", "published"), [(2, (5e-3, 0.015)), (5, (3e-3, 0.01)), (10, (2e-3, 0.01))])
def test_learning_rates_follow_from_the_number_of_steps(steps, published):
    assert fastdfkd.learning_rates(Settings(), steps) == published
    assert fastdfkd.learning_rates(Settings(learning_rate=0.1), steps) == (0.1, published[1])


def test_a_number_of_steps_without_learning_rates_is_refused():
    own = Settings(learning_rate=0.1)
    with pytest.raises(
        UserError, match="synthesis_steps=7 has no published learning rates; expected one of 2, 5, 10"
    ):
        fastdfkd.check(SimpleNamespace(own=own, distill=SimpleNamespace(synthesis_steps=7)))
    assert fastdfkd.learning_rates(dataclasses.replace(own, latents_learning_rate=0.2), 7) == (0.1, 0.2)


def test_the_learning_rate_of_other_generators_is_refused():
    generator = SimpleNamespace(learning_rate=0.01)
    settings = SimpleNamespace(own=Settings(), distill=SimpleNamespace(synthesis_steps=5), generator=generator)
    with pytest.raises(UserError, match=r"generator\.learning_rate=0\.01 is not read by fastdfkd; leave it out"):
        fastdfkd.check(settings)
    generator.learning_rate = 1e-3
    fastdfkd.check(settings)


def test_the_adversarial_term_is_the_divergence_where_both_agree():
    """In float64, against NumPy, at the temperature of the method."""
    random = np.random.default_rng(1)
    teacher, student = 3 * random.normal(size=(2, 12, 10))
    student[:6] = teacher[:6] + 0.1 * random.normal(size=(6, 10))
    log_p, log_q = (log_softmax(z, axis=1) for z in (teacher, student))
    agree = teacher.argmax(1) == student.argmax(1)
    assert 0 < agree.sum() < 12
    expected = np.where(agree, (np.exp(log_p) * (log_p - log_q)).sum(1), 0)
    with jax.enable_x64(True):
        found = fastdfkd.losses.masked_adversarial(jnp.asarray(teacher), jnp.asarray(student), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_two_rounds_run_and_resume_with_the_same_bits(float64):
    state = rounds.check_runs(_method())
    assert int(state.aux.rounds) == 2 and int(state.aux.pool.pushes) == 2


@pytest.mark.slow  # batches of the pool are shared in test_ring, synthetic ones in test_contrastive
def test_two_devices_compute_what_one_computes():
    found = rounds.device_differences(__file__)
    assert {"meta", "fast", "slope", "best", "pool", "remembered", "student", "tallies"} <= found.keys()
    assert max(found.values()) < 1e-9, found


if __name__ == "__main__":
    # With SGD, a factor in the gradient is a factor in the update.
    rounds.measure_devices(_method(sgd=True))
