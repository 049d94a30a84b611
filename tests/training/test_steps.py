"""Compares one step's changes with an independent computation, and checks that nothing else changes."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import rounds
from scipy.special import log_softmax, softmax

from cudfkd_jax.models.capture import BN, Outputs, apply
from cudfkd_jax.models.generator import Generator
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.runtime.devices import SINGLE, local_devices
from cudfkd_jax.training import distill_steps, trainer
from cudfkd_jax.training.batching import equations
from cudfkd_jax.training.loops import Epoch, Steps, distillation_steps, make_epoch_function
from cudfkd_jax.training.state import STUDENT, SYNTHESIS, RunState, purpose_key


@pytest.fixture(scope="module", name="run")
def _run():
    """A tiny configuration, problem and teacher, the initial state, and compiled steps that keep their state."""
    config = nets.config()
    problem = nets.problem(config)
    steps = distillation_steps(problem)

    def keeping(step):
        return lambda state, teacher: step(rounds.copy(state), teacher)

    compiled = steps.compile(rounds.ONE_DEVICE)
    kept = {"synthesis": keeping(compiled.synthesis), "student": keeping(compiled.student), "uncompiled": steps}
    return config, problem, nets.teacher_variables(), nets.initial_state(problem), kept


def _equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), *jax.device_get((a, b)))))


def _host(tree):
    return jax.tree.map(np.asarray, jax.device_get(tree))


def test_synthesis_trains_the_generator_alone(run):
    *_, teacher, state, compiled = run
    after = compiled["synthesis"](state, teacher)
    assert _equal(after.student, state.student)
    assert not _equal(after.aux.params, state.aux.params)
    assert not _equal(after.aux.batch_stats, state.aux.batch_stats)  # the generator is in training mode
    assert (int(after.synthesis_step), int(after.step)) == (1, 0)


def test_student_step_trains_the_student_alone(run):
    *_, teacher, state, compiled = run
    after = compiled["student"](state, teacher)
    assert _equal(after.aux, state.aux)  # the generator's running statistics too: evaluation mode
    assert not _equal(after.student.params, state.student.params)
    assert not _equal(after.student.batch_stats, state.student.batch_stats)
    assert (int(after.synthesis_step), int(after.step)) == (0, 1)


def test_student_update_is_sgd_on_the_weighted_divergence(run):
    """Compares with a separate computation of Eq. 6 with the logarithmic v* at λ0, T² KL, and PyTorch's SGD."""
    config, problem, teacher, state, compiled = run
    after = compiled["student"](state, teacher)
    d, lam = config.distill, config.curriculum.lambda_0

    @jax.jit
    def computed(state, teacher, dz):
        """Returns images, the logits of both, and the student's gradient for that of its logits."""
        images = problem.method.sample(state.aux, None, purpose_key(state.key, STUDENT, 0), SINGLE)

        def student_logits(params):
            variables = {"params": params, "batch_stats": state.student.batch_stats}
            return problem.student(variables, images, train=True).value

        z, pull_back = jax.vjp(student_logits, state.student.params)
        return images, problem.teacher(teacher, images).value, z, pull_back(dz)[0]

    images, teacher_logits, z, _ = computed(state, teacher, np.zeros((d.batch_size, 10), np.float32))
    assert images.shape == (d.batch_size, *nets.IMAGE_SHAPE) and 0 <= images.min() < images.max() <= 1
    teacher_logits, z = (np.asarray(logits, np.float64) for logits in (teacher_logits, z))
    p_teacher = softmax(teacher_logits / d.temperature, axis=1)
    log_ratio = log_softmax(teacher_logits / d.temperature, axis=1) - log_softmax(z / d.temperature, axis=1)
    losses = d.temperature**2 * np.sum(p_teacher * log_ratio, axis=1)
    v = (1 + np.exp(-lam)) / (1 + np.exp(losses - lam))
    tally = _host(after.training.last)
    np.testing.assert_allclose(tally["difficulty"], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose(tally["mean_v"], v.mean(), rtol=1e-5)
    np.testing.assert_allclose(tally["student_loss"], (v * losses).mean(), rtol=1e-4)
    np.testing.assert_allclose(tally["share_v_below_half"], (v < 0.5).mean())
    np.testing.assert_allclose(tally["lambda"], lam)  # the index before it is incremented

    # d loss / d z = v T (softmax(z_s/T) − softmax(z_t/T)) / B: v is a constant.
    dz = v[:, None] * d.temperature * (softmax(z / d.temperature, axis=1) - p_teacher) / d.batch_size
    params = jax.device_get(state.student.params)
    gradient = jax.device_get(computed(state, teacher, dz.astype(np.float32))[-1])
    expected = jax.tree.map(lambda w, g: w - d.learning_rate * (g + d.weight_decay * w), params, gradient)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, after.student.params, expected)


