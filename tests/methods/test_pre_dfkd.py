"""Tests of PRE-DFKD: its networks against PyTorch, its memory against NumPy, and the method in the loop."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax
import pytest
import replay_nets
import rounds
from scipy.special import log_softmax, softmax
from scipy.stats import multivariate_normal

from cudfkd_jax.methods.memory.generative_memory import GenerativeMemory, gaussian_kl
from cudfkd_jax.models import count_parameters
from cudfkd_jax.models.capture import Outputs, apply
from cudfkd_jax.models.train_state import TrainState
from cudfkd_jax.models.vae import Encoder, NormalisedGenerator
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError
from cudfkd_jax.storage import checkpoint
from cudfkd_jax.training.state import STUDENT, purpose_key

MEAN, STD = replay_nets.MEAN, replay_nets.STD
CIFAR = {"mean": MEAN, "std": STD}


@pytest.mark.parametrize(
    ("module", "given", "parameters"),
    [
        (NormalisedGenerator((32, 32, 3), 1000, **CIFAR), (2, 1000), 8_423_939),
        (NormalisedGenerator((32, 32, 3), 1000, **CIFAR, spectral_norm=True), (2, 1000), 8_423_939),
        (NormalisedGenerator((16, 16, 1), 64, (0.3,), (0.4,), width=16), (2, 64), 47_457),
        (Encoder(1000, **CIFAR), (2, 32, 32, 3), 4_321_872),
        (Encoder(64, (0.3,), (0.4,), width=16), (2, 16, 16, 1), 30_720),
    ],
)
def test_shapes_and_parameters(module, given, parameters):
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(given), train=False))
    assert count_parameters(variables["params"]) == parameters
    found = jax.eval_shape(lambda v: module.apply(v, jnp.zeros(given), train=False), variables)
    if isinstance(module, Encoder):
        assert [x.shape for x in found] == [(2, module.latent_dim)] * 2
    else:
        assert found.shape == (2, *module.image_shape)
        assert "scale" not in variables["params"].get("output", {})


def test_weights_are_uniform_and_biases_zero(run):
    _, _, state = run
    for network in (state.aux.memory.decoder, state.aux.memory.encoder):
        for layer in network.params.values():
            if "kernel" in layer:
                assert np.abs(layer["kernel"]).max() <= 0.08 and np.std(layer["kernel"]) > 0.01
            assert not np.any(layer["bias"])


def test_bf16_networks_return_float32():
    generator = replay_nets.generator(dtype=jnp.bfloat16, spectral_norm=True)
    variables = jax.eval_shape(lambda: generator.init(jax.random.key(0), jnp.zeros((2, 6)), train=False))
    images = jax.eval_shape(lambda v: generator.apply(v, jnp.zeros((2, 6)), train=False), variables)
    assert images.dtype == jnp.float32
    encoder = Encoder(6, **CIFAR, width=3, dtype=jnp.bfloat16)
    found = jax.eval_shape(
        lambda: encoder.init_with_output(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=False)
    )
    assert all(x.dtype == jnp.float32 for x in found[0])


def test_images_that_cannot_be_halved_are_cropped_and_smaller_ones_refused():
    generator = NormalisedGenerator((9, 10, 3), 8, **CIFAR, width=4)
    made, _ = replay_nets.jit(functools.partial(generator.init_with_output, mutable=True, train=True))(
        jax.random.key(0), jax.random.normal(jax.random.key(1), (64, 8))
    )
    assert made.shape == (64, 9, 10, 3)
    np.testing.assert_allclose(made.mean((0, 1, 2)), MEAN, atol=1e-3)  # of the images as they leave
    with pytest.raises(UserError, match=r"generator\.stages=2 makes images of at least 4x4 pixels"):
        NormalisedGenerator((3, 32, 3), 8, **CIFAR)


def _randomised(module, given):
    """Returns variables none of which is 0 or 1."""
    init = replay_nets.jit(functools.partial(module.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros(given))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(x + random.uniform(0.05, 0.3, x.shape), jnp.float32), variables)


def _torch_layers(torch, variables):
    """Computes convolution and BatchNorm in PyTorch, with the weights of flax variables."""
    functional = torch.nn.functional
    params = variables["params"]

    def tensor(x):
        return torch.tensor(np.asarray(x, np.float64))

    def kernel(name):
        return tensor(params[name]["kernel"]).permute(3, 2, 0, 1)

    def conv(name, x, weight=None, stride=1):
        weight = kernel(name) if weight is None else weight
        return functional.conv2d(x, weight, tensor(params[name]["bias"]), stride=stride, padding=1)

    def norm(name, x, train, eps):
        running = (tensor(variables["batch_stats"][name][key]) for key in ("mean", "var"))
        affine = (tensor(params[name][key]) if name in params else None for key in ("scale", "bias"))
        return functional.batch_norm(x, *running, *affine, training=train, eps=eps)

    return tensor, kernel, conv, norm


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("spectral", [False, True])
def test_generator_matches_pytorch(spectral, train):
    torch = pytest.importorskip("torch")
    generator = replay_nets.generator(stages=2, spectral_norm=spectral)
    variables = _randomised(generator, (1, 6))
    z = np.asarray(jax.random.normal(jax.random.key(1), (5, 6)))
    first = apply(generator, variables, z, train=train)  # updates singular vectors, in training only
    found = apply(generator, variables | {"batch_stats": first.batch_stats}, z, train=train).value

    _, kernel, conv, norm = _torch_layers(torch, variables | {"batch_stats": first.batch_stats})
    params = variables["params"]

    def weight(name, index):
        if not spectral:
            return None
        module = torch.nn.Conv2d(*kernel(name).shape[1::-1], 3, bias=False).double()
        module.weight.data = kernel(name).clone()
        module = torch.nn.utils.spectral_norm(module)
        u = np.asarray(variables["batch_stats"][f"norm{index}"][f"{name}/kernel/u"], np.float64)[0]
        module.weight_u.copy_(torch.tensor(u / np.linalg.norm(u)))
        if train:  # each forward call is one power iteration
            module(torch.zeros(1, module.in_channels, 4, 4).double())
        module(torch.zeros(1, module.in_channels, 4, 4).double())
        return module.weight.detach()

    x = z @ np.asarray(params["linear"]["kernel"], np.float64) + np.asarray(params["linear"]["bias"], np.float64)
    x = torch.tensor(x.reshape(5, 2, 2, 6)).permute(0, 3, 1, 2)
    x = norm("bn0", x, train, 1e-5)
    for index in (1, 2):
        x = torch.nn.functional.interpolate(x, scale_factor=2)
        x = norm(f"bn{index}", conv(f"conv{index}", x, weight(f"conv{index}", index)), train, 0.8)
        x = torch.nn.functional.leaky_relu(x, 0.2)
    y = norm("output", torch.tanh(conv("conv3", x, weight("conv3", 3))), train, 1e-5)
    expected = y.permute(0, 2, 3, 1).numpy() * np.asarray(STD) + np.asarray(MEAN)
    np.testing.assert_allclose(found, expected, atol=2e-3 if train else 1e-4)


@pytest.mark.parametrize("train", [True, False])
def test_encoder_matches_pytorch(train):
    torch = pytest.importorskip("torch")
    encoder = Encoder(6, **CIFAR, width=3)
    variables = _randomised(encoder, (1, 16, 16, 3))
    images = np.asarray(jax.random.uniform(jax.random.key(1), (5, 16, 16, 3)), np.float64)
    found = apply(encoder, variables, jnp.asarray(images, jnp.float32), train=train).value
    tensor, _, conv, norm = _torch_layers(torch, variables)
    functional = torch.nn.functional
    x = functional.normalize(tensor((images - MEAN) / STD).permute(0, 3, 1, 2), dim=2)  # across the height
    x = functional.leaky_relu(norm("bn1", conv("conv1", x), train, 0.8), 0.2)
    x = functional.leaky_relu(norm("bn2", conv("conv2", x), train, 0.8), 0.2)
    x = norm("bn3", conv("conv3", functional.interpolate(x, scale_factor=0.5), stride=2), train, 1e-5)
    x = functional.interpolate(x, scale_factor=0.5).permute(0, 2, 3, 1).reshape(5, -1)
    for value, name in zip(found, ("mean_head", "log_var_head"), strict=True):
        head = variables["params"][name]
        np.testing.assert_allclose(value, x @ tensor(head["kernel"]) + tensor(head["bias"]), atol=1e-4)


def test_spectral_norm_brings_singular_values_to_one_and_its_state_is_saved(run, tmp_path):
    generator = replay_nets.generator(spectral_norm=True)
    variables = run[-1].aux.generator.variables
    z = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    call = jax.jit(lambda v: apply(generator, v, z, train=True).batch_stats)
    for _ in range(60):
        variables["batch_stats"] = call(variables)
    for index in (1, 2):
        kernel = np.asarray(variables["params"][f"conv{index}"]["kernel"])
        largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        np.testing.assert_allclose(
            variables["batch_stats"][f"norm{index}"][f"conv{index}/kernel/sigma"], largest, rtol=1e-3
        )
    state = jax.jit(lambda variables: TrainState.create(variables, optax.adam(0.02)))(variables)
    checkpoint.save(tmp_path, 1, state, keep=1)
    restored, _ = checkpoint.restore_newest(tmp_path, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert _same(restored, state)


def test_kl_to_the_standard_normal():
    random = np.random.default_rng(0)
    mean, log_var = random.normal(size=(2, 1, 2))
    z = mean[0] + np.exp(log_var[0] / 2) * random.normal(size=(200_000, 2))
    q = multivariate_normal(mean[0], np.diag(np.exp(log_var[0])))
    sampled = np.mean(q.logpdf(z) - multivariate_normal(np.zeros(2), np.eye(2)).logpdf(z))
    np.testing.assert_allclose(jax.jit(gaussian_kl)(mean, log_var), [sampled], rtol=0.02)


class LinearDecoder(nn.Module):
    image_shape: tuple[int, int, int] = (2, 1, 2)
    latent_dim: int = 3
    std: tuple[float, ...] = (0.5, 2.0)

    @nn.compact
    def __call__(self, z, train):
        calls = self.variable("batch_stats", "calls", jnp.zeros, ())
        if train:
            calls.value += 1
        return (z @ self.param("w", nn.initializers.normal(1.0), (3, 4))).reshape(-1, *self.image_shape)


class LinearEncoder(nn.Module):
    latent_dim: int = 3

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        return tuple(x @ self.param(name, nn.initializers.normal(0.5), (4, 3)) for name in ("mean", "log_var"))


LOGITS = np.random.default_rng(5).normal(0, 1, (4, 6))  # of the linear teacher


def _linear_teacher(images, **_):
    return Outputs(images.reshape(len(images), -1) @ jnp.asarray(LOGITS, images.dtype), {})


def _linear_memory(class_weight=0.7, balance_weight=5.0):
    return GenerativeMemory(
        encoder=LinearEncoder(),
        decoder=LinearDecoder(),
        optimiser=optax.sgd(1.0),
        rows=4,
        class_weight=class_weight,
        balance_weight=balance_weight,
        learning_rate=0.02,
        kl_weight=0.3,
    )


def _central_differences(function, x, size=1e-5):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        around = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * size
            around.append(function(moved))
        gradient[index] = (around[0] - around[1]) / (2 * size)
    return gradient


def _tuned(w, key, class_weight=0.7, balance_weight=5.0):
    """Computes in NumPy a linear decoder's replay `[4, 4]`: latents after Adam's first step, decoded."""
    z = np.asarray(jax.random.normal(key, (4, 3)), np.float64)

    def objective(z):
        logits = z @ w @ LOGITS
        mean_p = softmax(logits, axis=1).mean(axis=0)
        spread = np.mean((z.var(axis=0, ddof=1) - 1) ** 2) + np.mean(z.mean(axis=0) ** 2)
        confident = -np.mean(log_softmax(logits, axis=1).max(axis=1))
        return class_weight * confident + balance_weight * np.sum(mean_p * np.log10(mean_p)) + spread

    g = _central_differences(objective, z)
    return (z - 0.02 * g / (np.abs(g) + 1e-8)) @ w


# Adam's first step mostly depends on signs; alone, the distance of z to N(0, I) determines some of them.
@pytest.mark.parametrize("weights", [(0.7, 5.0), (0.0, 0.0)])
def test_replayed_images_are_of_latents_tuned_by_one_adam_step(weights):
    memory = _linear_memory(*weights)
    decoder = jax.jit(memory.init)(jax.random.key(0)).decoder
    replay = replay_nets.jit(lambda d, key: memory.replay(d, _linear_teacher, key, SINGLE, train=False)[0])
    w = np.asarray(decoder.params["w"], np.float64)
    for key in jax.random.split(jax.random.key(3), 6):
        images = replay(decoder, key).reshape(4, 4)
        np.testing.assert_allclose(images, _tuned(w, key, *weights), rtol=1e-3, atol=1e-5)
        assert np.abs(images - np.asarray(jax.random.normal(key, (4, 3))) @ w).max() > 0.01


@functools.cache
def _vae_step():
    memory = _linear_memory()
    return replay_nets.jit(
        lambda state, new, instead, key, first: memory.update(
            state, _linear_teacher, new, instead, key, first, SINGLE
        )
    )


@pytest.mark.parametrize("first", [True, False])
def test_vae_steps_down_its_loss_on_new_and_replayed_images(first):
    state = jax.jit(_linear_memory().init)(jax.random.key(0))
    key = jax.random.key(4)
    new, instead = (np.asarray(jax.random.normal(jax.random.key(k), (n, 2, 1, 2))) for k, n in ((5, 6), (6, 4)))
    after = _vae_step()(state, new, instead, key, first)

    replay_key, noise_key = jax.random.split(key)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), {**state.encoder.params, **state.decoder.params})
    replayed = instead.reshape(4, 4) if first else _tuned(params["w"], replay_key)
    x = np.concatenate([new.reshape(6, 4), replayed]).astype(np.float64)
    noise = np.asarray(jax.random.normal(noise_key, (10, 3)), np.float64)
    std = np.asarray([0.5, 2.0, 0.5, 2.0])

    def loss(mean, log_var, w):
        mean, log_var = x @ mean, x @ log_var
        made = (mean + np.exp(log_var / 2) * noise) @ w
        kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(axis=1)
        return np.abs((made - x) / std).mean() + np.abs((made - x) @ LOGITS).mean() + 0.3 * kl.mean()

    for name in ("mean", "log_var", "w"):
        expected = -_central_differences(lambda p, name=name: loss(**(params | {name: p})), params[name])
        moved = after.decoder if name == "w" else after.encoder
        np.testing.assert_allclose(moved.params[name] - params[name], expected, rtol=2e-3, atol=1e-4, err_msg=name)
    # To tune latents, to replay them and to decode; only the last matters in the first round.
    assert float(after.decoder.batch_stats["calls"]) == (1 if first else 3)


@pytest.fixture(scope="module", name="run")
def _run():
    method = replay_nets.pre_method()
    return method, nets.teacher_variables(), rounds.initial_state(method)


def _same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), *jax.device_get((a, b)))))


@pytest.fixture(scope="module", name="finished")
def _finished(run):
    method, teacher, state = run
    return replay_nets.step("finish", method)(state, teacher)


def test_the_memory_is_trained_between_synthesis_and_student(run, finished):
    _, _, state = run
    before, after = state.aux, finished.aux
    assert _same(before.generator.params, after.generator.params)
    assert _same(before.generator.opt_state, after.generator.opt_state)
    assert not _same(before.generator.batch_stats, after.generator.batch_stats)
    for network in ("encoder", "decoder"):
        old, new = getattr(before.memory, network), getattr(after.memory, network)
        assert not _same(old.params, new.params) and not _same(old.batch_stats, new.batch_stats)
        assert int(new.opt_state[0].count) == 1
    assert _same(state.student, finished.student)


def test_only_the_first_round_learns_from_new_images_alone(run, monkeypatch):
    _, _, state = run
    seen = []

    def update(self, state, teacher, new, instead, key, first, axis):
        seen.append((len(new), len(instead), first))
        return state

    monkeypatch.setattr(GenerativeMemory, "update", update)
    method = replay_nets.pre_method(memory_steps=2)

    @replay_nets.jit
    def updates(aux, step):
        method.finish(aux, None, jax.random.key(0), step, SINGLE)
        return seen

    for step, first in ((0, True), (rounds.EPOCH.student_steps, False)):
        assert jax.device_get(updates(state.aux, step)) == 2 * [(replay_nets.BATCH // 2, 4, first)]


def test_a_student_batch_is_new_images_and_replays(run, finished):
    method, teacher, _ = run
    draw = replay_nets.student_batch(method)
    images = np.asarray(draw(finished, teacher, jax.random.key(9))[0])
    assert images.shape == (replay_nets.BATCH + 4, *nets.IMAGE_SHAPE)
    new = images[: replay_nets.BATCH]
    np.testing.assert_allclose(new.mean(axis=(0, 1, 2)), MEAN, atol=1e-5)  # the statistics of their batch
    decoder = finished.aux.memory.decoder.replace(
        batch_stats=jax.tree.map(lambda x: x + 0.5, jax.device_get(finished.aux.memory.decoder.batch_stats))
    )
    aux = finished.aux.replace(memory=finished.aux.memory.replace(decoder=decoder))
    changed = np.asarray(draw(finished.replace(aux=aux), teacher, jax.random.key(9))[0])
    np.testing.assert_array_equal(changed[: replay_nets.BATCH], new)
    # Replays follow the decoder and its running statistics.
    assert np.abs(changed[replay_nets.BATCH :] - images[replay_nets.BATCH :]).max() > 0.01


def test_student_minimises_l1_on_all_of_them(run, finished):
    method, teacher, _ = run
    after = replay_nets.step("student", method)(finished, teacher)
    key = purpose_key(finished.key, STUDENT, 0)
    _, *logits = replay_nets.student_batch(method)(finished, teacher, key)
    t, s = (np.asarray(x, np.float64) for x in logits)
    np.testing.assert_allclose(after.training.last["student_loss"], np.abs(t - s).mean(), rtol=1e-4)
    assert _same(after.aux, finished.aux)


def test_impossible_sizes_are_refused_in_one_line():
    for call, words in (
        (functools.partial(replay_nets.pre_method, batch_size=9), "batch_size=9"),
        (functools.partial(replay_nets.pre_method, rows=1), "1 replayed"),
        (
            lambda: GenerativeMemory(
                Encoder(5, **CIFAR), replay_nets.generator(), optax.sgd(1.0), 4, 1.0, 5.0, 0.02, 1e-5
            ),
            "latent_dim=5",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
    for size, words in (({"batch_size": 6}, "the 3 images of half"), ({"rows": 3}, "the 3 replayed images")):
        with pytest.raises(UserError, match=words):
            replay_nets.pre_method(**size).finish(None, None, jax.random.key(0), 0, Axis("devices", 2))


def test_two_rounds_and_resuming_at_any_step_with_the_same_bits(run):
    method, _, state = run
    (whole,) = replay_nets.run_epochs(method, state, 1, piecewise=False)
    assert not bool(whole.failed) and int(whole.step) == rounds.EPOCH.steps
    bits = rounds.bits(whole)
    assert all(np.isfinite(x).all() for x in bits if np.issubdtype(x.dtype, np.floating))
    (piecewise,) = replay_nets.run_epochs(method, state, 1, piecewise=True)
    pairs = zip(bits, rounds.bits(piecewise), strict=True)
    assert all(a.dtype == b.dtype and (a == b).all() for a, b in pairs)


@pytest.mark.slow
def test_two_devices_compute_what_one_does():
    found = rounds.device_differences(__file__)
    assert set(found) == {"finish_first", "finish_later", "student"}
    assert max(found.values()) < 1e-9, found


def _measure():
    def later(state):
        return state.replace(step=state.step + rounds.EPOCH.student_steps)

    def as_it_is(state):
        return state

    return replay_nets.measure(
        replay_nets.pre_method(optimiser=replay_nets.SGD, memory_optimiser=replay_nets.SGD),
        {
            "finish_first": ("finish", as_it_is),
            "finish_later": ("finish", later),
            "student": ("student", as_it_is),
        },
    )


if __name__ == "__main__":
    print(json.dumps(_measure()))
