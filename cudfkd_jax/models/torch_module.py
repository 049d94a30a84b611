"""PyTorch classifiers as frozen Flax modules.

    params       conv1.weight              as in the state dict: every tensor but those of
                 bn1 / scale, bias         BatchNorm layers and
                 fc / kernel, bias         the last linear layer, which Flax computes
    batch_stats  bn1 / mean, var

BatchNorm and the last linear layer are linen submodules under their PyTorch names, so that the statistics at the
inputs of the first and the input of the second are captured as those of any linen module.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from cudfkd_jax.models import torch_calls
from cudfkd_jax.models.layers import at_least_float32
from cudfkd_jax.runtime.errors import UserError

Path_ = tuple[str, ...]  # of a weight in a tree of variables

_BATCH_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_TORCH_MODULE = ("torch.nn.modules.module", "Module")
_LINEAR = {"weight": ("params", "kernel"), "bias": ("params", "bias")}


class TorchModule(nn.Module):
    """A PyTorch classifier in evaluation mode; takes normalised images `[B, H, W, C]`.

    Attributes:
        network: a `torch.nn.Module` of images `[B, C, H, W]`, whose weights `init` returns.
        num_classes: number of logits.
        label: names it in messages.
        dtype: of convolutions and matrix products; None: that of inputs and weights.
    """

    network: Any
    num_classes: int
    label: str
    dtype: DTypeLike | None = None

    @property
    def without_stages(self) -> str:
        """What to do where a method asks for maps between stages; see `capture`."""
        return "a PyTorch module has none: set --config.zskt.attention_weight=0 or --config.cmi.features=bn"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes the logits `[B, num_classes]`, float32 or wider.

        Raises:
            UserError: torchax cannot run the network.
        """
        own = torch_calls.tensors(self.network)
        held = own.weights if self.is_initializing() else to_tensors(own.weights, self.variables)
        layers: dict[str, nn.Module] = {}

        def batch_norm(name: str, maps: jax.Array, epsilon: float) -> jax.Array:
            if name not in layers:
                layers[name] = self._batch_norm(name, own.weights, epsilon)
            # Flax's and XLA's order: statistics over the last axis are computed fastest.
            y = jnp.moveaxis(layers[name](jnp.moveaxis(maps, 1, -1)), -1, 1)
            if self.is_initializing():
                for leaf in ("mean", "var"):
                    value = jnp.asarray(own.weights[f"{name}.running_{leaf}"])
                    layers[name].put_variable("batch_stats", leaf, value)
            return y

        def linear(name: str, features: jax.Array) -> jax.Array:
            if name not in layers:
                layers[name] = self._linear(name, own.weights)
            return layers[name](features)

        calls = torch_calls.Calls(batch_norm, linear, torch_calls.heads(self.network, self.num_classes))
        arrays = {name: jnp.asarray(value) for name, value in {**own.constants, **held}.items()}
        logits = torch_calls.evaluate(self.network, arrays, jnp.moveaxis(x, -1, 1), calls, self.dtype, self.label)
        if self.is_initializing():
            for name, path in _paths(own.weights, self.variables).items():
                if path == ("params", name):
                    self.param(name, _constant(own.weights[name]))
        return at_least_float32(logits)

    def _batch_norm(self, name: str, weights: Mapping[str, np.ndarray], epsilon: float) -> nn.Module:
        scale, bias = (weights.get(f"{name}.{leaf}") for leaf in ("weight", "bias"))
        return nn.BatchNorm(
            use_running_average=True,
            epsilon=epsilon,
            dtype=self.dtype,
            use_scale=scale is not None,
            use_bias=bias is not None,
            scale_init=_constant(scale),
            bias_init=_constant(bias),
            name=name,
        )

    def _linear(self, name: str, weights: Mapping[str, np.ndarray]) -> nn.Module:
        kernel, bias = weights[f"{name}.weight"].T, weights.get(f"{name}.bias")
        return nn.Dense(
            kernel.shape[1],
            use_bias=bias is not None,
            dtype=self.dtype,
            kernel_init=_constant(kernel),
            bias_init=_constant(bias),
            name=name,
        )


def _constant(value: Any) -> Callable[..., jax.Array]:
    return lambda *_: jnp.asarray(value)


def wrap(network: Any, num_classes: int, label: str, dtype: DTypeLike | None = None) -> TorchModule:
    """Wraps a PyTorch classifier.

    Args:
        network: a `torch.nn.Module`.
        num_classes: number of logits.
        label: names it in messages.
        dtype: see `TorchModule`.

    Raises:
        UserError: it is no module, torchax is not installed, or the module cannot be frozen.
    """
    if not is_network(network):
        raise UserError(f"{label} gives a {type(network).__name__}; expected a torch.nn.Module")
    torch_calls.check(network, label)
    return TorchModule(network, num_classes, label, dtype)


def is_network(value: Any) -> bool:
    """Returns whether a value is a `torch.nn.Module`, without importing torch."""
    return any((kind.__module__, kind.__name__) == _TORCH_MODULE for kind in type(value).__mro__)


def own_variables(module: TorchModule, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the weights that a module holds, as variables of NumPy arrays.

    Args:
        module: the wrapped network.
        image_shape: `(H, W, C)`; tells which BatchNorm layers it calls.
    """
    expected = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return to_variables(torch_calls.tensors(module.network).weights, expected)


def names(module: TorchModule) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the network's weights, and those of other buffers in its state dict."""
    weights = tuple(torch_calls.tensors(module.network).weights)
    return weights, tuple(name for name in module.network.state_dict() if name not in weights)


def to_variables(tensors: Mapping[str, np.ndarray], expected: Any) -> dict[str, Any]:
    """Converts tensors, one for each of the network's weights, to variables.

    Args:
        tensors: by PyTorch name.
        expected: a tree of arrays or shapes that the module's `init` returns.
    """
    flat = {path: np.array(_turned(path, tensors[name])) for name, path in _paths(tensors, expected).items()}
    found = traverse_util.unflatten_dict(flat)
    return {"params": found.get("params", {}), "batch_stats": found.get("batch_stats", {})}


def to_tensors(names: Iterable[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Converts variables to tensors by PyTorch name; the inverse of `to_variables`."""
    flat = traverse_util.flatten_dict(dict(variables))
    return {name: _turned(path, flat[path]) for name, path in _paths(names, variables).items()}


def shapes(names: Iterable[str], expected: Any) -> dict[str, tuple[int, ...]]:
    """Returns the PyTorch shapes of the weights with these names."""
    flat = traverse_util.flatten_dict(dict(expected))
    return {
        name: flat[path].shape[::-1] if path[-1] == "kernel" else flat[path].shape
        for name, path in _paths(names, expected).items()
    }


def _turned(path: Path_, value: Any) -> Any:
    return value.T if path[-1] == "kernel" else value


def _paths(names: Iterable[str], variables: Mapping[str, Any]) -> dict[str, Path_]:
    """Returns the place of each tensor: in a Flax layer, or as a parameter with its own name."""
    params, batch_stats = variables.get("params", {}), variables.get("batch_stats", {})
    paths: dict[str, Path_] = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        places = _BATCH_NORM if layer in batch_stats else _LINEAR if layer in params else {}
        if leaf in places:
            collection, own = places[leaf]
            paths[name] = (collection, layer, own)
        else:
            paths[name] = ("params", name)
    return paths
