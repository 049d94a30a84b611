"""Flax NNX modules as linen modules, so that everything that takes a linen module takes them, too.

An NNX module holds its weights, its mode and its random streams itself. `NnxModule` keeps the module's graph
definition and its variables apart: the weights are linen variables, `{'params', 'batch_stats', ...}` nested by the
attributes of the module. Each call merges both into a fresh object, sets its mode, gives it random streams and
hands the changed variables back; the object passed in by the user is never called or changed.

On the fresh object, `nnx.BatchNorm`, `nnx.Conv` and `nnx.Linear` compute through linen layers with the same
variables, which `capture.apply` intercepts: so BatchNorm statistics are captured and shared between devices, and
features are found. Layers inside `nnx.remat`, `nnx.jit`, `nnx.scan` or `nnx.vmap` compute as NNX does and cannot
be captured.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core import Scope, meta
from flax.nnx.nn.dtypes import promote_dtype
from jax.extend.core import get_opaque_trace_state

from cudfkd_jax.models.bridged import set_mode
from cudfkd_jax.models.capture import STAGES, Wrapped, call_arguments
from cudfkd_jax.runtime.errors import UserError

Path = tuple[Any, ...]  # attributes, keys and indices that lead to a module or a variable
Variables = dict[str, dict[str, Any]]

_PARAMS, _BATCH_STATS, _ARRAYS = "params", "batch_stats", "arrays"


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """An NNX module apart from its weights.

    Attributes:
        kind: its class.
        graphdef: its structure.
        leaves: its variables and arrays by path; those that are arrays, and not variables, have their values.
        make: returns the module for a random key.
    """

    kind: type
    graphdef: Any
    leaves: dict[Path, Any]
    make: Callable[[jax.Array], nnx.Module]

    def initial(self, key: jax.Array) -> Variables:
        """Returns the variables before training."""
        # Where the key is traced, NNX loses arrays that are no variables: they are constants.
        arrays = {path: leaf for path, leaf in self.leaves.items() if not isinstance(leaf, nnx.Variable)}
        leaves = arrays | _leaves(self.make(key))
        if leaves.keys() != self.leaves.keys():
            raise UserError(f"{self.kind.__name__} is made with other variables each time; fix its function")
        return _collections(leaves)


class NnxModule(Wrapped):
    """A linen module that computes what an NNX module computes."""

    source: Source

    @property
    def without_stages(self) -> str:
        """What to do where a method asks for maps between stages; see `capture`."""
        return (
            f"let the __call__ of {self.source.kind.__name__} self.sow(nnx.Intermediate, 'stages', x) before its "
            "first stage and after each"
        )

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, arguments: tuple[tuple[str, bool], ...] = ()) -> Any:
        """Applies the module.

        Args:
            x: its input.
            train: its mode: BatchNorm normalises by the batch, and dropout draws from the rng "dropout" or, if
                there is none, does nothing.
            arguments: keyword arguments that its call takes for the mode, besides.
        """
        if self.is_initializing():
            for collection, tree in self.source.initial(self.make_rng("params")).items():
                for name, value in tree.items():
                    self.put_variable(collection, name, value)
        assert self.scope is not None
        draws = train and self.has_rng("dropout")
        # A constant key in evaluation: whatever is drawn there does not differ between calls.
        key = self.make_rng("dropout") if draws else jax.random.key(0)
        module = _merge(self.source, self.variables, key)
        set_mode(module, train=train, axis_name=self.axis.name)
        if train and not draws:
            module.set_attributes(deterministic=True, raise_if_not_found=False)
        kwargs: dict[str, Any] = dict(arguments)
        if "rngs" in inspect.signature(self.source.kind.__call__).parameters:
            kwargs["rngs"] = nnx.Rngs(jax.random.fold_in(key, len(self.source.leaves)))
        with _hosting(self.scope, module, self.source.leaves) as host:
            value, sown = _call(module, x, kwargs)
        for maps in _value(sown[STAGES]) if STAGES in sown else ():
            self.sow("intermediates", STAGES, maps)
        self._hand_back(module, host)
        return value

    def mode_arguments(self, *, train: bool, train_argument: str) -> dict[str, Any]:
        """Returns the arguments of `__call__` for a mode; see `capture.mode_arguments`."""
        kind = self.source.kind
        own = call_arguments(
            kind.__call__, kind.__name__, train=train, train_argument=train_argument, given=("rngs",)
        )
        return {"train": train, "arguments": tuple(own.items())}

    def _hand_back(self, module: nnx.Module, host: "_Host") -> None:
        """Stores the variables that the call may have changed."""
        for path, leaf in _leaves(module).items():
            collection = _collection(leaf)
            before = self.source.leaves.get(path)
            if collection in (None, _PARAMS) or before is None or path[:-1] in host.through_linen:
                continue
            if self.is_mutable_collection(collection):
                value = _value(leaf)
                if jnp.issubdtype(jnp.result_type(value), jnp.floating):
                    value = self.axis.mean(value)  # devices see parts of the batch
                _descend(self.scope, path[:-1]).put_variable(collection, str(path[-1]), value)


def from_module(module: nnx.Module) -> NnxModule:
    """Wraps a module that has its weights, which are those before training."""
    own = nnx.clone(module)
    nnx.pop(own, nnx.Intermediate)  # of the user's own calls
    return _wrap(own, lambda key: own)


@functools.lru_cache(maxsize=16)
def from_factory(factory: Callable[..., Any], name: str) -> NnxModule:
    """Wraps what a function or class returns: called with `rngs`, if it takes them, else with its own weights.

    It is called once for the structure, and with `rngs` again for each key.

    Raises:
        UserError: it wants other arguments, fails, or returns no NNX module; `name` is its name.
    """
    takes_rngs, wanted = _parameters(factory)
    if wanted:
        raise UserError(
            f"{name} wants arguments ({', '.join(wanted)}); name a function without arguments, or of rngs, that "
            "returns the module, or give them defaults"
        )
    if takes_rngs:
        return _from_function_of_key(lambda key: _called(functools.partial(factory, rngs=nnx.Rngs(key)), name))
    with jax.ensure_compile_time_eval():
        return from_module(_called(factory, name))


def from_to_linen(module: nnx.bridge.ToLinen) -> NnxModule:
    """Wraps the NNX module inside `nnx.bridge.to_linen`, whose mode linen cannot set."""
    name = getattr(module.nnx_class, "__name__", "to_linen")

    def make(key: jax.Array) -> nnx.Module:
        rngs = {} if module.skip_rng else {"rngs": nnx.Rngs(key)}
        return _called(functools.partial(module.nnx_class, *module.args, **module.kwargs, **rngs), name)

    return _from_function_of_key(make)


def _from_function_of_key(make: Callable[[jax.Array], nnx.Module]) -> NnxModule:
    with jax.ensure_compile_time_eval():  # NNX loses arrays that are no variables in abstract evaluation
        return _wrap(make(jax.random.key(0)), make)


def variables_of(module: nnx.Module) -> Variables:
    """Returns a module's weights as linen variables."""
    return _collections({path: leaf for path, leaf in _leaves(module).items() if not _is_sown(leaf)})


