"""The releases' networks, with weights for which every term matters, and the conversion to ours.

Teacher and student are not trained. Their BatchNorm layers are perturbed away from the identity and hold the
statistics of some images. Their heads are set so that logits are of order 1 and the two networks predict the same
class for some of the images.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.storage import torch_names
from parity.released import DataFree

GENERATORS = {"dcgan": "DCGAN_Generator_CIFAR10", "large": "LargeGenerator", "small": "Generator"}  # their classes
_SEEDS = {"teacher": 1, "student": 2, "generator": 3, "images": 4}


class Sizes(NamedTuple):
    """The sizes of a case.

    Attributes:
        batch: images per step.
        image: height and width.
        latent: length of z.
        width: channels of the generator's last stage.
        teacher, student: names of the release's classifiers.
        classes: number of classes.
        stages: number of up-samplings in CuDFKD's generator.
    """

    batch: int = 24
    image: int = 16
    latent: int = 32
    width: int = 8
    teacher: str = "wrn_16_2"
    student: str = "wrn_16_1"
    classes: int = 10
    stages: int = 2


DEFAULT_SIZES = Sizes()


def ours_of(name: str) -> str:
    """Returns our name of a release's classifier."""
    return name.replace("wrn_", "wrn").removesuffix("_bn")


def pair(
    release: DataFree, sizes: Sizes, normalise: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[nn.Module, nn.Module]:
    """Returns teacher and student in evaluation mode."""
    teacher, student = (_classifier(release, sizes, role) for role in ("teacher", "student"))
    images = normalise(_images(release, sizes))
    with torch.no_grad():
        for net in (teacher, student):
            norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
            for module in norms:
                module.momentum = 1.0  # takes over the statistics of the next batch
            net.train()(images[::2])
            net.eval()
            for module in norms:
                module.momentum = 0.1
        _balance(teacher, student, images)
    return teacher, student


def generator(
    release: DataFree, kind: str, sizes: Sizes, *, seed: int = _SEEDS["generator"], contrast: bool = True
) -> nn.Module:
    """Returns a generator of the release, in training mode.

    Args:
        release: the release's modules.
        kind: one of `GENERATORS`.
        sizes: sizes of images and latents.
        seed: seed of the weights.
        contrast: whether to spread the outputs over [0, 1] and perturb the BatchNorm layers.
    """
    torch.manual_seed(seed)
    shape = {"nz": sizes.latent, "ngf": sizes.width, "img_size": sizes.image, "nc": 3}
    depth = {"d": sizes.stages} if kind == "dcgan" else {}
    made: nn.Module = getattr(release.generators, GENERATORS[kind])(**shape, **depth)
    if contrast:
        with torch.no_grad():
            _perturb_batch_norms(made)
            last = [module for module in made.modules() if isinstance(module, nn.Conv2d)][-1]
            last.weight.copy_(0.3 * torch.randn_like(last.weight) / last.weight[0].numel() ** 0.5 * 8)
            assert last.bias is not None
            last.bias.copy_(0.2 * torch.randn_like(last.bias))
    return made.train()


def variables(net: nn.Module, classifier: Classifier, image_shape: tuple[int, int, int]) -> Any:
    """Converts a network's weights to the variables of our classifier."""
    expected = jax.eval_shape(lambda: classifier.init(jax.random.key(0), image_shape))
    filled = torch_names.to_variables(named(net), expected, Path("the release's network"))
    return jax.tree.map(jnp.asarray, filled)


def named(net: nn.Module, *, statistics: bool | None = None) -> dict[str, np.ndarray]:
    """Returns copies of a network's weights by PyTorch's names; `statistics` selects BatchNorm's or all others."""
    return {
        key: value.detach().numpy().copy()
        for key, value in net.state_dict().items()
        if "num_batches" not in key and statistics in (None, "running_" in key)
    }


def gradients(net: nn.Module) -> dict[str, np.ndarray]:
    """Returns the gradients of a network's parameters by PyTorch's names."""
    return {key: value.grad.numpy().copy() for key, value in net.named_parameters() if value.grad is not None}


def generator_params(net: nn.Module, value: Callable[[torch.Tensor], torch.Tensor] = lambda p: p) -> Any:
    """Returns a generator's parameters, each mapped by `value` (for instance to its gradient), in our layout."""
    linear, convolutions, norms = _layers(net)

    def array(parameter: torch.Tensor) -> np.ndarray:
        return value(parameter).detach().numpy().copy()

    made: dict[str, Any] = {"linear": projection(array(linear.weight), array(linear.bias), norms[0].num_features)}
    made |= {f"bn{i}": {"scale": array(norm.weight), "bias": array(norm.bias)} for i, norm in enumerate(norms)}
    for i, convolution in enumerate(convolutions, 1):
        made[f"conv{i}"] = {"kernel": array(convolution.weight).transpose(2, 3, 1, 0)}
        if convolution.bias is not None:
            made[f"conv{i}"]["bias"] = array(convolution.bias)
    return jax.tree.map(lambda x: jnp.asarray(np.ascontiguousarray(x)), made)


def generator_statistics(net: nn.Module) -> Any:
    """Returns the statistics of a generator's BatchNorm layers in our layout."""
    held = {
        f"bn{i}": {"mean": norm.running_mean, "var": norm.running_var} for i, norm in enumerate(_layers(net)[2])
    }
    return jax.tree.map(lambda x: jnp.asarray(x.numpy().copy()), held)


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a parameter, for `generator_params`."""
    assert parameter.grad is not None
    return parameter.grad


def channels_first(images: Any) -> np.ndarray:
    """Converts our `[B, H, W, C]` to `[B, C, H, W]`."""
    return np.asarray(images).transpose(0, 3, 1, 2)


def channels_last(images: torch.Tensor) -> np.ndarray:
    """Converts their `[B, C, H, W]` to `[B, H, W, C]`."""
    return images.detach().numpy().transpose(0, 2, 3, 1).copy()


def projection(weight: np.ndarray, bias: np.ndarray, channels: int) -> dict[str, np.ndarray]:
    """Converts the linear layer whose outputs become an image from their order [C, H, W] to our [H, W, C]."""
    size = round((len(bias) // channels) ** 0.5)
    kernel = weight.reshape(channels, size, size, -1).transpose(1, 2, 0, 3).reshape(len(bias), -1).T
    return {"kernel": kernel, "bias": bias.reshape(channels, size, size).transpose(1, 2, 0).reshape(-1)}


def weight_of_projection(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Converts a kernel of that linear layer from our order to theirs."""
    size = round((kernel.shape[1] // channels) ** 0.5)
    return kernel.T.reshape(size, size, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape[1], -1)


def _layers(net: nn.Module) -> tuple[nn.Linear, Sequence[nn.Conv2d], Sequence[nn.BatchNorm2d]]:
    def of(kind: Any) -> list[Any]:
        return [module for module in net.modules() if isinstance(module, kind)]

    (linear,) = of(nn.Linear)
    return linear, of(nn.Conv2d), of(nn.BatchNorm2d)


def _classifier(release: DataFree, sizes: Sizes, role: str) -> nn.Module:
    name = getattr(sizes, role)
    torch.manual_seed(_SEEDS[role])
    modules = {"wrn": release.wrn, "res": release.resnet, "vgg": release.vgg}
    net = getattr(modules[name[:3]], name)(num_classes=sizes.classes)
    with torch.no_grad():
        _perturb_batch_norms(net)
    return net


def _perturb_batch_norms(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            module.weight.mul_(1 + 0.2 * torch.randn_like(module.weight))
            module.bias.add_(0.1 * torch.randn_like(module.bias))


def _images(release: DataFree, sizes: Sizes) -> torch.Tensor:
    """Returns smooth random images and images of the generators, in [0, 1]."""
    torch.manual_seed(_SEEDS["images"])
    count = max(40, sizes.classes)
    coarse = torch.rand(count, 3, sizes.image // 4, sizes.image // 4)
    smooth = functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    made = [smooth + 0.1 * torch.randn_like(smooth)]
    with torch.no_grad():
        for kind in (kind for kind, name in GENERATORS.items() if hasattr(release.generators, name)):
            net = generator(release, kind, sizes)
            made.append(net(torch.randn(count, sizes.latent)))
    torch.manual_seed(_SEEDS["images"])
    return torch.cat(made).clamp(0, 1)


def _balance(teacher: nn.Module, student: nn.Module, images: torch.Tensor) -> None:
    """Sets the heads: the teacher's logits get spread 2 and mean 0, and the student's approximate them."""
    logits = teacher(images, return_features=True)[0]
    _head(teacher).weight.mul_(2 / logits.std(0).mean())
    logits = teacher(images, return_features=True)[0]
    _head(teacher).bias.sub_(logits.mean(0))
    logits = teacher(images, return_features=True)[0]
    features = student(images, return_features=True)[1]
    centred = features - features.mean(0)
    ridge = 0.3 * len(images) * features.var(0).mean() * torch.eye(features.shape[1])
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (logits - logits.mean(0)))
    _head(student).weight.copy_(weight.T)
    _head(student).bias.copy_(logits.mean(0) - features.mean(0) @ weight)


def _head(net: Any) -> nn.Linear:
    return next(getattr(net, name) for name in ("fc", "linear", "classifier") if hasattr(net, name))
