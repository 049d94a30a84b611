"""Application of any linen module, with synchronised BatchNorm and capture of intermediate values.

Both intercept the calls of `flax.linen.BatchNorm` and `flax.linen.Dense`, so that a model needs no changes.
Captured values are sown into a separate collection rather than kept in a Python list, because sown values survive
`nn.remat` and `nn.jit`. Under `nn.scan` and `nn.vmap` they are silently lost; the captured layers are therefore
checked against the BatchNorm scopes of `batch_stats`.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from cudfkd_jax.models import bridged, convolution, folding, normalisation
from cudfkd_jax.runtime.devices import SINGLE, Axis
from cudfkd_jax.runtime.errors import UserError

Variables = Mapping[str, Any]

# The names that can be captured, each a field of `Outputs`.
BN, FEATURES, INSTANCES, STAGES = "bn", "features", "instances", "stages"

_CAPTURED, _INTERMEDIATES = "captured", "intermediates"
_TRUE_IN_TRAINING, _FALSE_IN_TRAINING = ("train", "training"), ("deterministic", "use_running_average")


class Wrapped(nn.Module):
    """A network of another library as a linen module, which sets the network's mode itself."""

    axis = SINGLE  # the devices that share the batch; set by `apply`

    def mode_arguments(self, *, train: bool, train_argument: str) -> dict[str, Any]:
        """Returns the arguments of `__call__` for a mode; see the function of that name."""
        raise NotImplementedError


class BNStatistics(NamedTuple):
    """Batch statistics of one BatchNorm layer's input and the layer's running statistics; each `[features]`."""

    mean: jax.Array
    var: jax.Array  # biased, over the whole batch on all devices
    running_mean: jax.Array
    running_var: jax.Array


class Outputs(NamedTuple):
    """The outputs of a module; what can be captured is empty unless it is.

    Attributes:
        value: the module's result (logits `[B, classes]`, or images).
        batch_stats: the running statistics after the call, unchanged unless `train`.
        bn: one entry per BatchNorm call.
        features: input `[B, D]` of the linear layer that returns the logits.
        instances: for each BatchNorm call, the channel means of its input per image, `[B, channels]`.
        stages: the maps `[B, h, w, channels]` between the module's stages, from the input of the first to the
            output of the last, if the module sows them with `self.sow("intermediates", "stages", x)`.
        collections: the variables in further collections after the call, unchanged unless `train`; the devices'
            mean where they are floating-point numbers.
    """

    value: jax.Array
    batch_stats: Any
    bn: tuple[BNStatistics, ...] = ()
    features: jax.Array | None = None
    instances: tuple[jax.Array, ...] = ()
    stages: tuple[jax.Array, ...] = ()
    collections: Any = ()


def apply(
    module: nn.Module,
    variables: Variables,
    inputs: jax.Array,
    *,
    train: bool = False,
    capture: Sequence[str] = (),
    axis: Axis = SINGLE,
    key: jax.Array | None = None,
    train_argument: str = "",
    fold: bool = False,
) -> Outputs:
    """Applies a linen module.

    Args:
        module: any linen module with or without BatchNorm.
        variables: `{'params': ..., 'batch_stats': ...}` and any further collections; the second may be missing.
        inputs: this device's part of the batch, `[B / axis.size, ...]`.
        train: normalises with the statistics of the whole batch on all devices and updates the running ones.
        capture: which of `BN`, `FEATURES`, `INSTANCES` and `STAGES` to return too.
        axis: the devices that share the batch.
        key: the random key of dropout and other random layers, independent per device; None gives them none.
        train_argument: see `mode_arguments`.
        fold: in evaluation mode, folds BatchNorm into convolutions (`folding.py`) unless its inputs are captured.

    Raises:
        UserError: a value cannot be captured, or the module has no argument for its mode.
    """
    further = [name for name in variables if name not in ("params", "batch_stats")]
    mutable = (["batch_stats", *further] if train else []) + ([_CAPTURED, _INTERMEDIATES] if capture else [])
    mode = mode_arguments(module, train=train, train_argument=train_argument)
    rngs = None if key is None else _rngs(axis.own_key(key))
    with contextlib.ExitStack() as interceptors:
        interceptors.enter_context(nn.intercept_methods(_interceptor(axis, capture, train)))
        if fold and not train and not {BN, INSTANCES} & set(capture):
            interceptors.enter_context(nn.intercept_methods(folding.interceptor()))
        value, updated = module.apply(variables, inputs, **mode, mutable=mutable, rngs=rngs)
    batch_stats = variables.get("batch_stats", {})
    collections = {name: _shared(updated[name], axis) if train else variables[name] for name in further}
    outputs = Outputs(value, updated.get("batch_stats", batch_stats), collections=collections)
    if not capture:
        return outputs
    seen = traverse_util.flatten_dict(updated.get(_CAPTURED, {}))
    return outputs._replace(
        bn=_bn_statistics(seen, batch_stats) if BN in capture else (),
        features=_features(seen, variables, value) if FEATURES in capture else None,
        instances=_of_bn_layers(seen, batch_stats, "instances") if INSTANCES in capture else (),
        stages=_stages(updated, module) if STAGES in capture else (),
    )


