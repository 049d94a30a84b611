"""Devices of all processes: the only module that knows pmap, axis names and replication.

A step function takes an `Axis` and never asks how many devices there are. Everything it draws (latents,
augmentations) it draws for the whole batch from one key and cuts with `Axis.shard`, and every mean over the
batch goes through `Axis.mean`; so N devices compute the update that one computes, in one process or in several.

Each process holds the arrays of its own devices and nothing of the others'.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cudfkd_jax.runtime import onednn, processes

Tree = TypeVar("Tree")

_AXIS_NAME = "devices"


@dataclasses.dataclass(frozen=True)
class Axis:
    """The devices a batch is spread over; the identity on one device (`name` None, `size` 1)."""

    name: str | None = None
    size: int = 1

    def mean(self, tree: Tree) -> Tree:
        """Mean over the devices of every leaf; the same value on each of them."""
        return tree if self.name is None else jax.lax.pmean(tree, self.name)

    def shard(self, batch: jax.Array) -> jax.Array:
        """This device's rows `[B / size, ...]` of a whole batch `[B, ...]` that every device holds."""
        if self.name is None:
            return batch
        rows = batch.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(batch, jax.lax.axis_index(self.name) * rows, rows)

    def gather(self, rows: jax.Array) -> jax.Array:
        """The whole batch `[B, ...]`, on every device, of which each holds `[B / size, ...]`.

        Gradients flow back to the device that gave the rows: where every device computes the same loss of the
        whole batch, the mean of their gradients is the gradient.
        """
        return rows if self.name is None else jax.lax.all_gather(rows, self.name, tiled=True)

    def own_key(self, key: jax.Array) -> jax.Array:
        """A key for what each device draws for itself; the key itself on one device."""
        return key if self.name is None else jax.random.fold_in(key, jax.lax.axis_index(self.name))


SINGLE = Axis()


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices a run uses, those of each process side by side, and how a step is compiled for them."""

    devices: tuple[jax.Device, ...]
    bfloat16: bool = False  # what is compiled computes convolutions and matrix products in bfloat16

    @property
    def local(self) -> tuple[jax.Device, ...]:
        """Those of this process."""
        return tuple(device for device in self.devices if device.process_index == jax.process_index())

    @property
    def axis(self) -> Axis:
        count = len(self.devices)
        return SINGLE if count == 1 else Axis(_AXIS_NAME, count)

    def compile(self, step: Callable[..., Any], *, donate_state: bool = True) -> Callable[..., Any]:
        """Compiles `step(*replicated, axis=...)`: `jax.jit` on one device, `jax.pmap` on several.

        Args:
            step: a pure function of replicated trees; it may return replicated or sharded ones.
            donate_state: the first argument's buffers are given up to the result.
        """
        donate = (0,) if donate_state else ()
        step = functools.partial(step, axis=self.axis)
        if self.axis.name is None:
            options = _options(self.devices[0].platform, self.bfloat16)
            return jax.jit(step, donate_argnums=donate, compiler_options=options)
        return jax.pmap(step, axis_name=_AXIS_NAME, devices=self.devices, donate_argnums=donate)

    def replicate(self, tree: Tree) -> Tree:
        """A copy of the tree on every local device, in the layout that compiled steps take.

        Every process calls it with the same values.
        """
        if self.axis.name is None:
            return jax.device_put(tree, self.devices[0])
        return jax.device_put(_copies(tree, len(self.local)), self._sharding())

    def unreplicate(self, tree: Tree) -> Tree:
        """One copy of a replicated tree, on the first local device."""
        return tree if self.axis.name is None else jax.device_put(_first(tree), self.local[0])

    def snapshot(self, tree: Tree) -> Tree:
        """One copy of a replicated tree, on the first local device, that is not given up with the tree."""
        return _copy(tree) if self.axis.name is None else self.unreplicate(tree)

    def split(self, batch: np.ndarray) -> jax.Array:
        """A host batch `[B, ...]` cut over the devices; `B` is a multiple of their number.

        Every process gives the whole batch, and only its own part goes to its devices.
        """
        if self.axis.name is None:
            return jax.device_put(batch, self.devices[0])
        parts, first = batch.reshape(len(self.devices), -1, *batch.shape[1:]), self.devices.index(self.local[0])
        return jax.device_put(parts[first : first + len(self.local)], self._sharding())

    def join(self, batch: jax.Array) -> np.ndarray:
        """The whole batch `[B, ...]` on every host from what a step returned for each device's part."""
        host = np.asarray(batch)
        return host if self.axis.name is None else processes.gather(host.reshape(-1, *host.shape[2:]))

    def _sharding(self) -> NamedSharding:
        return NamedSharding(Mesh(np.asarray(self.local), (_AXIS_NAME,)), PartitionSpec(_AXIS_NAME))


def local_devices(count: int = 0, *, bfloat16: bool = False) -> Devices:
    """The first `count` local devices of every process, all of them where it is 0; see `Devices`."""
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    chosen = (device for _, local in sorted(by_process.items()) for device in local[: count or None])
    return Devices(tuple(chosen), bfloat16)


@functools.cache
def _options(platform: str, bfloat16: bool) -> dict[str, bool | str]:
    """What XLA is told when it compiles for the devices of a platform, where it knows the words."""
    if platform != "cpu":
        return {}
    if bfloat16 and onednn.available():
        return dict(onednn.OPTIONS)
    # Eigen's convolutions, not YNNPACK's (the default of jaxlib 0.10): those take up to twice as long
    # (docs/performance.md), and their compiler crashed on some networks.
    options: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


# Whole trees at a time: a call a leaf would compile a program a shape.
@functools.partial(jax.jit, static_argnames="count")
def _copies(tree: Tree, count: int) -> Tree:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)


@jax.jit
def _copy(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _first(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x[0], tree)
