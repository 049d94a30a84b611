"""The networks in evaluation mode: logits, features, BatchNorm statistics and CMI's instance features."""

import jax.numpy as jnp
import torch
from torch import nn

from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.contrastive import instance_features
from parity import networks, ours
from parity.networks import Sizes
from parity.released import DataFree
from parity.rows import Report

CLASSIFIERS = ("resnet18", "resnet34", "vgg11_bn", "wrn_40_2")
_CAPTURE = ("bn", "features", "instances", "stages")


def classifier(release: DataFree, report: Report, name: str) -> None:
    """Compares a classifier's outputs on given images, with the release's weights."""
    case = report.case("Networks", f"{name}, evaluation mode")
    sizes = Sizes(batch=8, teacher=name)
    config = ours.load("cifar10", "", sizes)
    normalise = release.normaliser(config.data.mean, config.data.std)
    net, student = networks.pair(release, sizes, normalise)
    mine = ours.start(config, net, student)
    torch.manual_seed(0)
    images = torch.rand(sizes.batch, 3, sizes.image, sizes.image)
    of_stages = name.startswith("resnet")
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    stages = [getattr(net, f"layer{i}") for i in range(1, 5)] if of_stages else norms
    hooks = [release.hooks.DeepInversionHook(module) for module in norms]
    means = [release.hooks.InstanceMeanHook(module) for module in stages]
    with torch.no_grad():
        logits, features = net(normalise(images), return_features=True)
    run = ours.compiled(mine.problem.teacher, capture=_CAPTURE)
    seen = run(mine.teacher, jnp.asarray(networks.channels_last(images)))
    case.compare("logits", seen.value, logits)
    case.compare("features before the last layer", seen.features, features)
    case.compare(
        "distance of the BatchNorm statistics",
        losses.bn_alignment(seen.bn),
        sum(h.r_feature for h in hooks).item(),
    )
    kind = "stages" if of_stages else "bn"
    theirs = torch.cat([hook.instance_mean for hook in means], dim=1)
    case.compare(f"CMI's instance features ({kind})", instance_features(seen, kind), theirs)
