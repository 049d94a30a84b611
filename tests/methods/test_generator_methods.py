"""Tests of DAFL, ZSKT, DFAD and DFQ: objectives by term, whole rounds, devices, generator and its average."""

import functools
import itertools
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
import rounds
from flax import traverse_util
from scipy.special import log_softmax, softmax

from cudfkd_jax.methods import dafl, dfad, dfq, zskt
from cudfkd_jax.methods.generative import generative_method
from cudfkd_jax.models import Generator, build_classifier, count_parameters
from cudfkd_jax.models.capture import BN, FEATURES, STAGES, BNStatistics, Outputs
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.models.optimisers import sgd
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.models.vgg import VGG
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.student import plain_student_loss
from cudfkd_jax.objectives.terms import STUDENT, Synthetic
from cudfkd_jax.runtime.devices import SINGLE, local_devices
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.loops import Epoch, Steps, distillation_steps, make_epoch_function
from cudfkd_jax.training.state import RunState

KL = functools.partial(losses.kl_divergence, temperature=1.0)
IMAGE_SHAPE, LATENT_DIM, BATCH_SIZE = (8, 8, 3), 8, 16

DAFL = {"class_weight": 1.0, "activation_weight": 0.001, "balance_weight": 20.0}
DFQ = {"adversarial_weight": 1.0, "bn_weight": 1.0, "class_weight": 1.0, "balance_weight": 20.0}
TERMS = {
    "dafl": dafl.synthesis_terms(**DAFL),
    "zskt": zskt.synthesis_terms(),
    "dfad": dfad.synthesis_terms(),
    "dfq": dfq.synthesis_terms(**DFQ),
}
METHODS = ("dafl", "zskt", "dfad", "dfq_averaged")  # the last with the average of the generator


class StagedNet(nn.Module):
    """A network with a stage, and maps before and after it to be captured."""

    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.features, (3, 3), use_bias=False)(x)
        self.sow("intermediates", "stages", x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Conv(self.features, (3, 3), 2, use_bias=False)(x)
        self.sow("intermediates", "stages", x)
        return nn.Dense(10)(x.mean((1, 2)))


def generator() -> Generator:
    return Generator(IMAGE_SHAPE, LATENT_DIM, ngf=4, stages=1, size="small", initialisation="torch")


@functools.cache
def method(name: str, *, ema_decay: float = 0.0):
    name, _, averaged = name.partition("_")
    student_losses = {
        "dfad": plain_student_loss(losses.l1_distance),
        "zskt": zskt.attention_student_loss(sample_loss=KL, attention_weight=2500.0),
    }
    return generative_method(
        generator=generator(),
        optimiser=optax.adam(1e-3, b1=0.5),
        latent_dim=LATENT_DIM,
        batch_size=BATCH_SIZE,
        terms=TERMS[name],
        student_loss=student_losses.get(name, plain_student_loss(KL)),
        student_capture=zskt.student_capture(2500.0) if name == "zskt" else (),
        ema_decay=0.75 if averaged else ema_decay,
    )


def classifier(features: int) -> Classifier:
    return Classifier(StagedNet(features), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def problem(name: str) -> distill_steps.Problem:
    schedule = optax.constant_schedule(0.01)
    optimiser = sgd(schedule, momentum=0.9, weight_decay=1e-4)
    return distill_steps.Problem(method(name), classifier(8), classifier(4), optimiser, schedule)


def teacher_variables():
    return nets.variables(classifier(8))


@functools.cache
def initial_state(name: str) -> RunState:
    """Returns the state of a method; the methods' differ in the metrics alone, and in the average."""
    init = functools.partial(distill_steps.init_state, problem=problem(name), image_shape=IMAGE_SHAPE)
    arguments = jax.random.key(3), teacher_variables()
    if name == "dfq_averaged":
        return jax.jit(init)(*arguments)
    start, new = initial_state("dfq_averaged"), jax.eval_shape(init, *arguments)
    zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype))
    return start.replace(aux=start.aux.state, synthesis=zeros(new.synthesis), training=zeros(new.training))


@functools.cache
def steps(name: str) -> Steps:
    return distillation_steps(problem(name))


def _equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), *jax.device_get((a, b)))))


# The objectives, written out with NumPy.