def plain(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns variables of `nnx.bridge.to_linen` without boxes and with names for indices."""
    flat = traverse_util.flatten_dict(meta.unbox(dict(variables)))
    return traverse_util.unflatten_dict({tuple(map(str, path)): leaf for path, leaf in flat.items()})


def _called(factory: Callable[..., Any], name: str) -> nnx.Module:
    try:
        made = factory()
    except Exception as error:  # user code
        raise UserError(f"{name}() fails: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(made, nnx.Module):
        raise UserError(
            f"{name} gives a {type(made).__name__}, not a flax.nnx.Module; name an NNX class or function"
        )
    return made


def _parameters(factory: Callable[..., Any]) -> tuple[bool, list[str]]:
    """Returns whether a function or class takes `rngs`, and what it requires besides."""
    # NNX's metaclass hides the signature of a class.
    is_class = isinstance(factory, type)
    function: Callable[..., Any] = getattr(factory, "__init__") if is_class else factory  # noqa: B009
    parameters = list(inspect.signature(function).parameters.values())[is_class:]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [p.name for p in parameters if p.kind not in several and p.default is p.empty and p.name != "rngs"]
    return any(p.name == "rngs" for p in parameters), wanted


def _wrap(module: nnx.Module, make: Callable[[jax.Array], nnx.Module]) -> NnxModule:
    leaves = {path: _shape(leaf) for path, leaf in _leaves(module).items()}
    return NnxModule(Source(type(module), nnx.graphdef(module), leaves, make))


# Variables


def _leaves(module: nnx.Module) -> dict[Path, Any]:
    return dict(nnx.to_flat_state(nnx.state(module)))


def _shape(leaf: Any) -> Any:
    """Returns a variable without its value."""
    if not isinstance(leaf, nnx.Variable):
        return leaf
    value = leaf.get_value()
    return leaf.replace(jax.ShapeDtypeStruct(value.shape, value.dtype))


def _is_sown(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Intermediate)


def _collection(leaf: Any) -> str | None:
    """Returns the linen collection of a variable; None for random streams, which are given in each call."""
    if isinstance(leaf, nnx.RngState):
        return None
    if isinstance(leaf, nnx.Param):
        return _PARAMS
    if isinstance(leaf, nnx.BatchStat):
        return _BATCH_STATS
    return type(leaf).__name__ if isinstance(leaf, nnx.Variable) else _ARRAYS


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _collections(leaves: Mapping[Path, Any]) -> Variables:
    flat: dict[str, dict[tuple[str, ...], Any]] = {_PARAMS: {}, _BATCH_STATS: {}}
    for path, leaf in leaves.items():
        if (collection := _collection(leaf)) is not None:
            flat.setdefault(collection, {})[tuple(map(str, path))] = _value(leaf)
    return {name: traverse_util.unflatten_dict(tree) for name, tree in flat.items()}


def _merge(source: Source, variables: Mapping[str, Any], key: jax.Array) -> nnx.Module:
    """Returns a fresh module with these variables and with random streams from a key."""
    flat = traverse_util.flatten_dict({name: dict(tree) for name, tree in variables.items()})
    leaves = {}
    for index, (path, leaf) in enumerate(source.leaves.items()):
        collection, name = _collection(leaf), tuple(map(str, path))
        if collection is None:
            value = _stream(leaf, key, index)
        elif collection == _ARRAYS:  # files may be without these
            value = flat.get((collection, *name), leaf)
        else:
            value = flat[(collection, *name)]
        leaves[path] = leaf.replace(value) if isinstance(leaf, nnx.Variable) else value
    return nnx.merge(source.graphdef, nnx.from_flat_state(leaves))


def _stream(leaf: Any, key: jax.Array, index: int) -> jax.Array:
    """Returns a random stream's key, or its count, 0."""
    before = _value(leaf)
    if not isinstance(leaf, nnx.RngKey):
        return jnp.zeros(before.shape, before.dtype)
    key = jax.random.fold_in(key, index)
    return jax.random.split(key, before.shape) if before.shape else key


def _call(module: Any, x: jax.Array, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[Any, Any]]:
    """Calls a module and returns its result and what it has sown."""
    if hasattr(nnx, "capture"):
        return nnx.capture(module, nnx.Intermediate)(x, **kwargs)
    value = module(x, **kwargs)  # before Flax 0.12.6 or so
    return value, nnx.pop(module, nnx.Intermediate)


# Layers that compute through linen


class _Host(NamedTuple):
    """The application in progress.

    Attributes:
        scope: the linen scope of the module.
        trace: JAX's trace at its start; under a transformation inside the module it is another.
        paths: of its layers, by identity.
        through_linen: paths of the BatchNorm layers whose statistics linen has updated.
    """

    scope: Scope
    trace: Any
    paths: dict[int, Path]
    through_linen: set[Path]


_HOST: contextvars.ContextVar[_Host | None] = contextvars.ContextVar("host", default=None)


@contextlib.contextmanager
def _hosting(scope: Scope, module: nnx.Module, leaves: Mapping[Path, Any]) -> Iterator[_Host]:
    """Lets the layers of a fresh module compute through linen."""
    paths = {}
    for path, layer in list(nnx.iter_modules(module)):
        adopted = _adopted(type(layer))
        # A weight that two layers share has the path of one of them.
        if adopted and all((*path, name) in leaves for name in _weights(layer)):
            object.__setattr__(layer, "__class__", adopted)
            paths[id(layer)] = path
    host = _Host(scope, _trace(), paths, set())
    token = _HOST.set(host)
    try:
        yield host
    finally:
        _HOST.reset(token)


def _trace() -> Any:
    return get_opaque_trace_state(convention="flax")


def _weights(layer: nnx.Module) -> list[str]:
    return [name for name, value in vars(layer).items() if isinstance(value, nnx.Variable)]


@functools.cache
def _adopted(kind: type) -> type | None:
    """Returns a layer's class with another call, if it is one of three and its call is NNX's own."""
    for base, call in ((nnx.BatchNorm, _batch_norm), (nnx.Conv, _conv), (nnx.Linear, _linear)):
        if issubclass(kind, base) and kind.__call__ is base.__call__:
            # One base class, so that objects can change from it to this one.
            return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__call__": call})
    return None


def _place(layer: Any) -> tuple[_Host, Path] | None:
    """Returns where a layer is in the application in progress; None under a transformation or for a copy."""
    host = _HOST.get()
    if host is None or id(layer) not in host.paths or _trace() != host.trace:
        return None
    return host, host.paths[id(layer)]


def _descend(scope: Any, path: Path) -> Any:
    for name in path:
        scope = scope.push(str(name), reuse=True)
    return scope


def _batch_norm(
    self: nnx.BatchNorm, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None
) -> Any:
    """Calls `nn.BatchNorm` in place of `nnx.BatchNorm`."""
    place = _place(self)
    if place is None or self.promote_dtype is not promote_dtype:
        return nnx.BatchNorm.__call__(self, x, use_running_average, mask=mask)
    host, path = place
    host.through_linen.add(path)
    norm = nn.BatchNorm(
        use_running_average=self.use_running_average if use_running_average is None else use_running_average,
        axis=self.axis,
        momentum=self.momentum,
        epsilon=self.epsilon,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        use_bias=self.bias is not None,
        use_scale=self.scale is not None,
        use_fast_variance=self.use_fast_variance,
        parent=_descend(host.scope, path),
    )
    return norm(x, mask=mask)


def _conv(self: nnx.Conv, inputs: jax.Array, *args: Any, **kwargs: Any) -> Any:
    """Calls `nn.Conv` in place of `nnx.Conv`."""
    place = _place(self)
    plain = (
        self.promote_dtype is promote_dtype
        and self.conv_general_dilated is jax.lax.conv_general_dilated
        and self.mask is None
        and self.preferred_element_type is None
        and not args
        and not kwargs
    )
    if place is None or not plain:
        return nnx.Conv.__call__(self, inputs, *args, **kwargs)
    host, path = place
    conv = nn.Conv(
        self.out_features,
        self.kernel_size,
        self.strides,
        padding=self.padding,
        input_dilation=self.input_dilation,
        kernel_dilation=self.kernel_dilation,
        feature_group_count=self.feature_group_count,
        use_bias=self.bias is not None,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        precision=self.precision,
        parent=_descend(host.scope, path),
    )
    return conv(inputs)


def _linear(self: nnx.Linear, inputs: jax.Array, *args: Any, **kwargs: Any) -> Any:
    """Lets linen see the input of `nnx.Linear`, which computes as before."""
    place = _place(self)
    call = functools.partial(nnx.Linear.__call__, self, inputs, *args, **kwargs)
    if place is None:
        return call()
    host, path = place
    return _Dense(self.out_features, compute=_Opaque(call), parent=_descend(host.scope, path))(inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Opaque:
    """A function that linen does not look into."""

    function: Callable[..., Any]


class _Dense(nn.Dense):
    """A linear layer to linen's interceptors, computed by a function."""

    compute: _Opaque | None = None

    def __call__(self, inputs: jax.Array) -> Any:
        assert self.compute is not None
        del inputs  # which the function has
        return self.compute.function()
