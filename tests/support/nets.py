"""A problem small enough to compile in a second: two-layer classifiers and a small generator at 8×8."""

import functools

import flax.linen as nn
import jax
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from cudfkd_jax.config import access, build, defaults, networks
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.state import RunState

IMAGE_SHAPE = (8, 8, 3)


class TinyNet(nn.Module):
    features: int = 6
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        for stride in (1, 2):
            x = nn.Conv(self.features, (3, 3), stride, use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class SmallNet(nn.Module):
    """Learns 98 % of the digits at 8×8."""

    @nn.compact
    def __call__(self, x, train: bool):
        for features, stride in ((16, 1), (32, 2), (32, 2)):
            x = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def classifier(features: int = 6, dtype: DTypeLike | None = None) -> Classifier:
    return Classifier(TinyNet(features, dtype), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def config() -> ConfigDict:
    c = defaults.get_config()
    c.data.update(image_shape=IMAGE_SHAPE, padding=1)
    c.generator.update(latent_dim=8, width=4, stages=1)
    c.distill.update(epochs=4, rounds_per_epoch=3, student_steps=2, batch_size=16, loss="kl")
    c.curriculum.adv = 1.5  # so that the first step already has an adversarial term
    for section in (c.teacher, c.scratch, c.kd):
        section.update(batch_size=16, epochs=2)
    return c


def problem(c: ConfigDict) -> Problem:
    net = networks.described(c, "teacher")
    dtype = access.compute_dtype(c)
    pair = networks.Pair(classifier(8, dtype), net, teacher_variables(), classifier(4, dtype), net)
    return build.problem(c, pair)


def initial_state(problem: Problem) -> RunState:
    init = functools.partial(distill_steps.init_state, problem=problem, image_shape=IMAGE_SHAPE)
    return jax.jit(init)(jax.random.key(3), teacher_variables())


def teacher_variables():
    return variables(classifier(8))


@functools.cache
def variables(network: Classifier, image_shape: tuple[int, int, int] = IMAGE_SHAPE):
    return drawn(jax.eval_shape(lambda: network.init(jax.random.key(0), image_shape)))


def drawn(shapes):
    """Returns variables none of which is 0 or 1, so that no term vanishes; NumPy compiles nothing for them.

    Collections of a module's own begin with zeros.
    """
    random = np.random.default_rng(7)

    def draw(path, leaf):
        if path[0].key not in ("params", "batch_stats"):
            return np.zeros(leaf.shape, leaf.dtype)
        if path[-1].key == "kernel":
            return random.normal(0.15, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        start = 1 if path[-1].key in ("scale", "var") else 0
        return (start + random.uniform(0, 0.3, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