class Seen:
    """Random outputs of the networks on a batch, in float64."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.t, self.s = 3 * rng.normal(size=(6, 5)), 3 * rng.normal(size=(6, 5))
        self.features = rng.normal(size=(6, 7))
        self.bn = [tuple(rng.uniform(0.5, 2, (4, n))) for n in (3, 6)]

    def terms(self) -> dict[str, float]:
        log_t, log_s = log_softmax(self.t, axis=1), log_softmax(self.s, axis=1)
        mean_p = softmax(self.t, axis=1).mean(axis=0)
        return {
            "class_loss": -log_t.max(axis=1).mean(),
            "balance_loss": np.sum(mean_p * np.log(mean_p)),
            "feature_loss": -np.abs(self.features).mean(),
            "bn_loss": sum(
                np.sqrt(np.sum((m - rm) ** 2)) + np.sqrt(np.sum((v - rv) ** 2)) for m, v, rm, rv in self.bn
            ),
            "kl": -np.sum(np.exp(log_t) * (log_t - log_s)) / 6,
            "l1": -np.abs(self.t - self.s).sum() / 30,
        }

    def objective(self, name: str) -> tuple[float, dict[str, float]]:
        """Computes the method's loss and its unweighted terms."""
        of = self.terms()
        weighted = {
            "dafl": [("class_loss", 1, "class_loss"), ("feature_loss", 0.001, "feature_loss")],
            "zskt": [("adversarial_loss", 1, "kl")],
            "dfad": [("adversarial_loss", 1, "l1")],
            "dfq": [("adversarial_loss", 1, "kl"), ("bn_loss", 1, "bn_loss"), ("class_loss", 1, "class_loss")],
        }[name]
        if name in ("dafl", "dfq"):
            weighted.append(("balance_loss", 20, "balance_loss"))
        return sum(weight * of[term] for _, weight, term in weighted), {key: of[term] for key, _, term in weighted}


def synthetic(t, s, features, bn) -> Synthetic:
    teacher = Outputs(t, {}, bn=tuple(BNStatistics(*layer) for layer in bn), features=features)
    return Synthetic(jnp.zeros((6, *IMAGE_SHAPE)), teacher, Outputs(s, {}))


@pytest.mark.parametrize("name", TERMS)
def test_objective_and_its_gradient_are_those_written_out_with_numpy(name):
    seen = Seen()
    agree = seen.t.argmax(1) == seen.s.argmax(1)
    assert 0 < agree.sum() < 6  # a term over only some images would differ
    loss, values = seen.objective(name)

    def objective(t, s, features, bn):
        x = synthetic(t, s, features, bn)
        values = {term.name: term.value(x, SINGLE) for term in TERMS[name]}
        return sum(term.weight(17) * values[term.name] for term in TERMS[name]), values

    with jax.enable_x64(True):
        arguments = (seen.t, seen.s, seen.features, seen.bn)
        compute = jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))
        (found, found_values), gradients = compute(*arguments)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    assert found_values.keys() == values.keys()
    for term, value in values.items():
        np.testing.assert_allclose(found_values[term], value, rtol=1e-6, err_msg=term)
    for array, gradient in zip((seen.t, seen.s, seen.features), gradients, strict=True):
        expected = np.empty_like(array)
        for at in np.ndindex(array.shape):
            sides = []
            for shift in (1e-6, -2e-6):
                array[at] += shift
                sides.append(seen.objective(name)[0])
            array[at] += 1e-6
            expected[at] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("module", "weights", "terms", "needs"),
    [
        (
            *(dafl, DAFL),
            {"class_weight": "class_loss", "activation_weight": "feature_loss", "balance_weight": "balance_loss"},
            {"activation_weight": FEATURES},
        ),
        (
            *(dfq, DFQ),
            {
                "adversarial_weight": "adversarial_loss",
                "bn_weight": "bn_loss",
                "class_weight": "class_loss",
                "balance_weight": "balance_loss",
            },
            {"adversarial_weight": STUDENT, "bn_weight": BN},
        ),
    ],
    ids=["dafl", "dfq"],
)
def test_a_term_of_weight_0_is_omitted_with_its_inputs(module, weights, terms, needs):
    for left_out in (None, *weights):
        chosen = module.synthesis_terms(**{k: 0.0 if k == left_out else w for k, w in weights.items()})
        rest = {term.name: float(term.weight(0)) for term in chosen}
        assert rest == {terms[k]: w for k, w in weights.items() if k != left_out}
        assert {n for term in chosen for n in term.needs} == {n for k, n in needs.items() if k != left_out}


# Attention transfer.


def attention_reference(a_t, a_s) -> float:
    """Computes the mean of (F(a_s) − F(a_t))² over images and pixels, image by image."""
    differences = []
    for one_t, one_s in zip(a_t, a_s, strict=True):
        maps = [(a**2).mean(axis=-1).ravel() for a in (one_t, one_s)]
        unit = [m / np.sqrt(m @ m) for m in maps]
        differences.append((unit[1] - unit[0]) ** 2)
    return float(np.mean(differences))


