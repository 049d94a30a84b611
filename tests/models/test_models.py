"""Tests of the networks: sizes, names, arithmetic, dtypes and initial values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from numpy.lib.stride_tricks import sliding_window_view

from cudfkd_jax.models import MODELS, Generator, build_classifier, count_parameters, layers
from cudfkd_jax.models.capture import BN, apply
from cudfkd_jax.models.generator import first_maps, suitable_stages
from cudfkd_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from cudfkd_jax.models.vgg import VGG
from cudfkd_jax.models.wrn import WideResNet
from cudfkd_jax.runtime.errors import UserError

# name: (parameters at 10 classes, at 100 classes, BatchNorm layers)
PINNED = {
    "resnet18": (11_173_962, 11_220_132, 20),
    "resnet34": (21_282_122, 21_328_292, 36),
    "resnet50": (23_520_842, 23_705_252, 53),
    "resnet10_imagenet": (4_910_922, 4_957_092, 12),
    "resnet18_imagenet": (11_181_642, 11_227_812, 20),  # at 1,000 classes torchvision's 11,689,512
    "resnet34_imagenet": (21_289_802, 21_335_972, 36),
    "resnet50_imagenet": (23_528_522, 23_712_932, 53),
    "vgg8": (3_918_858, 3_965_028, 5),
    "vgg11": (9_231_114, 9_277_284, 8),
    "vgg13": (9_416_010, 9_462_180, 10),
    "wrn16_1": (175_066, 180_916, 13),
    "wrn16_2": (691_674, 703_284, 13),
    "wrn40_1": (563_930, 569_780, 37),
    "wrn40_2": (2_243_546, 2_255_156, 37),
}

# PyTorch's names: (convolutions and linear layers, BatchNorm layers).
TORCH_NAMES = {
    "resnet18": (
        """conv1 linear
        layer1.0.conv1 layer1.0.conv2 layer1.1.conv1 layer1.1.conv2
        layer2.0.conv1 layer2.0.conv2 layer2.0.shortcut.0 layer2.1.conv1 layer2.1.conv2
        layer3.0.conv1 layer3.0.conv2 layer3.0.shortcut.0 layer3.1.conv1 layer3.1.conv2
        layer4.0.conv1 layer4.0.conv2 layer4.0.shortcut.0 layer4.1.conv1 layer4.1.conv2""",
        """bn1
        layer1.0.bn1 layer1.0.bn2 layer1.1.bn1 layer1.1.bn2
        layer2.0.bn1 layer2.0.bn2 layer2.0.shortcut.1 layer2.1.bn1 layer2.1.bn2
        layer3.0.bn1 layer3.0.bn2 layer3.0.shortcut.1 layer3.1.bn1 layer3.1.bn2
        layer4.0.bn1 layer4.0.bn2 layer4.0.shortcut.1 layer4.1.bn1 layer4.1.bn2""",
    ),
    "wrn16_1": (
        """conv1 fc
        block1.layer.0.conv1 block1.layer.0.conv2 block1.layer.1.conv1 block1.layer.1.conv2
        block2.layer.0.conv1 block2.layer.0.conv2 block2.layer.1.conv1 block2.layer.1.conv2
        block3.layer.0.conv1 block3.layer.0.conv2 block3.layer.1.conv1 block3.layer.1.conv2
        block2.layer.0.convShortcut block3.layer.0.convShortcut""",
        """bn1
        block1.layer.0.bn1 block1.layer.0.bn2 block1.layer.1.bn1 block1.layer.1.bn2
        block2.layer.0.bn1 block2.layer.0.bn2 block2.layer.1.bn1 block2.layer.1.bn2
        block3.layer.0.bn1 block3.layer.0.bn2 block3.layer.1.bn1 block3.layer.1.bn2""",
    ),
    "vgg8": (
        "block0.0 block1.0 block2.0 block3.0 block4.0 classifier",
        "block0.1 block1.1 block2.1 block3.1 block4.1",
    ),
}

TORCH_NAMES["resnet18_imagenet"] = tuple(
    names.replace("linear", "fc").replace("shortcut", "downsample") for names in TORCH_NAMES["resnet18"]
)

# Small members of each family, for numerical tests.
SMALL = {
    "basic": ResNet((1, 1), BasicBlock, 5),
    "bottleneck": ResNet((1, 1), Bottleneck, 5),
    "torchvision": ResNet((1, 1), BasicBlock, 5, torchvision=True),
    "wrn": WideResNet(10, 2, 5),
    "vgg": VGG(((8,), (8, 12), (12,), (16,), (16,)), 5),
}


@functools.cache
def shapes(module, example=(32, 32, 3)):
    """Returns the shapes of a module's variables for inputs [B, *example] without computing them."""
    x = jax.ShapeDtypeStruct((2, *example), jnp.float32)
    return jax.eval_shape(lambda key, x: module.init(key, x, False), jax.random.key(0), x)


