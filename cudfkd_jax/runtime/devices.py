"""The devices of all processes: the only module that knows pmap, axis names and replication.

A step function takes an `Axis` and is independent of the number of devices. It draws everything (latents,
augmentations) for the whole batch from one key and splits it with `Axis.shard`, and every mean over the batch
uses `Axis.mean`; so N devices compute the same update as one, in one process or in several.

Each process holds only the arrays of its local devices.
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
from cudfkd_jax.runtime.errors import UserError

Tree = TypeVar("Tree")

_AXIS_NAME = "devices"


@dataclasses.dataclass(frozen=True)
class Axis:
    """The devices that share a batch; on one device (`name` None, `size` 1) every operation is the identity."""

    name: str | None = None
    size: int = 1

    def mean(self, tree: Tree) -> Tree:
        """Averages every leaf over the devices; each device receives the result."""
        return tree if self.name is None else jax.lax.pmean(tree, self.name)

    def shard(self, batch: jax.Array) -> jax.Array:
        """Returns this device's rows `[B / size, ...]` of a replicated batch `[B, ...]`."""
        if self.name is None:
            return batch
        rows = batch.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(batch, jax.lax.axis_index(self.name) * rows, rows)

    def gather(self, rows: jax.Array) -> jax.Array:
        """Returns the whole batch `[B, ...]` on every device from each device's `[B / size, ...]`.

        Gradients flow back to the device of the rows: if every device computes the same loss of the whole batch,
        the mean of their gradients is the gradient.
        """
        return rows if self.name is None else jax.lax.all_gather(rows, self.name, tiled=True)

    def own_key(self, key: jax.Array) -> jax.Array:
        """Returns a distinct key per device for independent draws; on one device, the key itself."""
        return key if self.name is None else jax.random.fold_in(key, jax.lax.axis_index(self.name))


SINGLE = Axis()


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, grouped by process, and the compilation of steps for them."""

    devices: tuple[jax.Device, ...]
    bfloat16: bool = False  # whether compiled steps compute convolutions and matrix products in bfloat16

    @property
    def local(self) -> tuple[jax.Device, ...]:
        """The devices of this process."""
        return tuple(device for device in self.devices if device.process_index == jax.process_index())

    @property
    def axis(self) -> Axis:
        count = len(self.devices)
        return SINGLE if count == 1 else Axis(_AXIS_NAME, count)

    def compile(self, step: Callable[..., Any], *, donate_state: bool = True) -> Callable[..., Any]:
        """Compiles `step(*replicated, axis=...)`: `jax.jit` on one device, `jax.pmap` on several.

        Args:
            step: a pure function of replicated trees; it may return replicated or sharded ones.
            donate_state: whether to donate the first argument's buffers to the result.
        """
        donate = (0,) if donate_state else ()
        step = functools.partial(step, axis=self.axis)
        if self.axis.name is None:
            options = _options(self.devices[0].platform, self.bfloat16)
            return jax.jit(step, donate_argnums=donate, compiler_options=options)
        return jax.pmap(step, axis_name=_AXIS_NAME, devices=self.devices, donate_argnums=donate)

    def replicate(self, tree: Tree) -> Tree:
        """Copies the tree to every local device, in the layout that compiled steps take.

        Every process must pass the same values.
        """
        if self.axis.name is None:
            return jax.device_put(tree, self.devices[0])
        sharding = self._sharding()
        # To each device its copy: a stack of all may not fit into the memory of the first.
        return _stacked(sharding)(jax.device_put(tree, NamedSharding(sharding.mesh, PartitionSpec())))

    def unreplicate(self, tree: Tree) -> Tree:
        """Returns one copy of a replicated tree, on the first local device."""
        return tree if self.axis.name is None else jax.device_put(_first(tree), self.local[0])

    def snapshot(self, tree: Tree) -> Tree:
        """Returns a copy of a replicated tree, on the first local device, that survives the tree's donation."""
        return _copy(tree) if self.axis.name is None else self.unreplicate(tree)

    def split(self, batch: np.ndarray) -> jax.Array:
        """Splits a host batch `[B, ...]` over the devices; `B` is a multiple of their number.

        Every process passes the whole batch; only its part is transferred to its devices.
        """
        if self.axis.name is None:
            return jax.device_put(batch, self.devices[0])
        parts, first = batch.reshape(len(self.devices), -1, *batch.shape[1:]), self.devices.index(self.local[0])
        return jax.device_put(parts[first : first + len(self.local)], self._sharding())

    def join(self, batch: jax.Array) -> np.ndarray:
        """Assembles a step's per-device results to the whole batch `[B, ...]` on every host."""
        host = np.asarray(batch)
        return host if self.axis.name is None else processes.gather(host.reshape(-1, *host.shape[2:]))

    def _sharding(self) -> NamedSharding:
        return NamedSharding(Mesh(np.asarray(self.local), (_AXIS_NAME,)), PartitionSpec(_AXIS_NAME))


def local_devices(count: int = 0, *, bfloat16: bool = False) -> Devices:
    """Returns the first `count` local devices of every process, or all for 0; see `Devices`.

    Raises:
        UserError: JAX has no devices of the kind that JAX_PLATFORMS names.
    """
    by_process: dict[int, list[jax.Device]] = {}
    for device in _all_devices():
        by_process.setdefault(device.process_index, []).append(device)
    chosen = (device for _, local in sorted(by_process.items()) for device in local[: count or None])
    return Devices(tuple(chosen), bfloat16)


def _all_devices() -> list[jax.Device]:
    wanted = jax.config.jax_platforms
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # jaxlib raises either, for builds that lack the platform
        if not wanted:
            raise
        raise UserError(
            f"JAX_PLATFORMS={wanted} and this JAX finds no such device; leave it out to compute on what is here, "
            "or install a build of JAX for it, such as jax[cuda12]"
        ) from error


@functools.cache
def _options(platform: str, bfloat16: bool) -> dict[str, bool | str]:
    """Returns XLA's compiler options for a platform, without any that it does not support."""
    if platform != "cpu":
        return {}
    if onednn.available("bfloat16" if bfloat16 else "float32"):
        return dict(onednn.OPTIONS)
    # Eigen's convolutions, not YNNPACK's (the default of jaxlib 0.10), which take up to twice as long
    # (docs/performance.md) and whose compiler crashed on some networks.
    options: dict[str, bool | str] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


# These take whole trees: one call per leaf would compile one program per shape.
@functools.cache
def _stacked(sharding: NamedSharding) -> Callable[[Tree], Tree]:
    """Returns a function that stacks what every device has, `[...] -> [N, ...]`, without moving it."""

    def stack(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (sharding.mesh.size, *x.shape)), tree)

    return jax.jit(stack, out_shardings=sharding)


@jax.jit
def _copy(tree: Tree) -> Tree:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _first(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x[0], tree)