@pytest.fixture(name="maps")
def _maps():
    """Returns logits and stage maps of a student and a wider teacher; the first maps differ in size."""
    rng = np.random.default_rng(2)

    def outputs(channels, first):
        sizes = ((first, first), (4, 3), (2, 2))
        stages = tuple(rng.normal(size=(3, *size, channels)) for size in sizes)
        return Outputs(rng.normal(size=(3, 5)), {}, stages=stages)

    return outputs(2, 4), outputs(6, 8)


def test_attention_loss_is_that_of_the_original_release_times_the_classes(maps):
    """The release uses KL averaged over images and classes, plus 250 times the sum over the stage outputs."""
    student, teacher = maps
    log_t, log_s = log_softmax(teacher.value, axis=1), log_softmax(student.value, axis=1)
    kl = np.mean(np.exp(log_t) * (log_t - log_s))
    attention = sum(
        attention_reference(*pair) for pair in zip(teacher.stages[1:], student.stages[1:], strict=True)
    )
    student_loss = zskt.attention_student_loss(sample_loss=KL, attention_weight=250.0 * 5)
    with jax.enable_x64(True):
        loss, metrics = jax.jit(functools.partial(student_loss, axis=SINGLE))(student, teacher, None, 0)
    np.testing.assert_allclose(loss, 5 * (kl + 250 * attention), rtol=1e-10)
    np.testing.assert_allclose(metrics["student_loss"], loss)
    np.testing.assert_allclose(metrics["attention_loss"], attention, rtol=1e-10)
    np.testing.assert_allclose(metrics["difficulty"], 5 * kl, rtol=1e-10)


def test_gradient_of_attention_is_that_of_finite_differences(maps):
    a_t, a_s = maps[1].stages[1], maps[0].stages[1]
    with jax.enable_x64(True):
        # Waited for, because `a_s` changes below.
        gradient = np.asarray(jax.jit(jax.grad(lambda a: zskt.attention_distance(a_t, a).mean()))(a_s))
    expected = np.empty_like(a_s)
    for at in np.ndindex(a_s.shape):
        sides = []
        for shift in (1e-6, -2e-6):
            a_s[at] += shift
            sides.append(attention_reference(a_t, a_s))
        a_s[at] += 1e-6
        expected[at] = (sides[0] - sides[1]) / 2e-6
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_map_of_zeros_has_a_finite_distance_and_no_gradient(dtype):
    a_t = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(dtype)
    slope = jax.jit(jax.value_and_grad(lambda a: zskt.attention_distance(jnp.asarray(a_t), a).sum()))
    distance, gradient = slope(np.zeros_like(a_t))
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, 1 / 4, rtol=1e-6)  # a vector of length 1 over four pixels
    np.testing.assert_array_equal(np.asarray(gradient, float), 0)


def test_without_weight_the_loss_is_the_plain_one_and_sees_no_maps(maps):
    student, teacher = (outputs._replace(stages=()) for outputs in maps)
    (loss, metrics), (plain, plain_metrics) = (
        jax.jit(functools.partial(student_loss, axis=SINGLE))(student, teacher, None, 0)
        for student_loss in (
            zskt.attention_student_loss(sample_loss=KL, attention_weight=0.0),
            plain_student_loss(KL),
        )
    )
    assert float(loss) == float(plain)
    assert metrics.keys() == plain_metrics.keys()
    assert zskt.student_capture(0.0) == ()
    assert zskt.student_capture(0.1) == (STAGES,)


def _trace_attention(student: nn.Module, teacher: nn.Module):
    """Traces the loss on the two networks' outputs for 8×8 images."""

    def trace(key, images):
        outputs = []
        for module in (student, teacher):
            network = Classifier(module, (0.5,) * 3, (0.5,) * 3)
            outputs.append(network(network.init(key, IMAGE_SHAPE), images, capture=(STAGES,)))
        return zskt.attention_student_loss(sample_loss=KL, attention_weight=1.0)(*outputs, None, 0, SINGLE)

    return jax.eval_shape(trace, jax.random.key(0), jnp.zeros((2, *IMAGE_SHAPE)))


