"""Networks like users', each with another name for the mode."""

import flax.linen as nn
import jax.numpy as jnp


class Plain(nn.Module):
    """A network of convolutions, BatchNorm and dropout."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool):
        for features in (8, 16):
            x = nn.Conv(features, (3, 3), 2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(self.num_classes)(x)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training=False):
        x = nn.BatchNorm(use_running_average=not training)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.Dropout(0.5, deterministic=deterministic)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class UseRunningAverage(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        x = nn.BatchNorm(use_running_average=use_running_average)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class OtherName(nn.Module):
    @nn.compact
    def __call__(self, x, frozen):
        x = nn.BatchNorm(use_running_average=frozen)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Collections(nn.Module):
    """A network with a collection of its own and with a random layer under a name of its own."""

    @nn.compact
    def __call__(self, x, train: bool):
        mean = self.variable("seen", "mean", jnp.zeros, ())
        steps = self.variable("seen", "steps", jnp.zeros, (), jnp.int32)
        if train and not self.is_initializing():
            mean.value += 0.1 * (jnp.mean(x) - mean.value)
            steps.value += 1
        x = nn.Conv(8, (3, 3), 2, use_bias=False)(x - mean.value)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.1, rng_collection="noise", deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10)(x)


class NoMode(nn.Module):
    """A network with only GroupNorm, which is the same in training and evaluation."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(8, (3, 3), 2)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class WantsArguments(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(self.features)(x.mean((1, 2)))


class NotLogits(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return {"logits": nn.Dense(10)(x.mean((1, 2)))}


class Fails(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(10)(jnp.reshape(x, (7, 7)))


def factory():
    return Plain()


def not_a_network():
    return 3
