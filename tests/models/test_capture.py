"""Tests of the capture of BatchNorm inputs in modules not written for it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from cudfkd_jax.models import MODELS, build_classifier
from cudfkd_jax.models.capture import BN, apply
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.objectives.losses import bn_alignment
from cudfkd_jax.runtime.errors import UserError


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x))


class Net(nn.Module):
    wrap: str = ""

    @nn.compact
    def __call__(self, x, train: bool):
        block = {"": Block, "remat": nn.remat(Block, static_argnums=2), "jit": nn.jit(Block, static_argnums=2)}
        x = block[self.wrap]()(x, train)
        x = nn.GroupNorm(2)(x)
        x = nn.BatchNorm(use_running_average=not train, axis=1)(x)  # features not last
        return nn.Dense(3)(x.mean((1, 2)))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, carry, _):
                return nn.BatchNorm(use_running_average=not train)(carry), None

        layers = nn.scan(
            Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2
        )
        return layers()(x, None)[0].mean((1, 2))


@pytest.fixture(name="x")
def _x():
    return np.random.default_rng(1).standard_normal((6, 8, 8, 3), np.float32) * 3 + 5


def _drawn(module, x):
    return nets.drawn(jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x))


def _logits(module, variables, x):
    return jax.jit(functools.partial(module.apply, train=False))(variables, x)


@pytest.mark.parametrize("wrap", ["", "remat", "jit"])
def test_statistics_are_those_of_the_batch_norm_inputs(x, wrap):
    variables = _drawn(Net(wrap), x)
    outputs = jax.jit(lambda v, x: apply(Net(wrap), v, x, capture=(BN,)))(variables, x)
    plain = _logits(Net(wrap), variables, x)
    np.testing.assert_allclose(outputs.value, plain, rtol=1e-4)
    assert len(outputs.bn) == 2
    # The one inside the block normalises the convolution's output.
    first = next(bn for bn in outputs.bn if bn.mean.shape == (4,))
    params = next(p for name, p in variables["params"].items() if "Block" in name)["Conv_0"]
    conv = np.asarray(jax.jit(nn.Conv(4, (3, 3)).apply)({"params": params}, x))
    np.testing.assert_allclose(first.mean, np.mean(conv, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(first.var, np.var(conv, (0, 1, 2)), rtol=1e-4)
    # The other normalises axis 1, of length 8.
    assert {bn.mean.shape for bn in outputs.bn} == {(4,), (8,)}


def test_capture_has_gradients(x):
    variables = _drawn(Net(), x)

    def total(x):
        return sum(bn.var.sum() for bn in apply(Net(), variables, x, capture=(BN,)).bn)

    gradient = jax.jit(jax.grad(total))(x)
    assert np.all(np.isfinite(gradient)) and np.any(gradient)


def test_layers_hidden_by_a_lifted_transform_are_refused_by_name():
    x = np.ones((2, 4, 4, 3), np.float32)
    variables = _drawn(Scanned(), x)
    with pytest.raises(UserError, match=r"BatchNorm layers cannot be seen \(.*BatchNorm_0.*nn\.scan"):
        apply(Scanned(), variables, x, capture=(BN,))


def test_train_updates_running_statistics_and_evaluation_does_not(x):
    variables = _drawn(Net(), x)
    trained, kept = (
        jax.device_get(jax.jit(functools.partial(apply, Net(), train=train))(variables, x).batch_stats)
        for train in (True, False)
    )
    old = jax.device_get(variables["batch_stats"])
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), kept, old)))
    assert not any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), trained, old)))


@pytest.mark.slow  # test_models has a small member of each family
@pytest.mark.parametrize("arch", sorted(MODELS))
def test_every_registered_model_is_captured_whole(arch):
    network = Classifier(build_classifier(arch, 10), (0.5,) * 3, (0.2,) * 3)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), (32, 32, 3)))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    outputs = jax.eval_shape(lambda v, x: network(v, x, capture=(BN,)), variables, images)
    assert len(outputs.bn) == len(jax.tree.leaves(variables["batch_stats"])) // 2


def test_classifier_normalises(x):
    variables = _drawn(Net(), x)
    mean, std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    expected = _logits(Net(), variables, (x - np.float32(mean)) / np.float32(std))
    np.testing.assert_allclose(jax.jit(Classifier(Net(), mean, std))(variables, x).value, expected, rtol=1e-5)


def test_bfloat16_changes_the_alignment_by_less_than_a_percent():
    """Statistics are float32 sums of bfloat16 outputs, so rounding errors average out."""
    seen, others = np.random.default_rng(1).standard_normal((2, 32, 16, 16, 3), np.float32)
    variables = nets.variables(nets.classifier(8))
    train = jax.jit(lambda v: apply(nets.TinyNet(8), v, seen, train=True).batch_stats)
    for _ in range(40):  # the running statistics become the images'
        variables = variables | {"batch_stats": train(variables)}

    def alignment(dtype):
        rounded = nets.TinyNet(8, dtype)
        return float(jax.jit(lambda v: bn_alignment(apply(rounded, v, others, capture=(BN,)).bn))(variables))

    exact = alignment(None)
    assert alignment(jnp.bfloat16) == pytest.approx(exact, rel=0.01) and alignment(jnp.bfloat16) != exact