def test_second_step_has_momentum_and_its_own_images(run):
    *_, teacher, state, compiled = run
    first = compiled["student"](state, teacher)
    second = compiled["student"](first, teacher)
    params = [np.hstack([np.ravel(x) for x in jax.tree.leaves(s.student.params)]) for s in (state, first, second)]
    moved = [after - before for before, after in itertools.pairwise(params)]
    overlap = np.vdot(*moved) / np.linalg.norm(moved[0]) ** 2
    assert 0.3 < overlap < 2  # mostly momentum, 0.9 of the first
    assert float(first.training.last["difficulty"]) != float(second.training.last["difficulty"])


def _convolutions(function, *arguments):
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    return sum(equation.primitive.name == "conv_general_dilated" for equation in equations(traced))


def test_gradients_are_of_the_trained_network_alone(run):
    """A trained network's convolution costs three: forward, kernel and input gradients; a frozen one, two."""
    _, problem, teacher, state, _ = run
    synthesis, student = (
        _convolutions(functools.partial(step, problem=problem, axis=SINGLE), state, teacher)
        for step in (distill_steps.synthesis_step, distill_steps.student_step)
    )
    generator = _convolutions(lambda aux: problem.method.sample(aux, None, state.key, SINGLE), state.aux)
    layers = 2  # for teacher and student each
    assert synthesis == 3 * generator + 2 * layers + 2 * layers
    assert student == generator + layers + 3 * layers - 1  # the gradient of the images is not needed


def test_synthesis_loss_is_the_weighted_sum_of_its_terms(run):
    """Computes Eq. 4 and 5 on the same images with NumPy."""
    config, problem, teacher, state, compiled = run
    last = _host(compiled["synthesis"](state, teacher).synthesis.last)
    g = config.generator
    generator = Generator(nets.IMAGE_SHAPE, g.latent_dim, g.width, g.stages)

    @jax.jit
    def outputs(state, teacher):
        z = jax.random.normal(purpose_key(state.key, SYNTHESIS, 0), (config.distill.batch_size, g.latent_dim))
        images = apply(generator, state.aux.variables, z, train=True).value
        seen = problem.teacher(teacher, images, capture=(BN,))
        return seen.value, problem.student(state.student.variables, images).value, seen.bn

    t, s, layers = _host(outputs(state, teacher))
    t, s = t.astype(np.float64), s.astype(np.float64)
    bn = sum(
        np.linalg.norm(layer.mean - layer.running_mean) + np.linalg.norm(layer.var - layer.running_var)
        for layer in layers
    )
    oh = -np.mean(log_softmax(t, axis=1).max(axis=1))
    mean_p = softmax(t / config.distill.temperature, axis=1).mean(axis=0)
    balance = np.sum(mean_p * np.log(mean_p))
    p = softmax(t / 3, axis=1)
    kl = 9 * np.sum(p * (np.log(p) - log_softmax(s / 3, axis=1)), axis=1)
    adversarial = -np.mean(kl * (t.argmax(1) == s.argmax(1)))
    for name, value in {
        "bn_loss": bn,
        "class_loss": oh,
        "balance_loss": balance,
        "adversarial_loss": adversarial,
        "alpha_adv": 1.5,
        "synthesis_loss": bn + oh + 20 * balance + 1.5 * adversarial,
    }.items():
        np.testing.assert_allclose(last[name], value, rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("section", "key", "term"),
    [
        ("synthesis", "bn_weight", "bn_loss"),
        ("synthesis", "class_weight", "class_loss"),
        ("synthesis", "balance_weight", "balance_loss"),
        ("curriculum", None, "adversarial_loss"),
    ],
)
def test_a_term_without_weight_is_not_computed(run, section, key, term):
    *_, teacher, state, _ = run
    config = nets.config()
    if key:
        config[section][key] = 0.0
    else:
        config.curriculum.update(adv=0.0, alpha=0.0)
    problem = nets.problem(config)
    networks = (
        functools.partial(problem.teacher, teacher),
        functools.partial(problem.student, state.student.variables),
    )
    _, metrics = jax.eval_shape(
        lambda aux: problem.method.synthesise(aux, *networks, state.key, state.step, SINGLE), state.aux
    )
    assert term not in metrics and len(metrics) >= 4


