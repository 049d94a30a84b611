"""Applying any linen module: synchronised BatchNorm, and the statistics at every BatchNorm input.

Both are done from outside by intercepting the calls of `flax.linen.BatchNorm`, so that a model needs no
changes. Statistics are sown into a collection of their own rather than kept in a Python list: sown values
survive `nn.remat` and `nn.jit`. Under `nn.scan` and `nn.vmap` they are silently lost, therefore the captured
layers are counted against the BatchNorm scopes of `batch_stats`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from cudfkd_jax.errors import UserError
from cudfkd_jax.parallel import SINGLE, Axis

Variables = Mapping[str, Any]

_CAPTURED = "captured_bn_inputs"


class BNStatistics(NamedTuple):
    """One BatchNorm layer's input beside what the layer remembers of the training data; each `[features]`."""

    mean: jax.Array
    var: jax.Array  # biased, over the whole batch on all devices
    running_mean: jax.Array
    running_var: jax.Array


class Outputs(NamedTuple):
    """What a module returned.

    Attributes:
        value: the module's own result (logits `[B, classes]`, or images).
        batch_stats: the running statistics after the call, unchanged unless `train`.
        bn: one entry a BatchNorm call, empty unless `capture`.
    """

    value: jax.Array
    batch_stats: Any
    bn: tuple[BNStatistics, ...]


def apply(
    module: nn.Module,
    variables: Variables,
    inputs: jax.Array,
    *,
    train: bool = False,
    capture: bool = False,
    axis: Axis = SINGLE,
) -> Outputs:
    """Applies a linen module that is called as `module(inputs, train=...)`.

    Args:
        module: any linen module with or without BatchNorm.
        variables: `{'params': ..., 'batch_stats': ...}`; the second may be missing or empty.
        inputs: this device's part of the batch, `[B / axis.size, ...]`.
        train: normalise with the statistics of the whole batch on all devices and update the running ones.
        capture: also return the statistics at the input of every BatchNorm.
        axis: the devices that share the batch.

    Raises:
        UserError: a BatchNorm layer was not reached by the capture (lifted by `nn.scan` or `nn.vmap`).
    """
    mutable = (["batch_stats"] if train else []) + ([_CAPTURED] if capture else [])
    with nn.intercept_methods(_batch_norm_interceptor(axis, capture)):
        value, updated = module.apply(variables, inputs, train=train, mutable=mutable)
    batch_stats = variables.get("batch_stats", {})
    bn = _pair_statistics(updated.get(_CAPTURED, {}), batch_stats) if capture else ()
    return Outputs(value, updated.get("batch_stats", batch_stats), bn)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A linen classifier together with the normalisation of its inputs."""

    module: nn.Module
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool = False,
        capture: bool = False,
        axis: Axis = SINGLE,
    ) -> Outputs:
        """Logits of images `[B, H, W, C]` in [0, 1]; see `apply`."""
        mean, std = jnp.asarray(self.mean, images.dtype), jnp.asarray(self.std, images.dtype)
        return apply(self.module, variables, (images - mean) / std, train=train, capture=capture, axis=axis)

    def init(self, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Any]:
        """Fresh variables `{'params', 'batch_stats'}`."""
        variables = self.module.init(key, jnp.zeros((1, *image_shape)), train=False)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def _batch_norm_interceptor(axis: Axis, capture: bool):
    def intercept(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            # Frozen dataclass: the module was built without an axis, and here is where one becomes known.
            object.__setattr__(module, "axis_name", axis.name)
            if capture:
                mean, var = _moments(args[0] if args else kwargs["x"], module.axis, axis)
                module.sow(_CAPTURED, "input_mean", mean)
                module.sow(_CAPTURED, "input_var", var)
        return next_function(*args, **kwargs)

    return intercept


def _moments(x: jax.Array, feature_axes: int | tuple[int, ...], axis: Axis) -> tuple[jax.Array, jax.Array]:
    features = {a % x.ndim for a in jax.tree.leaves(feature_axes)}
    reduced = tuple(a for a in range(x.ndim) if a not in features)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = axis.mean(jnp.mean(x, reduced, keepdims=True))
    var = axis.mean(jnp.mean(jnp.square(x - mean), reduced))  # two passes: exact where the mean is large
    return jnp.squeeze(mean, reduced), var


def _pair_statistics(captured: Any, batch_stats: Any) -> tuple[BNStatistics, ...]:
    captured = traverse_util.flatten_dict(captured)
    running = traverse_util.flatten_dict(batch_stats)
    scopes = sorted({path[:-1] for path in running if path[-1] == "mean" and (*path[:-1], "var") in running})
    missed = [scope for scope in scopes if (*scope, "input_mean") not in captured]
    if missed:
        names = ", ".join("/".join(scope) for scope in missed)
        raise UserError(
            f"the inputs of {len(missed)} BatchNorm layers cannot be seen ({names}); "
            "write these layers without nn.scan or nn.vmap"
        )
    return tuple(
        BNStatistics(mean, var, running[(*scope, "mean")], running[(*scope, "var")])
        for scope in scopes
        for mean, var in zip(
            captured[(*scope, "input_mean")], captured[(*scope, "input_var")], strict=True
        )  # a shared layer is called several times
    )