def random_variables(module, example, dtype=np.float64):
    """Draws variables other than 0 and 1: kernels scaled by fan-in, statistics and affine terms."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name in ("var", "scale"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = 0.3 * rng.normal(size=leaf.shape)
        return value.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, example))


class Reference:
    """The layers in NumPy by PyTorch name, with PyTorch's definition of padding and stride."""

    def __init__(self, variables):
        self.values = traverse_util.flatten_dict(variables["params"], sep=".")
        self.values |= traverse_util.flatten_dict(variables["batch_stats"], sep=".")

    def conv(self, name, x, stride=1):
        kernel = self.values[f"{name}.kernel"]
        size = kernel.shape[0]
        margin = (size - 1) // 2
        x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        windows = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        y = np.einsum("bhwcij,ijco->bhwo", windows, kernel, optimize=True)
        return y + self.values.get(f"{name}.bias", 0)

    def bn(self, name, x):
        scale, bias, mean, var = (self.values[f"{name}.{leaf}"] for leaf in ("scale", "bias", "mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def linear(self, name, x):
        return x @ self.values[f"{name}.kernel"] + self.values[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def reference_pool(x):
    """Max-pools 3x3 windows at stride 2 with a margin of 1 that never wins."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-2, -1))


def reference_resnet(net, x, convs, *, stem=1, pool=lambda x: x, names=("shortcut", "linear")):
    """Computes two stages of one block; `convs` are the strides of the second stage's convolutions."""
    x = pool(relu(net.bn("bn1", net.conv("conv1", x, stem))))
    for stage, block in enumerate(("layer1.0", "layer2.0")):
        y = x
        for i, stride in enumerate(convs, start=1):
            y = net.bn(f"{block}.bn{i}", net.conv(f"{block}.conv{i}", y, stride if stage else 1))
            y = relu(y) if i < len(convs) else y
        if f"{block}.{names[0]}.0.kernel" in net.values:
            x = net.bn(f"{block}.{names[0]}.1", net.conv(f"{block}.{names[0]}.0", x, 2 if stage else 1))
        x = relu(x + y)
    return net.linear(names[1], x.mean((1, 2)))


def reference_wrn(net, x):
    x = net.conv("conv1", x)
    for group, stride in (("block1", 1), ("block2", 2), ("block3", 2)):
        block = f"{group}.layer.0"
        a = relu(net.bn(f"{block}.bn1", x))
        y = net.conv(f"{block}.conv2", relu(net.bn(f"{block}.bn2", net.conv(f"{block}.conv1", a, stride))))
        x = y + net.conv(f"{block}.convShortcut", a, stride)
    return net.linear("fc", relu(net.bn("bn1", x)).mean((1, 2)))


def reference_vgg(net, x):
    for block, depth in enumerate((1, 2, 1, 1, 1)):
        for i in range(depth):
            x = relu(net.bn(f"block{block}.{3 * i + 1}", net.conv(f"block{block}.{3 * i}", x)))
        if block < 3:
            x = np.maximum.reduce([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    return net.linear("classifier", x.mean((1, 2)))


REFERENCES = {
    "basic": lambda net, x: reference_resnet(net, x, (2, 1)),
    "bottleneck": lambda net, x: reference_resnet(net, x, (1, 2, 1)),
    "torchvision": lambda net, x: reference_resnet(
        net, x, (2, 1), stem=2, pool=reference_pool, names=("downsample", "fc")
    ),
    "wrn": reference_wrn,
    "vgg": reference_vgg,
}


def test_every_registered_model_is_pinned():
    assert set(MODELS) == set(PINNED)


@pytest.mark.parametrize("arch", MODELS)
def test_parameter_and_batch_norm_counts(arch):
    ten, hundred, batch_norms = PINNED[arch]
    variables = shapes(build_classifier(arch, 10))
    assert count_parameters(variables["params"]) == ten
    (width,) = {leaf.shape[0] for leaf in jax.tree.leaves(variables["params"]) if leaf.shape[1:] == (10,)}
    assert ten + 90 * (width + 1) == hundred and build_classifier(arch, 100).num_classes == 100
    names = traverse_util.flatten_dict(variables["batch_stats"], sep=".")
    assert sum(name.endswith(".mean") for name in names) == batch_norms


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("image", [(16, 16, 1), (32, 32, 3), (64, 64, 3)])
def test_logits_and_captured_layers_for_every_image_size(family, image):
    module = SMALL[family].clone(num_classes=7)
    variables, x = shapes(module, image), jax.ShapeDtypeStruct((4, *image), jnp.float32)
    outputs = jax.eval_shape(functools.partial(apply, module, capture=(BN,)), variables, x)
    assert (outputs.value.shape, outputs.value.dtype) == ((4, 7), jnp.float32)
    assert len(outputs.bn) == len(jax.tree.leaves(variables["batch_stats"])) // 2


@pytest.mark.parametrize(("size", "last"), [(16, 2), (32, 4), (64, 4)])
def test_vgg_pools_a_fourth_time_only_for_64(size, last):
    module = build_classifier("vgg8", 10)
    image = (size, size, 3)
    _, state = jax.eval_shape(
        lambda v, x: module.apply(v, x, False, capture_intermediates=True, mutable="intermediates"),
        shapes(module, image),
        jax.ShapeDtypeStruct((1, *image), jnp.float32),
    )
    (feature,) = state["intermediates"]["block4.0"]["__call__"]
    assert feature.shape == (1, last, last, 512)


@pytest.mark.parametrize("arch", TORCH_NAMES)
def test_paths_are_the_names_of_pytorch(arch):
    layers, batch_norms = (names.split() for names in TORCH_NAMES[arch])
    variables = shapes(build_classifier(arch, 10))
    params = set(traverse_util.flatten_dict(variables["params"], sep="."))
    stats = set(traverse_util.flatten_dict(variables["batch_stats"], sep="."))
    biased = layers if arch == "vgg8" else [name for name in layers if name in ("linear", "fc")]
    assert params == (
        {f"{name}.kernel" for name in layers}
        | {f"{name}.bias" for name in biased}
        | {f"{name}.{leaf}" for name in batch_norms for leaf in ("scale", "bias")}
    )
    assert stats == {f"{name}.{leaf}" for name in batch_norms for leaf in ("mean", "var")}


@pytest.mark.parametrize("family", SMALL)
def test_eval_forward_is_that_of_a_numpy_formulation(family):
    """Compares in float64, which also shows that nothing is cast to float32."""
    module, image = SMALL[family], (16, 16, 3)
    variables = random_variables(module, image)
    x = np.random.default_rng(1).normal(size=(2, *image))
    with jax.enable_x64(True):
        logits = np.asarray(jax.jit(lambda v, x: module.apply(v, x, False))(variables, x))
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, REFERENCES[family](Reference(variables), x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(7, 7, 3), (8, 4, 3), (64, 8, 3)])
def test_vgg_refuses_images_that_its_pooling_uses_up(shape):
    module = build_classifier("vgg8", 10)
    with pytest.raises(UserError, match=r"VGG halves images [34] times and .* expected at least (8|16) "):
        jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), jnp.zeros((1, *shape)))


@pytest.mark.parametrize("size", [14, 15])
def test_vgg_drops_an_odd_row_and_column_as_pytorch_does(size):
    module = VGG(((4,),), 5)
    variables = random_variables(module, (size, size, 1), np.float32)
    x = np.random.default_rng(1).normal(size=(1, size, size, 1)).astype(np.float32)
    y = relu(Reference(variables).bn("block0.1", Reference(variables).conv("block0.0", x)))[:, :14, :14]
    y = np.maximum.reduce([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean((1, 2))
    expected = Reference(variables).linear("classifier", y)
    found = jax.jit(lambda variables, x: module.apply(variables, x, False))(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_training_normalises_by_the_batch_and_moves_the_statistics_by_a_tenth():
    module, image = SMALL["wrn"], (16, 16, 3)
    variables = random_variables(module, image, np.float32)
    x = np.random.default_rng(1).normal(size=(4, *image)).astype(np.float32)
    _, state = jax.jit(
        lambda v, x: module.apply(v, x, True, capture_intermediates=True, mutable=["batch_stats", "intermediates"])
    )(variables, x)
    bn_input = np.asarray(state["intermediates"]["conv1"]["__call__"][0])
    bn_output = np.asarray(state["intermediates"]["block1.layer.0"]["bn1"]["__call__"][0])
    old = variables["batch_stats"]["block1.layer.0"]["bn1"]
    new = state["batch_stats"]["block1.layer.0"]["bn1"]
    affine = variables["params"]["block1.layer.0"]["bn1"]
    mean, var = bn_input.mean((0, 1, 2)), bn_input.var((0, 1, 2))
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-4)
    expected = (bn_input - mean) / np.sqrt(var + 1e-5) * affine["scale"] + affine["bias"]
    np.testing.assert_allclose(bn_output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", SMALL)
def test_bfloat16_computation_keeps_float32_state_and_logits(family):
    module, image = SMALL[family].clone(dtype=jnp.bfloat16), (32, 32, 3)
    variables = shapes(module, image)
    logits, state = jax.eval_shape(
        lambda v, x: module.apply(
            v, x, True, capture_intermediates=True, mutable=["batch_stats", "intermediates"]
        ),
        variables,
        jax.ShapeDtypeStruct((2, *image), jnp.float32),
    )
    assert state["intermediates"][next(iter(variables["params"]))]["__call__"][0].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves([variables, state["batch_stats"]])} == {jnp.dtype("float32")}


def init(module, x):
    """Returns the initial parameters as {dotted name: array}."""
    # The rbg generator compiles twice as fast as the default.
    variables = jax.jit(lambda key: module.init(key, x, False))(jax.random.key(0, impl="rbg"))
    return {name: np.asarray(v) for name, v in traverse_util.flatten_dict(variables["params"], sep=".").items()}


def assert_moments(values, mean, std, kurtosis):
    """Checks mean and deviation within five standard errors; the fourth moment separates normal from uniform."""
    n = values.size
    assert abs(values.mean() - mean) < 5 * std / np.sqrt(n)
    assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * n)
    if n > 10_000:
        assert abs(np.mean(((values - mean) / std) ** 4) - kurtosis) < 0.3


NORMAL, UNIFORM = 3.0, 1.8


@pytest.mark.parametrize("module", [WideResNet(10, 2, 10), VGG(((32,), (64, 64)), 10)])
def test_initialisation_of_wrn_and_vgg(module):
    params = init(module, jnp.zeros((1, 16, 16, 3)))
    heads = {"fc.kernel": (1 / np.sqrt(3 * 128), UNIFORM), "classifier.kernel": (0.01, NORMAL)}
    for name, value in params.items():
        if name in heads:
            assert_moments(value, 0, *heads[name])
        elif name.endswith("kernel"):
            size, _, _, out = value.shape
            assert_moments(value, 0, np.sqrt(2 / (size * size * out)), NORMAL)
        else:
            np.testing.assert_array_equal(value, 1.0 if name.endswith("scale") else 0.0)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (1, 7, 10, 1), (1, 1, 2, 2)])
def test_max_pool_is_pytorchs(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) - 3
    np.testing.assert_array_equal(jax.jit(layers.max_pool_3x3)(x), reference_pool(x))
    weights = np.random.default_rng(1).normal(size=reference_pool(x).shape).astype(np.float32)

    def window(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    ours, theirs = (
        jax.jit(jax.grad(lambda x, pool=pool: (pool(x) * weights).sum()))(x)
        for pool in (layers.max_pool_3x3, window)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_initialisation_of_torchvisions_resnets():
    params = init(ResNet((1, 1), BasicBlock, 100, torchvision=True), jnp.zeros((1, 32, 32, 3)))
    for name, value in params.items():
        if name.endswith("kernel") and name != "fc.kernel":
            size, _, _, out = value.shape
            assert_moments(value, 0, np.sqrt(2 / (size * size * out)), NORMAL)
    assert_moments(params["fc.kernel"], 0, 1 / np.sqrt(3 * 128), UNIFORM)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_initialisation_of_resnets_is_the_default_of_pytorch(block):
    params = init(ResNet((1, 1), block, 100), jnp.zeros((1, 8, 8, 3)))
    features = params["linear.kernel"].shape[0]
    for name, value in params.items():
        if name.endswith("kernel") or name == "linear.bias":
            fan_in = features if name == "linear.bias" else np.prod(value.shape[:-1])
            bound = 1 / np.sqrt(fan_in)
            assert np.abs(value).max() <= bound
            assert_moments(value, 0, bound / np.sqrt(3), UNIFORM)
        else:
            np.testing.assert_array_equal(value, 1.0 if name.endswith("scale") else 0.0)


def test_any_legal_wrn_is_built():
    params = shapes(build_classifier("wrn22_4", 10))["params"]
    assert sum(name.startswith("block") for name in params) == 9
    assert params["fc"]["kernel"].shape == (256, 10)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet19", "resnet18"),
        ("wrn15_2", "wrn16_2"),
        ("wrn4_1", "wrn40_1"),
        ("wrn40_0", None),
        ("wrn-40-2", "wrn40_2"),
        ("VGG8", "vgg8"),
        ("", None),
    ],
)
def test_unknown_and_illegal_names_list_the_valid_ones_and_suggest_the_nearest(name, nearest):
    with pytest.raises(UserError) as error:
        build_classifier(name, 10)
    text = str(error.value)
    assert repr(name) in text
    assert "\n" not in text
    assert all(valid in text for valid in MODELS)
    if nearest:
        assert f"did you mean {nearest!r}?" in text


@pytest.mark.parametrize(
    ("generator", "count"),
    [
        (Generator((32, 32, 3), 512), 8_776_259),
        (Generator((64, 64, 3), 1024, stages=3), 35_139_139),
    ],
)
def test_generator_parameters(generator, count):
    variables = shapes(generator, (generator.latent_dim,))
    assert count_parameters(variables["params"]) == count
    assert set(variables["batch_stats"]) == {f"bn{i}" for i in range(generator.stages + 1)}


def test_generator_forward_is_that_of_a_numpy_formulation():
    generator = Generator((8, 12, 1), latent_dim=6, ngf=4)
    z = np.random.default_rng(1).normal(size=(3, 6))
    variables = random_variables(generator, (generator.latent_dim,), np.float64)
    net = Reference(variables)
    x = net.bn("bn0", net.linear("linear", z).reshape(3, 2, 3, 16))
    for i in (1, 2):
        x = net.bn(f"bn{i}", net.conv(f"conv{i}", x.repeat(2, axis=1).repeat(2, axis=2)))
        x = np.where(x > 0, x, 0.2 * x)
    expected = 1 / (1 + np.exp(-net.conv("conv3", x)))
    with jax.enable_x64(True):
        images = np.asarray(jax.jit(lambda v, z: generator.apply(v, z, False))(variables, z))
    assert images.shape == (3, 8, 12, 1)
    assert images.dtype == np.float64
    np.testing.assert_allclose(images, expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_generator_images_are_float32_in_the_unit_interval(dtype, train):
    generator = Generator((16, 16, 3), latent_dim=8, ngf=4, dtype=dtype)
    z = 10 * np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    variables = random_variables(generator, (generator.latent_dim,), np.float32)
    images, _ = jax.jit(lambda v, z: generator.apply(v, z, train, mutable="batch_stats"))(variables, z)
    assert (images.shape, images.dtype) == ((5, 16, 16, 3), jnp.float32)
    assert 0 <= images.min() < 0.3
    assert 0.7 < images.max() <= 1


def test_initialisation_of_the_generator():
    params = init(Generator((16, 16, 3), latent_dim=64), jnp.zeros((2, 64)))
    for name, value in params.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(value, 0)
        else:
            assert_moments(value, 1 if name.endswith("scale") else 0, 0.02, NORMAL)


@pytest.mark.parametrize(
    ("image", "larger", "stages"),
    [((25, 25, 3), (28, 28, 3), 2), ((9, 14, 1), (12, 16, 1), 2), ((5, 8, 1), (8, 8, 1), 2)],
)
def test_generator_makes_the_next_larger_size_and_crops_its_centre(image, larger, stages):
    small, whole = (Generator(shape, latent_dim=6, ngf=4, stages=stages) for shape in (image, larger))
    variables = random_variables(whole, (6,), np.float32)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes(small, (6,)))
    z = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)
    made, full = (jax.jit(lambda v, z, g=g: g.apply(v, z, False))(variables, z) for g in (small, whole))
    top, left = ((wide - narrow) // 2 for wide, narrow in zip(larger[:2], image[:2], strict=True))
    assert made.shape == (2, *image)
    np.testing.assert_allclose(made, full[:, top : top + image[0], left : left + image[1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("generator", "mean"),
    [
        (Generator((32, 32, 3), 16, 8), 4549.436 / (3 * 32 * 32 * 3)),
        (Generator((16, 16, 1), 8, 4), 379.51944 / (3 * 16 * 16)),
        (Generator((8, 12, 1), 6, 4, size="small", initialisation="torch"), 129.41704 / (3 * 8 * 12)),
    ],
)
def test_sizes_that_stages_divide_are_generated_as_ever(generator, mean):
    """The mean image of a training step with the weights of a key, as of 2026-11-27, and nothing is cropped."""
    z = jax.random.normal(jax.random.key(1), (3, generator.latent_dim))

    @jax.jit
    def images(key):
        return generator.apply(generator.init(key, z, False), z, True, mutable=True)[0]

    found = np.asarray(images(jax.random.key(0)), np.float64)
    np.testing.assert_allclose(found.mean(), mean, rtol=1e-5)
    trace = jax.make_jaxpr(lambda v, z: generator.apply(v, z, False))(
        shapes(generator, (generator.latent_dim,)), z
    )
    assert "slice" not in str(trace)


@pytest.mark.parametrize(
    ("size", "stages", "first"),
    [(8, 1, 4), (16, 1, 8), (25, 2, 7), (32, 2, 8), (64, 3, 8), (96, 4, 6), (128, 4, 8), (224, 5, 7)],
)
def test_stages_that_suit_a_size(size, stages, first):
    assert suitable_stages((size, size, 3)) == stages
    assert first_maps((size, size, 3), stages) == (first, first)
    generator = Generator((size, size, 3), 64, 4, stages)
    images = jax.eval_shape(lambda: generator.init_with_output(jax.random.key(0), jnp.zeros((2, 64)), False)[0])
    assert images.shape == (2, size, size, 3)


def test_stages_that_suit_a_narrow_image():
    assert suitable_stages((128, 5, 1)) == 2


@pytest.mark.parametrize(("image", "stages"), [((3, 32, 3), 2), ((32, 7, 3), 3)])
def test_generator_refuses_images_that_are_smaller_than_it_makes(image, stages):
    least = 2**stages
    with pytest.raises(
        UserError, match=rf"generator\.stages={stages} makes images of at least {least}x{least} pixels"
    ):
        Generator(image, latent_dim=8, stages=stages)