def _rngs(key: jax.Array) -> dict[str, jax.Array]:
    """Returns the keys of all random streams: Flax takes that of "params" for names without one."""
    return {"dropout": key, "params": jax.random.fold_in(key, 1)}


def _shared(collection: Any, axis: Axis) -> Any:
    """Averages floating-point variables over the devices, so that all devices keep the same."""
    return jax.tree.map(lambda x: axis.mean(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, collection)


def mode_arguments(module: nn.Module, *, train: bool, train_argument: str = "") -> dict[str, Any]:
    """Returns the keyword arguments that put a module's call into training or evaluation mode.

    Args:
        module: its `__call__` may take `train` or `training`, `deterministic` or `use_running_average`, or none
            of them if both modes are identical.
        train: whether the mode is training.
        train_argument: the name of another argument that is True in training, or `not NAME` for one that is
            False in training; "" looks for the names above.

    Raises:
        UserError: the argument does not exist, or other arguments have no value.
    """
    if isinstance(module, Wrapped):
        return module.mode_arguments(train=train, train_argument=train_argument)
    kind = type(module)
    return call_arguments(kind.__call__, kind.__name__, train=train, train_argument=train_argument)


def call_arguments(
    call: Callable[..., Any], owner: str, *, train: bool, train_argument: str = "", given: Sequence[str] = ()
) -> dict[str, Any]:
    """Does the same for the method of a class with the name `owner`, whose arguments `given` have values."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    names = {p.name for p in parameters}
    name = train_argument.removeprefix("not ").strip()
    if name:
        if name not in names and not any(p.kind == p.VAR_KEYWORD for p in parameters):
            raise UserError(
                f"{owner} is called without an argument {name!r}, which train_argument names; "
                f"it takes {', '.join(p.name for p in parameters)}"
            )
        chosen = {name: train != train_argument.startswith("not ")}
    else:
        chosen = {n: train for n in _TRUE_IN_TRAINING if n in names}
        chosen |= {n: not train for n in _FALSE_IN_TRAINING if n in names}
    unnamed = [
        p.name
        for p in parameters[1:]
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in (*chosen, *given)
    ]
    if unnamed:
        raise UserError(
            f"{owner} must be called with {', '.join(unnamed)}; name the argument that is true in "
            "training with train_argument ('not NAME' where it is false), and give the others defaults"
        )
    return chosen


def has_batch_norm(variables: Variables) -> bool:
    """Returns whether a module with these variables has a BatchNorm layer with running statistics."""
    return bool(batch_norm_layers(variables))


def batch_norm_layers(variables: Variables) -> list[str]:
    """Returns the paths of the BatchNorm layers with running statistics, in the order of `Outputs.bn`."""
    return ["/".join(scope) for scope in _bn_scopes(variables.get("batch_stats", {}))]


def _interceptor(axis: Axis, capture: Sequence[str], train: bool):
    def intercept(next_function, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return next_function(*args, **kwargs)
        if isinstance(module, Wrapped):
            object.__setattr__(module, "axis", axis)
        if isinstance(module, nn.BatchNorm):
            # The module is a frozen dataclass built without an axis, which is known only here.
            object.__setattr__(module, "axis_name", axis.name)
            x = args[0] if args else kwargs["x"]
            if BN in capture:
                mean, var = _moments(x, module.axis, axis)
                module.sow(_CAPTURED, "mean", mean)
                module.sow(_CAPTURED, "var", var)
            if INSTANCES in capture:
                module.sow(_CAPTURED, "instances", _channel_means(x, module.axis))
            if axis.name is None and _normalises_by_batch(module, *args, **kwargs):
                return _normalise_by_batch(module, x)
        elif isinstance(module, nn.Conv):
            if module.conv_general_dilated is None and module.conv_general_dilated_cls is None:
                object.__setattr__(module, "conv_general_dilated", convolution.conv_general_dilated)
        elif isinstance(module, nn.Dense) and FEATURES in capture:
            module.sow(_CAPTURED, "features", args[0] if args else kwargs["inputs"])
        else:
            bridged.set_mode_inside(module, train=train, axis_name=axis.name)
        return next_function(*args, **kwargs)

    return intercept


def _normalises_by_batch(
    module: nn.BatchNorm, x: jax.Array, use_running_average: bool | None = None, mask: Any = None
) -> bool:
    """Returns whether `_normalise_by_batch` handles a call with these arguments."""
    trains = not nn.merge_param("use_running_average", module.use_running_average, use_running_average)
    plain = type(module) is nn.BatchNorm and module.axis in (-1, x.ndim - 1) and mask is None
    return trains and plain and normalisation.in_use(x.dtype) and not module.is_initializing()


def _normalise_by_batch(module: nn.BatchNorm, x: jax.Array) -> jax.Array:
    """Computes `nn.BatchNorm` in training mode and updates the running statistics."""
    params = module.variables.get("params", {})
    scale, bias = (
        params.get(name, jnp.full(x.shape[-1], value)) for name, value in (("scale", 1.0), ("bias", 0.0))
    )
    y, *moments = normalisation.normalise(x, scale, bias, module.epsilon)
    for name, moment in zip(("mean", "var"), moments, strict=True):
        running: Any = module.get_variable("batch_stats", name)
        module.put_variable("batch_stats", name, module.momentum * running + (1 - module.momentum) * moment)
    return y.astype(module.dtype or jnp.promote_types(x.dtype, module.param_dtype))


def _moments(x: jax.Array, feature_axes: int | Sequence[int], axis: Axis) -> tuple[jax.Array, jax.Array]:
    features = {a % x.ndim for a in jax.tree.leaves(feature_axes)}
    reduced = tuple(a for a in range(x.ndim) if a not in features)
    if axis.name is None and features == {x.ndim - 1} and normalisation.in_use(x.dtype):
        return normalisation.moments(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = axis.mean(jnp.mean(x, reduced, keepdims=True))
    var = axis.mean(jnp.mean(jnp.square(x - mean), reduced))  # two passes: exact where the mean is large
    return jnp.squeeze(mean, reduced), var


def _channel_means(x: jax.Array, feature_axes: int | Sequence[int]) -> jax.Array:
    features = {a % x.ndim for a in jax.tree.leaves(feature_axes)}
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.mean(x, tuple(a for a in range(1, x.ndim) if a not in features))


def _bn_scopes(batch_stats: Any) -> list[tuple[str, ...]]:
    running = traverse_util.flatten_dict(batch_stats)
    return sorted({path[:-1] for path in running if path[-1] == "mean" and (*path[:-1], "var") in running})


def _of_bn_layers(seen: Mapping[Any, Any], batch_stats: Any, name: str) -> tuple[jax.Array, ...]:
    """Returns the value sown under a name at each BatchNorm call; a shared layer is called several times."""
    scopes = _bn_scopes(batch_stats)
    missed = [scope for scope in scopes if (*scope, name) not in seen]
    if missed:
        names = ", ".join("/".join(map(str, scope)) for scope in missed)
        raise UserError(
            f"the inputs of {len(missed)} BatchNorm layers cannot be seen ({names}); "
            "write these layers without nn.scan or nn.vmap; in NNX also without nnx.remat, nnx.jit and nnx.bridge"
        )
    return tuple(value for scope in scopes for value in seen[(*scope, name)])


def _bn_statistics(seen: Mapping[Any, Any], batch_stats: Any) -> tuple[BNStatistics, ...]:
    running = traverse_util.flatten_dict(batch_stats)
    means, variances = (_of_bn_layers(seen, batch_stats, name) for name in ("mean", "var"))
    remembered = (scope for scope in _bn_scopes(batch_stats) for _ in seen[(*scope, "mean")])
    return tuple(
        BNStatistics(mean, var, running[(*scope, "mean")], running[(*scope, "var")])
        for mean, var, scope in zip(means, variances, remembered, strict=True)
    )


def _features(seen: Mapping[Any, Any], variables: Variables, logits: jax.Array) -> jax.Array:
    """Returns the input of the only linear layer whose output has the logits' length."""
    kernels = traverse_util.flatten_dict(variables["params"])
    scopes = [
        path[:-1]
        for path in seen
        if path[-1] == "features" and kernels[(*path[:-1], "kernel")].shape[-1] == logits.shape[-1]
    ]
    if len(scopes) != 1:
        found = f"{len(scopes)} ({', '.join('/'.join(scope) for scope in scopes)})" if scopes else "none"
        raise UserError(
            f"the features before the logits cannot be told: of the linear layers with {logits.shape[-1]} outputs "
            f"there is {found}; give the network exactly one, an nn.Dense or nnx.Linear without nn.scan or nn.vmap"
        )
    return seen[(*scopes[0], "features")][-1]


def _stages(updated: Mapping[str, Any], module: nn.Module) -> tuple[jax.Array, ...]:
    maps = updated.get(_INTERMEDIATES, {}).get("stages", ())
    if len(maps) < 2:
        remedy = "let its __call__ self.sow('intermediates', 'stages', x) before its first stage and after each"
        raise UserError(
            f"{type(module).__name__} does not offer the maps between its stages; "
            f"{getattr(module, 'without_stages', remedy)}"
        )
    return maps