@pytest.mark.parametrize("name", ["synthesis", "student"])
def test_a_step_that_is_not_finite_is_undone_and_named(run, name):
    *_, teacher, state, compiled = run
    good = compiled["student"](compiled["synthesis"](state, teacher), teacher)
    broken = jax.tree.map(np.array, teacher)
    broken["params"]["Dense_0"]["bias"][3] = np.nan
    failed = compiled[name](good, broken)
    assert bool(failed.failed)
    tally = "synthesis" if name == "synthesis" else "training"
    last = _host(getattr(failed, tally).last)
    assert any(np.isnan(value) for value in last.values())
    later = compiled["student"](compiled["synthesis"](failed, teacher), teacher)
    for after in (failed, later):
        for part in ("student", "aux", "step", "synthesis_step"):
            assert _equal(getattr(after, part), getattr(good, part)), part
        assert _equal(getattr(after, tally).total, getattr(good, tally).total)
        assert any(np.isnan(value) for value in _host(getattr(after, tally).last).values())


def _message(state):
    """Returns the terms of the failed step, as the user sees them."""
    kind, terms = re.fullmatch(
        r"test: (\w+) step 0 is not finite \((.*)\)", trainer._failure("test", state)
    ).groups()
    return kind, dict(term.rsplit(" ", 1) for term in terms.split(", "))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("kind", ["synthesis", "student"])
@pytest.mark.parametrize("where", ["teacher", "generator"])
def test_what_is_not_finite_in_the_networks_is_found_at_once_and_named(run, where, kind, value):
    *_, teacher, state, compiled = run

    def break_(params):
        return jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), params)

    if where == "teacher":
        teacher = teacher | {"params": break_(teacher["params"])}
    else:
        state = state.replace(aux=state.aux.replace(params=break_(state.aux.params)))
    failed = compiled[kind](state, teacher)
    assert bool(failed.failed) and _equal(failed.student, state.student)
    found, terms = _message(failed)
    assert found == kind and terms[f"{kind}_loss"] in ("nan", "inf")


def test_a_gradient_that_is_not_finite_is_named_where_the_loss_is_finite(run):
    _, problem, teacher, state, _ = run

    def student_loss(outputs, *more):
        loss, metrics = problem.method.student_loss(outputs, *more)
        return loss + jnp.sqrt(jnp.sum(0 * outputs.value)), metrics  # 0, with an infinite slope

    broken = dataclasses.replace(problem, method=problem.method._replace(student_loss=student_loss))
    images, logits = np.random.default_rng(0).random((16, *nets.IMAGE_SHAPE), np.float32), np.eye(16, 10)
    batch = distill_steps.Batch(images, Outputs(logits.astype(np.float32), {}))
    step = jax.jit(functools.partial(distill_steps.student_step, problem=broken, axis=SINGLE))
    failed = step(state, teacher, batch)
    assert bool(failed.failed) and _equal(failed.student, state.student)
    kind, terms = _message(failed)
    assert kind == "student" and [term for term in terms if terms[term] == "nan"] == ["student_gradient_norm"]


