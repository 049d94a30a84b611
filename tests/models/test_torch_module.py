"""Tests of PyTorch classifiers as Flax modules: PyTorch's numbers, our captures, a line for what does not work."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cudfkd_jax.models import build_classifier, torch_module
from cudfkd_jax.models.capture import BN, FEATURES, INSTANCES, STAGES, apply, batch_norm_layers, has_batch_norm
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.devices import Axis, local_devices
from cudfkd_jax.runtime.errors import UserError

torch = pytest.importorskip("torch")
torch_nets = pytest.importorskip("torch_nets")

SHAPE = (8, 8, 1)


def _images(count: int = 4, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(dtype)


def _to_torch(images: np.ndarray):
    return torch.from_numpy(images).movedim(-1, 1)


def _wrapped(network, dtype=None):
    module = torch_module.wrap(network, 10, "net", dtype)
    return module, torch_module.own_variables(module, SHAPE)


@pytest.fixture(scope="module", name="small")
def _small():
    network = torch_nets.make()
    return network, *_wrapped(network)


@pytest.fixture(scope="module", name="outputs")
def _outputs(small):
    _, module, variables = small
    return jax.jit(lambda v, x: apply(module, v, x, capture=(BN, FEATURES, INSTANCES)))(variables, _images())


# Numbers


def _logits(network, images):
    with torch.no_grad():
        found = network.eval()(_to_torch(images))
    return getattr(found, "logits", found).numpy()


def test_logits_are_those_of_pytorch(small, outputs):
    np.testing.assert_allclose(outputs.value, _logits(small[0], _images()), atol=1e-6)
    assert outputs.value.dtype == jnp.float32


@pytest.mark.parametrize("network", [torch_nets.Attention, torch_nets.Wrapped])
def test_other_networks_give_pytorchs_logits(network):
    network = network()
    module, variables = _wrapped(network)
    assert not has_batch_norm(variables)
    outputs = apply(module, variables, _images(), capture=(FEATURES,))
    np.testing.assert_allclose(outputs.value, _logits(network, _images()), atol=1e-6)
    assert outputs.features.shape[0] == 4


def test_layers_are_known_by_their_own_tensors_alone():
    network = torch_nets.randomise_statistics(torch_nets.Borrowed(), torch.Generator().manual_seed(0))
    module, variables = _wrapped(network)
    assert batch_norm_layers(variables) == ["plain"] and "bn.running_mean" in variables["params"]
    outputs = apply(module, variables, _images(), capture=(BN, FEATURES))
    np.testing.assert_allclose(outputs.value, _logits(network, _images()), atol=1e-6)


def test_gradients_by_the_images_are_those_of_pytorch(small):
    network, module, variables = small
    weights = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    found = jax.grad(lambda x: jnp.sum(weights * apply(module, variables, x).value))(jnp.asarray(_images()))
    images = _to_torch(_images()).requires_grad_()
    (network.eval()(images) * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_allclose(found, images.grad.movedim(1, -1), atol=1e-6)


def test_batch_norm_inputs_are_those_of_pytorch(small, outputs):
    network, _, variables = small
    seen = {}
    for name in ("bn1", "bn2", "bn3"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].detach())
        )
    _logits(network, _images())
    assert batch_norm_layers(variables) == ["bn1", "bn2", "bn3"]  # without the layer that is not called
    calls = [(name, x) for name in sorted(seen) for x in seen[name]]
    assert [name for name, _ in calls] == ["bn1", "bn2", "bn2", "bn3"]
    for (name, x), bn, means in zip(calls, outputs.bn, outputs.instances, strict=True):
        axes = (0, *range(2, x.ndim))
        layer = network.get_submodule(name)
        np.testing.assert_allclose(bn.mean, x.mean(axes), atol=1e-6)
        np.testing.assert_allclose(bn.var, x.var(axes, unbiased=False), atol=1e-6)
        np.testing.assert_array_equal(bn.running_mean, layer.running_mean)
        np.testing.assert_array_equal(bn.running_var, layer.running_var)
        np.testing.assert_allclose(means, x.flatten(2).mean(2) if x.ndim > 2 else x, atol=1e-6)


def test_features_are_the_inputs_of_the_last_layer(small, outputs):
    head = small[2]["params"]["fc"]
    np.testing.assert_allclose(outputs.features @ head["kernel"] + head["bias"], outputs.value, atol=1e-5)


def test_bfloat16_is_for_products_and_the_statistics_stay_float32(small, outputs):
    network, _, variables = small
    module = torch_module.wrap(network, 10, "net", jnp.bfloat16)
    program = jax.make_jaxpr(lambda v, x: apply(module, v, x, capture=(FEATURES,)))(variables, _images())
    names = ("conv_general_dilated", "dot_general")
    dtypes = [str(e.outvars[0].aval.dtype) for e in _equations(program.jaxpr) if e.primitive.name in names]
    assert len(dtypes) >= 4 and set(dtypes) == {"bfloat16"}
    found = apply(module, variables, _images(), capture=(BN,))
    assert found.value.dtype == found.bn[0].mean.dtype == jnp.float32
    np.testing.assert_allclose(found.value, outputs.value, atol=0.05)


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from _equations(inner)


# Variables


def test_init_returns_the_weights_of_the_module(small):
    network, module, variables = small
    found = Classifier(module, (0.5,), (0.2,)).init(jax.random.key(1), SHAPE)
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    state = network.state_dict()
    back = torch_module.to_tensors(torch_module.names(module)[0], variables)
    assert set(state) - set(back) == {"order"} | {n for n in state if n.endswith("num_batches_tracked")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name], strict=True)
    assert set(variables["params"]) >= {"conv1.weight", "scale", "unused.running_mean"}


def test_the_variables_decide_not_the_module(small):
    _, module, _ = small
    other = torch_nets.make(seed=1)
    variables = _wrapped(other)[1]
    np.testing.assert_allclose(apply(module, variables, _images()).value, _logits(other, _images()), atol=1e-6)


def test_the_module_is_left_as_it_was():
    network = torch_nets.make()
    network.train()
    network.bn1.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module, variables = _wrapped(network)
    apply(module, variables, _images(), train=True, capture=(BN,))
    assert network.training and network.conv1.training and not network.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(isinstance(p, jax.Array) for p in network.parameters())


def test_dropout_is_off_and_statistics_stay_in_training(small):
    _, module, variables = small
    found = apply(module, variables, _images(), train=True, key=jax.random.key(0))
    np.testing.assert_allclose(found.value, apply(module, variables, _images()).value)
    jax.tree.map(np.testing.assert_array_equal, found.batch_stats, variables["batch_stats"])


def test_random_numbers_are_the_same_at_every_call_and_leak_nothing():
    module, variables = _wrapped(torch_nets.Noisy())
    evaluate = jax.jit(lambda x: apply(module, variables, x).value)
    first = evaluate(_images())
    np.testing.assert_array_equal(first, jax.jit(lambda x: apply(module, variables, x).value)(_images()))


# Devices


def test_two_devices_see_what_one_sees():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_ENABLE_X64": "True",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert max(json.loads(process.stdout.splitlines()[-1]).values()) < 1e-9


def _measure_devices() -> None:
    """Prints the largest differences of logits, of statistics and of a gradient between two devices and one."""
    module, variables = _wrapped(torch_nets.make())
    variables = jax.tree.map(lambda x: x.astype(np.float64), variables)

    def step(images, axis: Axis):
        def loss(x):
            found = apply(module, variables, axis.shard(x), capture=(BN,), axis=axis)
            return axis.mean(jnp.mean(found.value**2)) + sum(jnp.sum(b.mean**2 + b.var) for b in found.bn), found

        gradient, found = jax.grad(loss, has_aux=True)(images)
        return {"gradient": axis.mean(gradient), "logits": axis.gather(found.value), "bn": found.bn}

    images = jnp.asarray(_images(dtype=np.float64))
    results = []
    for count in (1, 2):
        devices = local_devices(count)
        compiled = devices.compile(step, donate_state=False)
        results.append(jax.device_get(devices.unreplicate(compiled(devices.replicate(images)))))
    differences = {}
    for name in results[0]:
        pairs = zip(*(jax.tree.leaves(result[name]) for result in results), strict=True)
        differences[name] = max(float(np.max(np.abs(one - two))) for one, two in pairs)
    print(json.dumps(differences))


# What does not work


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (torch_nets.Branches, r"layer inner\.1 \(Choice\) cannot run in JAX \(\w+: Abstract tracer"),
        (torch_nets.NoStatistics, r"layer body\.1 \(BatchNorm2d\) has no running statistics"),
        (torch_nets.NotLogits, "returns a dict; expected logits"),
        (lambda: torch.nn.LazyLinear(10), "weight has no values; call the module once"),
    ],
)
def test_a_module_that_cannot_run_is_refused_in_one_line(network, text):
    with pytest.raises(UserError, match=text) as error:
        _wrapped(network())
    assert "\n" not in str(error.value)


def test_stages_are_refused_in_words_that_fit(small):
    with pytest.raises(UserError, match=r"PyTorch module.*zskt\.attention_weight"):
        apply(small[1], small[2], _images(), capture=(STAGES,))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("torch:no_such_package:make", "cannot import 'no_such_package'"),
        ("torch:torch_nets:mak", r"holds no 'mak' \(did you mean 'make'\?\)"),
        ("torch:torch_nets:wants_arguments", r"wants arguments \(width\)"),
        ("torch:user_nets:Plain", "gives a Plain; expected a torch.nn.Module"),
        ("torch_nets:Small", "torch:torch_nets:Small"),
    ],
)
def test_a_wrong_path_is_refused(path, text):
    with pytest.raises(UserError, match=text):
        build_classifier(path, 10)


def test_a_path_is_imported_once():
    assert build_classifier("torch:torch_nets:Small", 10) == build_classifier("torch:torch_nets:Small", 10)


if __name__ == "__main__":
    _measure_devices()
