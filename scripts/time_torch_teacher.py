"""Times a PyTorch teacher beside its Flax twin with the same weights, and compares what they compute.

    python scripts/time_torch_teacher.py [ARCH] [BATCH] [DTYPE]

ARCH is a network of `cudfkd_jax.models` that `torch_peer` has, too (resnet18), BATCH the number of images of 32×32
(64), DTYPE float32 or bfloat16. Prints milliseconds, the median of several calls: a forward pass, and one
with the BatchNorm term and the gradient by the images, as a synthesis step computes it. On a CPU they are of CPU
time, which other programs do not change.
"""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch

from cudfkd_jax.models import build_classifier, torch_calls, torch_module
from cudfkd_jax.models.capture import BN
from cudfkd_jax.models.classifier import Classifier
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.storage import torch_names
from torch_peer import models as peers

CLASSES, SHAPE = 10, (32, 32, 3)
MEAN, STD = (0.5,) * 3, (0.25,) * 3
REPEATS = 7


def main(arch: str = "resnet18", batch: str = "64", dtype: str = "float32") -> None:
    torch.manual_seed(0)
    network = peers.build(arch, CLASSES)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    narrow = jnp.bfloat16 if dtype == "bfloat16" else None
    wrapped = torch_module.wrap(network, CLASSES, arch, narrow)
    twin = build_classifier(arch, CLASSES, narrow)
    expected = jax.eval_shape(lambda: Classifier(twin, MEAN, STD).init(jax.random.key(0), SHAPE))
    state = torch_calls.tensors(network).weights
    found = {
        "PyTorch by torchax": (wrapped, torch_module.own_variables(wrapped, SHAPE)),
        "Flax": (twin, torch_names.to_variables(state, expected, Path(arch))),
    }
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(int(batch), *SHAPE)), jnp.float32)
    devices = local_devices(1, bfloat16=narrow is not None)
    print(f"{arch}, {batch} images {SHAPE}, {dtype}, {devices.devices[0].device_kind}; {jax.__version__=}")
    logits = {}
    for name, (module, variables) in found.items():
        classifier = Classifier(module, MEAN, STD)
        forward = devices.compile(lambda v, x, axis, c=classifier: c(v, x).value, donate_state=False)
        backward = devices.compile(lambda v, x, axis, c=classifier: _gradient(c, v, x), donate_state=False)
        placed = devices.replicate(variables)
        logits[name] = np.asarray(forward(placed, images))
        times = [_milliseconds(functools.partial(f, placed, images)) for f in (forward, backward)]
        print(f"{name:20} forward {times[0]:8.1f} ms, with BatchNorm term and gradient {times[1]:8.1f} ms")
    first, second = logits.values()
    print(f"largest difference of the logits: {np.abs(first - second).max():.2g} of {np.abs(second).max():.3g}")


def _gradient(classifier: Classifier, variables, images: jax.Array) -> jax.Array:
    def loss(x: jax.Array) -> jax.Array:
        outputs = classifier(variables, x, capture=(BN,))
        moments = sum(jnp.sum((b.mean - b.running_mean) ** 2 + (b.var - b.running_var) ** 2) for b in outputs.bn)
        return jnp.sum(jax.nn.logsumexp(outputs.value, axis=-1)) + moments

    return jax.grad(loss)(images)


def _milliseconds(call: Callable[[], jax.Array]) -> float:
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times = []
    for _ in range(REPEATS + 1):  # the first compiles
        start = clock()
        jax.block_until_ready(call())
        times.append(clock() - start)
    return 1e3 * float(np.median(times[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
