"""Tests of Flax NNX modules as networks: what they compute, their mode, their variables and their names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import nnx_nets
import numpy as np
import pytest
from flax import nnx

from cudfkd_jax import models
from cudfkd_jax.models import imported, nnx_module
from cudfkd_jax.models.capture import BN, FEATURES, INSTANCES, STAGES, apply
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError

SHAPE = (8, 8, 1)


@pytest.fixture(name="x")
def _x():
    return 2 + np.random.default_rng(1).standard_normal((6, *SHAPE), np.float32)


def _used(seed=3):
    """Returns a network with statistics other than the initial ones."""
    net = nnx_nets.Net(rngs=nnx.Rngs(seed))
    nnx.capture(net, nnx.Intermediate)(np.random.default_rng(9).standard_normal((16, *SHAPE), np.float32))
    return net


def _wrapped(net):
    return nnx_module.from_module(net), nnx_module.variables_of(net)


def _init(module, seed=0):
    return Classifier(module, (0.0,), (1.0,)).init(jax.random.key(seed), SHAPE)


_apply = jax.jit(apply, static_argnums=0, static_argnames=("train", "capture", "fold"))


def _call(net, x):
    """Calls a module of NNX, compiled as a whole, which updates its statistics as a plain call does."""
    return nnx.jit(lambda net, x: net(x))(net, x)


def _close(a, b, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance)), a, b)


# What it computes


@pytest.mark.parametrize("train", [False, True])
def test_logits_gradients_and_statistics_are_those_of_the_module(train, x):
    """In training without dropout, whose masks have other keys."""
    net = _used()
    module, variables = _wrapped(net)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def own(params, x, rest):
        net = nnx.merge(graphdef, params, jax.tree.map(jnp.asarray, rest))  # variables of this trace
        net.set_attributes(deterministic=True, use_running_average=not train)
        value = net(x)
        return (value**2).sum(), (value, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))

    def ours(params, x):
        outputs = apply(module, variables | {"params": params}, x, train=train)
        return (outputs.value**2).sum(), (outputs.value, outputs.batch_stats)

    (by_params, by_x), (value, stats) = jax.jit(jax.grad(own, (0, 1), has_aux=True))(params, x, rest)
    found = jax.jit(jax.grad(ours, (0, 1), has_aux=True))(variables["params"], x)
    expected = nnx_module.plain({"params": nnx.to_pure_dict(by_params), "batch_stats": stats})
    _close(found, ((expected["params"], by_x), (value, expected["batch_stats"])), rtol=1e-4, atol=1e-5)


def test_nobody_has_to_call_eval(x):
    net = _used()  # in NNX's default mode, that of training
    module, variables = _wrapped(net)
    values = [_apply(module, variables, x[:rows], key=jax.random.key(rows)).value for rows in (1, 6)]
    _close(*(np.asarray(value)[0] for value in values))
    net.eval()
    _close(values[1], _call(net, x))


def test_the_module_passed_in_stays_as_it_was(x):
    net = _used()
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngState))))
    module, variables = _wrapped(net)
    _apply(module, variables, x, train=True, key=jax.random.key(0), capture=(BN, FEATURES, INSTANCES, STAGES))
    after = nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngState)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert net.blocks[0].bn.use_running_average is False and type(net.blocks[0].bn) is nnx.BatchNorm


def test_dropout_has_a_key_in_training_alone(x):
    module, variables = _wrapped(_used())
    one, same, other = (
        np.asarray(_apply(module, variables, x, train=True, key=jax.random.key(seed)).value) for seed in (1, 1, 2)
    )
    assert (one == same).all() and not (one == other).all()
    values = (_apply(module, variables, x, key=key).value for key in (None, jax.random.key(1)))
    np.testing.assert_array_equal(*values)


def test_batch_norm_folds_into_convolutions(x):
    module, variables = _wrapped(_used())
    _close(_apply(module, variables, x, fold=True).value, _apply(module, variables, x).value, rtol=1e-4)
    images = jnp.ones((2, 16, 16, 1))  # large enough for convolutions in every layer
    folded, plain = (
        str(jax.make_jaxpr(lambda v, x, fold=fold: apply(module, v, x, fold=fold).value)(variables, images))
        for fold in (True, False)
    )
    assert folded.count("conv_general_dilated") == 4 and plain.count("conv_general_dilated") == 2


# Captured values


def test_captured_values_are_those_inside_the_module(x):
    net = _used()
    module, variables = _wrapped(net)
    outputs = jax.jit(lambda v, x: apply(module, v, x, capture=(BN, FEATURES, INSTANCES, STAGES)))(variables, x)
    net.eval()
    maps = [x]
    for block, bn, instances in zip(net.blocks, outputs.bn, outputs.instances, strict=True):
        inside = np.asarray(block.conv(maps[-1]))
        _close(bn.mean, inside.mean((0, 1, 2)), rtol=1e-4)
        _close(bn.var, inside.var((0, 1, 2)), rtol=1e-4)
        _close((bn.running_mean, bn.running_var), (block.bn.mean[...], block.bn.var[...]))
        _close(instances, inside.mean((1, 2)), rtol=1e-4)
        maps.append(block(maps[-1]))
    _close(outputs.stages, tuple(maps), rtol=1e-4, atol=1e-5)
    _close(outputs.features, maps[-1].mean((1, 2)), rtol=1e-4, atol=1e-5)
    _close(net.head(outputs.features), outputs.value, rtol=1e-4, atol=1e-5)


def test_missing_stages_are_asked_for_in_nnx_words():
    module = imported.import_network("nnx:nnx_nets:Counting")
    with pytest.raises(UserError, match=r"__call__ of Counting self\.sow\(nnx\.Intermediate, 'stages', x\)"):
        apply(module, _init(module), jnp.ones((2, 8, 8, 1)), capture=(STAGES,))


def test_layers_called_twice_and_shared_weights(x):
    net = nnx_nets.Shared(nnx.Rngs(0))
    module, variables = _wrapped(net)
    outputs = _apply(module, variables, x, train=True, capture=(BN, FEATURES))
    net.train()
    _close(outputs.value, _call(net, x), rtol=1e-4, atol=1e-5)
    _close(outputs.batch_stats["bn"], nnx.to_pure_dict(nnx.state(net.bn, nnx.BatchStat)))
    assert len(outputs.bn) == 2 and len(jax.tree.leaves(variables["params"])) == 7


def test_inside_remat_it_computes_and_cannot_be_captured(x):
    net = nnx_nets.Rematerialised(nnx.Rngs(0))
    module, variables = _wrapped(net)
    trained = jax.jit(lambda v, x: apply(module, v, x, train=True, key=jax.random.key(0))[:2])(variables, x)
    net.train()
    value = _call(net, x)
    stats = nnx_module.plain({"batch_stats": nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))})
    _close(trained, (value, stats["batch_stats"]), rtol=1e-4)
    with pytest.raises(UserError, match=r"cannot be seen \(block/bn\).*in NNX also without nnx\.remat"):
        _apply(module, variables, x, capture=(BN,))


def test_a_network_without_batch_norm(x):
    net = nnx_nets.WithoutNorm(nnx.Rngs(0))
    module, variables = _wrapped(net)
    outputs = _apply(module, variables, x, train=True, capture=(FEATURES,))
    _close(outputs.value, _call(net, x), rtol=1e-4)
    assert variables["batch_stats"] == {} and outputs.features.shape == (6, 8)


@pytest.mark.parametrize("kind", [nnx_nets.Net, nnx_nets.Rematerialised])
def test_devices_share_the_statistics_of_the_batch(kind, x):
    """Two parts of a batch under one axis name, as on two devices."""
    module, variables = _wrapped(kind(rngs=nnx.Rngs(0)))

    def train(x, axis):
        outputs = apply(module, variables, x, train=True, axis=axis)
        return outputs.value, outputs.batch_stats

    value, stats = jax.jit(lambda x: train(x, SINGLE))(x)
    parts = x.reshape(2, 3, *SHAPE)
    shared = jax.jit(jax.vmap(lambda x: train(x, Axis("devices", 2)), axis_name="devices"))
    values, both = jax.device_get(shared(parts))
    _close(values.reshape(value.shape), value, rtol=1e-4, atol=1e-5)
    for device in range(2):
        _close(jax.tree.map(lambda leaf, device=device: leaf[device], both), stats, rtol=1e-4)


# Variables of other kinds


def test_variables_of_other_kinds_are_collections_under_their_name(x):
    module = imported.import_network("nnx:nnx_nets:Counting")
    variables = module.init(jax.random.key(0), x)
    assert set(variables) == {"params", "Steps", "arrays"}
    value, updated = module.apply(variables, x, train=True, arguments=(("train", True),), mutable=["Steps"])
    assert updated["Steps"]["steps"] == 1 and variables["Steps"]["steps"] == 0
    head = variables["params"]["head"]
    _close(value, 2 * x.reshape(6, -1) @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-4)
    without = {name: tree for name, tree in variables.items() if name != "arrays"}
    np.testing.assert_array_equal(module.apply(without, x), module.apply(variables, x))
    rngs = {"dropout": jax.random.key(1)}
    dropped = module.apply(variables, x, train=True, arguments=(("train", False),), rngs=rngs)
    assert not np.allclose(dropped, value)


# Names, functions and seeds


@pytest.mark.parametrize("name", ["Net", "make"])
def test_a_function_of_rngs_is_called_with_a_key(name):
    module = models.build_classifier(f"nnx:nnx_nets:{name}", 10)
    one, same, other = (_init(module, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one["params"]["head"]["kernel"], other["params"]["head"]["kernel"])
    shapes = models.build_classifier(f"nnx:nnx_nets:{name}", 10)
    assert jax.eval_shape(lambda: _init(shapes)) == jax.eval_shape(lambda: one)


@pytest.mark.parametrize("network", [nnx_nets.ready, nnx_nets.ready()])
def test_weights_of_its_own_are_those_before_training(network):
    found = _init(imported.as_linen(network, "ready"), seed=5)
    jax.tree.map(np.testing.assert_array_equal, found, nnx_module.variables_of(nnx_nets.ready()))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nnx:no_such_package:Net", "cannot import 'no_such_package'"),
        ("nnx:nnx_nets:Nett", r"holds no 'Nett' \(did you mean 'Net'\?\)"),
        (
            "nnx:nnx_nets:WantsArguments",
            r"wants arguments \(features\); name a function without arguments, or of rngs",
        ),
        ("nnx:nnx_nets:not_a_network", "gives a int, not a flax.nnx.Module"),
        ("nnx:nnx_nets:fails", r"fails\(\) fails: ValueError: no such file"),
        ("nnx:nnx_nets:jax", "gives a module, not a flax.nnx.Module"),
        ("nnx:user_nets:Plain", "is of Flax linen; name it user_nets:Plain"),
        ("nnx_nets:Net", "is of Flax NNX; name it nnx:nnx_nets:Net"),
        ("nnx_nets:ready", "gives a module of Flax NNX; name it nnx:nnx_nets:ready"),
        ("nnx_nets:make", "wants rngs.*name such a module nnx:nnx_nets:make"),
    ],
)
def test_a_wrong_name_is_one_line(path, text):
    with pytest.raises(UserError, match=text) as caught:
        models.build_classifier(path, 10)
    assert "\n" not in str(caught.value)


def test_an_argument_for_the_mode_is_named_or_found():
    module = models.build_classifier("nnx:nnx_nets:Counting", 10)
    assert module.mode_arguments(train=True, train_argument="") == {"train": True, "arguments": (("train", True),)}
    with pytest.raises(UserError, match=r"Counting is called without an argument 'is_training'.*it takes x, rngs"):
        module.mode_arguments(train=True, train_argument="is_training")


# nnx.bridge.to_linen


def test_a_module_from_to_linen_is_evaluated_in_evaluation(x):
    linen = nnx.bridge.to_linen(nnx_nets.Net)
    variables = linen.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    module, given = imported.as_linen(linen, "net"), imported.plain_variables(linen, variables)
    outputs = _apply(module, given, x, capture=(BN, FEATURES))
    _close(_apply(module, given, x[:1]).value, np.asarray(outputs.value)[:1], rtol=1e-4, atol=1e-5)
    assert len(outputs.bn) == 2 and imported.path_of(linen) == "nnx:nnx_nets:Net"
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), _init(module), given)


class Around(nn.Module):
    """A linen module around one of NNX."""

    lists: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        part = nnx.bridge.to_linen(nnx_nets.Net) if self.lists else nnx.bridge.to_linen(nnx_nets.Block, 1, 8)
        return nn.Dense(10)(part(x).reshape(len(x), -1))


def test_a_part_from_to_linen_has_the_mode_of_the_whole(x):
    """Its BatchNorm layers cannot be captured, which is one line."""
    variables = _init(Around())
    one, all_ = (np.asarray(_apply(Around(), variables, images).value) for images in (x[:1], x))
    _close(one, all_[:1], rtol=1e-4, atol=1e-5)
    key = jax.random.key(1)
    trained = _apply(Around(), variables, x, train=True, key=key).batch_stats
    assert not np.allclose(*(jax.tree.leaves(stats)[0] for stats in (trained, variables["batch_stats"])))
    parts = x.reshape(2, 3, *SHAPE)
    share = jax.vmap(
        lambda x: apply(Around(), variables, x, train=True, key=key, axis=Axis("devices", 2)).batch_stats,
        axis_name="devices",
    )
    shared = jax.device_get(jax.jit(share)(parts))
    _close(jax.tree.map(lambda leaf: leaf[0], shared), trained, rtol=1e-4)
    with pytest.raises(UserError, match=r"BatchNorm layers cannot be seen.*nnx\.bridge"):
        _apply(Around(), variables, x, capture=(BN,))


def test_a_part_from_to_linen_with_a_list_is_refused(x):
    module = Around(lists=True)
    variables = module.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, False)
    with pytest.raises(UserError, match=r"Net has lists of modules .*give the NNX module itself"):
        apply(module, variables, x)


def test_a_dtype_of_the_module_stays(x):
    class Half(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), dtype=jnp.bfloat16, rngs=rngs)
            self.bn = nnx.BatchNorm(4, dtype=jnp.bfloat16, rngs=rngs)
            self.head = nnx.Linear(4, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(self.bn(self.conv(x)).mean((1, 2)))

    net = Half(nnx.Rngs(0))
    module, variables = _wrapped(net)
    net.eval()
    found, expected = jax.jit(module.apply)(variables, x), _call(net, x)
    assert found.dtype == expected.dtype
    _close(found, expected, rtol=0.05, atol=0.02)
