"""Logits, gradients and BatchNorm inputs of families of timm and torchvision, as they come, beside PyTorch's."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_import

from cudfkd_jax.models import torch_module
from cudfkd_jax.models.capture import BN, FEATURES, apply

torch = pytest.importorskip("torch")
torch_nets = pytest.importorskip("torch_nets")
torchvision = torchvision_import.import_or_skip()
timm = pytest.importorskip("timm")

CLASSES = 10
# The network, the size of its images and the number of its BatchNorm layers.
FAMILIES = [
    ("timm/resnet18", 64, 20),
    ("timm/mobilenetv2_100", 64, 52),
    ("timm/efficientnet_b0", 64, 49),
    ("timm/convnext_atto", 64, 0),
    ("timm/vit_tiny_patch16_224", 224, 0),
    ("timm/regnety_002", 64, 44),
    ("timm/densenet121", 64, 121),
    ("timm/repvgg_a0", 64, 61),
    ("torchvision/resnet18", 64, 20),
]


def _build(name):
    library, _, arch = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(arch, num_classes=CLASSES)
    return torchvision.models.get_model(arch, num_classes=CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "layers"), FAMILIES)
def test_a_family_computes_what_it_computes_in_pytorch(name, size, layers):
    """In float64, as in float32 a unit near 0 can be on in one and off in the other."""
    network = torch_nets.randomise_statistics(_build(name), torch.Generator().manual_seed(0)).eval()
    module = torch_module.wrap(network, CLASSES, name)
    variables = torch_module.own_variables(module, (size, size, 3))
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    network = copy.deepcopy(network).double()
    images = np.random.default_rng(0).normal(size=(2, size, size, 3))
    weights = np.random.default_rng(1).normal(size=(2, CLASSES))
    means, hooks = [], []
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            note = lambda _, args: means.append(args[0].detach().mean((0, 2, 3)).numpy())  # noqa: E731
            hooks.append(layer.register_forward_pre_hook(note))
    inputs = torch.from_numpy(images).movedim(-1, 1).requires_grad_()
    expected = network(inputs)
    (expected * torch.from_numpy(weights)).sum().backward()
    for hook in hooks:
        hook.remove()

    @jax.jit
    def compute(variables, images):
        def loss(x):
            outputs = apply(module, variables, x, capture=(BN, FEATURES))
            return jnp.sum(weights * outputs.value), outputs

        return jax.grad(loss, has_aux=True)(images)

    with jax.enable_x64(True):
        gradient, outputs = compute(variables, images)
    _check_close(outputs.value, expected.detach().numpy())
    _check_close(gradient, inputs.grad.movedim(1, -1).numpy())
    assert outputs.features.ndim == 2 and len(outputs.bn) == len(means) == layers
    # Ours are in the order of their names, PyTorch's in that of their calls.
    _check_close(_sums(bn.mean for bn in outputs.bn), _sums(means), 1e-6)  # kept in float32


def _sums(means):
    return np.asarray(sorted(float(np.sum(mean)) for mean in means))


def _check_close(found, expected, tolerance=1e-9):
    found = np.asarray(found)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max(initial=0), rtol=0)