EPOCH = Epoch(rounds=3, synthesis_steps=1, student_steps=2)


@pytest.fixture(scope="module", name="loops")
def _loops(run):
    parts = run[-1]["uncompiled"]
    return {kind: make_epoch_function(kind, EPOCH, rounds.ONE_DEVICE, parts) for kind in ("python", "scan")}


def _bits(state):
    return jax.tree.leaves(jax.device_get(state.replace(key=jax.random.key_data(state.key))))


def test_both_loops_agree(run, loops):
    *_, teacher, state, _ = run
    ends = {kind: loop(rounds.copy(state), teacher, progress=lambda _: False) for kind, loop in loops.items()}
    for end in ends.values():
        assert (int(end.step), int(end.synthesis_step)) == (6, 3)
        assert (int(end.training.count), int(end.synthesis.count)) == (6, 3)
    a, b = (_host((end.training.total, end.synthesis.total)) for end in ends.values())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-4), a, b)


def test_python_loop_resumes_at_any_step_with_the_same_bits(run, loops):
    *_, teacher, state, _ = run
    whole = loops["python"](rounds.copy(state), teacher, progress=lambda _: False)
    piecewise = rounds.copy(state)
    for stop in range(1, EPOCH.steps + 1):
        piecewise = loops["python"](piecewise, teacher, progress=lambda done, stop=stop: done == stop)
        assert int(piecewise.step) == stop
    assert all((a == b).all() for a, b in zip(_bits(whole), _bits(piecewise), strict=True))


def test_scan_finishes_an_epoch_that_was_saved_inside_a_round(run, loops):
    *_, teacher, state, _ = run
    part = loops["python"](rounds.copy(state), teacher, progress=lambda done: done == 3)
    end = loops["scan"](part, teacher, progress=lambda _: False)
    whole = loops["python"](rounds.copy(state), teacher, progress=lambda _: False)
    assert all((a == b).all() for a, b in zip(_bits(whole), _bits(end), strict=True))


def test_loop_stops_at_a_failed_step(run, loops):
    *_, teacher, state, _ = run
    broken = jax.tree.map(lambda x: x * np.nan, jax.device_get(teacher))
    seen = []
    for loop in loops.values():
        end = loop(rounds.copy(state), broken, progress=lambda done: seen.append(done))
        assert bool(end.failed) and int(end.step) == 0


def _counting() -> Steps:
    """Steps that count: `aux` the rounds that were begun, all else in the state's own counters."""
    return Steps(
        student=lambda state, axis: state.replace(step=state.step + 1),
        synthesis=lambda state, axis: state.replace(synthesis_step=state.synthesis_step + 1),
        begin=lambda state, axis: state.replace(aux=state.aux + 1),
    )


@pytest.mark.parametrize("kind", ["python", "scan"])
def test_rounds_of_warmup_come_before_the_first_student_step(kind):
    epoch = Epoch(rounds=2, synthesis_steps=3, student_steps=5, warmup_rounds=4)
    loop = make_epoch_function(kind, epoch, local_devices(1), _counting())
    start = RunState.create(jax.random.key(0), TrainState({}, {}, ()), jnp.int32(0))
    done = []
    for stop in (False, True):  # in one go; and stopped after every step of the warm-up
        state = rounds.copy(start)
        while int(state.step) < epoch.steps:
            state = loop(state, progress=lambda step, stop=stop: stop and step == 0)
            done.append(int(state.synthesis_step))
        assert (int(state.step), int(state.synthesis_step), int(state.aux)) == (10, 3 * (4 + 2), 4 + 2)
    assert done[:3] == [18, 1, 2] or kind == "scan"
    state = loop(state, progress=lambda _: False)  # the next epoch has none
    assert (int(state.step), int(state.synthesis_step), int(state.aux)) == (20, 3 * (4 + 4), 4 + 4)