def test_networks_of_one_family_and_other_widths_have_attention_in_common():
    loss, _ = _trace_attention(build_classifier("wrn10_1", 10), build_classifier("wrn16_2", 10))
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("teacher", "sizes"),
    [
        (VGG(((4,), (4,), (4,), (4,)), 10), "8x8, 4x4, 2x2 and the teacher's 2x2, 1x1, 1x1:"),
        (StagedNet(4), "8x8, 4x4, 2x2 and the teacher's 4x4:"),
    ],
    ids=["sizes", "number"],
)
def test_stages_that_do_not_correspond_are_refused_with_the_remedy(teacher, sizes):
    with pytest.raises(UserError) as error:
        _trace_attention(build_classifier("wrn10_1", 10), teacher)
    text = str(error.value)
    assert sizes in text and "zskt.attention_weight=0" in text and "\n" not in text


# Whole rounds.

EPOCH = Epoch(rounds=2, synthesis_steps=1, student_steps=2)


@pytest.mark.parametrize("name", METHODS)
def test_two_rounds_and_resuming_at_any_step_give_the_same_bits(name):
    teacher, state = teacher_variables(), initial_state(name)
    loop = make_epoch_function("python", EPOCH, rounds.ONE_DEVICE, steps(name))
    whole = loop(rounds.copy(state), teacher, progress=lambda _: False)
    assert (int(whole.step), int(whole.synthesis_step), bool(whole.failed)) == (4, 2, False)
    assert not _equal(whole.student.params, state.student.params)
    assert all(
        not bool((a == b).all())
        for a, b in zip(*map(jax.tree.leaves, jax.device_get((whole.aux, state.aux))), strict=True)
    )  # every array of the method's state: parameters, statistics, moments, averages
    reported = {**whole.synthesis.total, **whole.training.total}
    assert {term.name for term in TERMS[name.partition("_")[0]]} <= reported.keys()
    assert ("attention_loss" in reported) == (name == "zskt")

    piecewise, stops = rounds.copy(state), []
    while int(piecewise.step) < EPOCH.steps:
        calls = itertools.count()
        piecewise = loop(piecewise, teacher, progress=lambda _, calls=calls: next(calls) == 0)  # one step per call
        stops.append((int(piecewise.synthesis_step), int(piecewise.step)))
    assert stops == [(1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (2, 4)]
    ends = (end.replace(key=jax.random.key_data(end.key)) for end in (whole, piecewise))
    assert _equal(*ends)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, whole)


# The average of the generator.


def test_without_decay_the_state_is_a_train_state():
    assert type(jax.eval_shape(method("dfad").init, jax.random.key(0))) is TrainState


def test_images_come_from_the_exponential_average_of_the_generator():
    decay, averaged, plain = 0.75, method("dfq_averaged"), method("dfq")
    teacher, start = teacher_variables(), initial_state("dfq_averaged")
    synthesise = steps("dfq_averaged").compile(rounds.ONE_DEVICE).synthesis
    state = rounds.copy(start)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), state.aux.state.variables)
    assert _equal(state.aux.average, state.aux.state.variables)
    for _ in range(3):
        state = synthesise(state, teacher)
        new = jax.device_get(state.aux.state.variables)
        expected = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, expected, new)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
        jax.tree.map(close, state.aux.average, expected)
    other = start.replace(aux=start.aux.replace(average=jax.device_get(state.aux.average)))
    one, two = (synthesise(rounds.copy(each), teacher).aux for each in (start, other))
    assert _equal(one.state, two.state) and not _equal(one.average, two.average)  # training ignores the average

    key = jax.random.key(4)

    @jax.jit
    def images(aux, average):
        z = jax.random.normal(key, (BATCH_SIZE, LATENT_DIM))
        return (
            generator().apply(average, z, train=False),
            averaged.sample(aux, None, key, SINGLE),
            averaged.preview(aux, key, BATCH_SIZE),
            plain.sample(aux.state, None, key, SINGLE),
        )

    expected, sampled, shown, without = map(np.asarray, images(state.aux, expected))
    np.testing.assert_allclose(sampled, expected, atol=1e-5)
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    assert np.abs(without - expected).max() > 1e-3


def test_the_average_starts_in_buffers_of_its_own():
    """Steps donate the state's buffers; donating a buffer twice is an error."""
    leaves = jax.tree.leaves(method("dfad", ema_decay=0.5).init(jax.random.key(0)))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


# The benchmark's generators.


