"""Networks of Flax NNX like users', in whose code nobody calls train() or eval()."""

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    def __init__(self, channels: int, features: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, features, (3, 3), 2, use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.bn(self.conv(x)))


class Net(nnx.Module):
    """Convolutions and BatchNorm in a list, dropout and a linear layer."""

    def __init__(self, features=(8, 16), num_classes: int = 10, *, rngs: nnx.Rngs):
        sizes = (1, *features)
        self.blocks = nnx.List(Block(a, b, rngs=rngs) for a, b in zip(sizes, features, strict=False))
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(features[-1], num_classes, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            self.sow(nnx.Intermediate, "stages", x)
            x = block(x)
        self.sow(nnx.Intermediate, "stages", x)
        return self.head(self.dropout(x.mean((1, 2))))


class Steps(nnx.Variable):
    """How often a network was trained."""


class Counting(nnx.Module):
    """A network with a variable of another kind, a frozen array and dropout that wants rngs in the call."""

    def __init__(self, rngs: nnx.Rngs):
        self.steps = Steps(jnp.zeros((), jnp.int32))
        self.scale = jnp.full((1,), 2.0)
        self.dropout = nnx.Dropout(0.5)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x, rngs, train=False):
        if train:
            self.steps[...] += 1
        return self.head(self.dropout(self.scale[0] * x.reshape(len(x), -1), rngs=rngs))


class Shared(nnx.Module):
    """A network that calls a layer twice, and another whose kernel is the first one's."""

    def __init__(self, rngs: nnx.Rngs):
        self.bn = nnx.BatchNorm(64, momentum=0.5, rngs=rngs)
        self.middle = nnx.Linear(64, 64, rngs=rngs)
        self.again = self.middle
        self.tied = nnx.Linear(64, 64, rngs=rngs)
        self.tied.kernel = self.middle.kernel
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = self.bn(self.middle(self.bn(x.reshape(len(x), -1))))
        return self.head(self.tied(self.again(x)))


class Rematerialised(nnx.Module):
    """A network whose block is computed again in the backward pass."""

    def __init__(self, rngs: nnx.Rngs):
        self.block = Block(1, 4, rngs=rngs)
        self.head = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.remat(lambda block, x: block(x))(self.block, x).mean((1, 2)))


class WithoutNorm(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), 2, rngs=rngs)
        self.norm = nnx.GroupNorm(8, 2, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


class WantsArguments(nnx.Module):
    def __init__(self, features, rngs: nnx.Rngs):
        self.head = nnx.Linear(features, 10, rngs=rngs)


def make(rngs: nnx.Rngs):
    return Net(rngs=rngs)


def small(*, rngs: nnx.Rngs):
    return Net((4, 8), rngs=rngs)


@nnx.jit
def ready():
    return Net(rngs=nnx.Rngs(jax.random.key(7)))


def not_a_network(rngs):
    return 3


def fails(rngs):
    raise ValueError("no such\nfile")