@pytest.mark.parametrize(
    ("settings", "count", "widths"),
    [
        ({"latent_dim": 256, "size": "small"}, 2_328_899, (128, 128, 64)),
        ({"latent_dim": 256, "size": "large"}, 4_581_955, (256, 128, 64)),
        ({"latent_dim": 512, "initialisation": "torch"}, 8_776_259, (256, 128, 64)),
        ({"latent_dim": 8, "size": "small", "stages": 3, "ngf": 4}, None, (16, 16, 8, 4)),
    ],
)
def test_parameters_of_the_generators(settings, count, widths):
    module = Generator((32, 32, 3), **settings)
    z = jnp.zeros((2, module.latent_dim))
    params = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), z)["params"]
    assert module.widths == widths
    assert params["linear"]["kernel"].shape == (module.latent_dim, widths[0] * (32 >> module.stages) ** 2)
    assert [params[f"bn{i}"]["scale"].shape for i in range(len(widths))] == [(w,) for w in widths]
    convolutions = [params[f"conv{i}"]["kernel"].shape for i in range(1, len(widths) + 1)]
    assert convolutions == [(3, 3, *pair) for pair in itertools.pairwise((*widths, 3))]
    assert count is None or count_parameters(params) == count


def test_torch_initialisation_is_uniform_within_one_over_the_root_of_the_inputs():
    # Many channels, so that there are enough biases to test their distribution.
    module = Generator((16, 16, 256), latent_dim=64, size="small", initialisation="torch")
    init = jax.jit(lambda key: module.init(key, jnp.zeros((1, 64)), train=False))
    params = traverse_util.flatten_dict(init(jax.random.key(0, impl="rbg"))["params"], sep=".")
    inputs = {"linear": 64, "conv1": 9 * 128, "conv2": 9 * 128, "conv3": 9 * 64}
    assert {name for name in params if not name.startswith("bn")} == {
        *(f"{layer}.kernel" for layer in inputs),
        *("linear.bias", "conv3.bias"),
    }
    for name, value in params.items():
        layer, leaf = name.split(".")
        if layer not in inputs:
            np.testing.assert_array_equal(value, 1.0 if leaf == "scale" else 0.0)
            continue
        unit = np.asarray(value, np.float64) * np.sqrt(inputs[layer])  # U(-1, 1)
        error = 5 / np.sqrt(unit.size)  # five standard errors
        assert np.abs(unit).max() <= 1 + 1e-6
        assert abs(unit.mean()) < error / np.sqrt(3)
        assert abs((unit**2).mean() - 1 / 3) < error * np.sqrt(1 / 5 - 1 / 9)
        assert abs((unit**4).mean() - 1 / 5) < error * np.sqrt(1 / 9 - 1 / 25)


@pytest.mark.parametrize("setting", [{"size": "Small"}, {"initialisation": "pytorch"}])
def test_unknown_names_list_the_valid_ones(setting):
    (key, value), valid = *setting.items(), {"size": "large, small", "initialisation": "normal, torch"}
    with pytest.raises(UserError, match=rf"generator\.{key} '{value}'.*; valid: {valid[key]}"):
        Generator((8, 8, 3), 4, **setting)


# Devices, in a separate process, because they and float64 are set before JAX starts.


@pytest.fixture(scope="module", name="differences")
def _differences():
    """Returns by method the largest difference between two devices and one after a step."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow  # test_devices has cudfkd's
@pytest.mark.parametrize("name", METHODS)
def test_float64_updates_of_two_devices_are_those_of_one(differences, name):
    """Compares gradient norms too, because Adam's update hides a constant factor in the gradient."""
    found = differences[name]
    assert found.keys() == {"student", "aux", "synthesis", "training"}
    assert max(found.values()) < 1e-9, found


def _measure(name: str) -> dict[str, float]:
    def cast(tree):
        return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def step(state, teacher, *, axis):
        of = {"problem": problem(name), "axis": axis}
        state = distill_steps.synthesis_step(state, teacher, **of)
        # The other methods' student losses are shared by all methods.
        return distill_steps.student_step(state, teacher, **of) if name == "zskt" else state

    def update(count):
        devices = local_devices(count)
        start, teacher = cast(initial_state(name)), cast(teacher_variables())
        after = devices.compile(step)(devices.replicate(rounds.copy(start)), devices.replicate(teacher))
        one = devices.unreplicate(after)
        assert not one.failed and not _equal(one.aux, start.aux), "the step changed nothing"
        return one

    def largest(a, b):
        def relative(x, y):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            return float(np.max(np.abs(x - y)) / max(np.max(np.abs(x)), 1e-12))

        return max(jax.tree.leaves(jax.tree.map(relative, a, b)))

    one, two = update(1), update(2)
    return {
        part: largest(getattr(one, part), getattr(two, part))
        for part in ("student", "aux", "synthesis", "training")
    }


if __name__ == "__main__":
    print(json.dumps({name: _measure(name) for name in METHODS}))
