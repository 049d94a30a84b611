"""Evaluation of PyTorch modules inside JAX programs by torchax: the only module that imports torchax.

torchax translates PyTorch's operations to JAX's while a module runs on views of JAX arrays. `F.batch_norm` and the
last linear layer are handed out instead, so that Flax layers can compute them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cudfkd_jax.runtime.errors import UserError

COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm; does not affect the output
_REASON = 200  # characters of an error that are shown


class Tensors(NamedTuple):
    """What a module holds, by PyTorch name.

    Attributes:
        weights: parameters and floating buffers of its state dict, float32.
        constants: integer buffers, and those that its state dict does not hold.
    """

    weights: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]


class Calls(NamedTuple):
    """The layers that are computed outside of the module.

    Attributes:
        batch_norm: `(name, x [B, C, ...], epsilon) -> y` for BatchNorm with running statistics.
        linear: `(name, x [..., D]) -> y`.
        heads: the names of the layers for `linear`.
    """

    batch_norm: Callable[[str, jax.Array, float], jax.Array]
    linear: Callable[[str, jax.Array], jax.Array]
    heads: tuple[str, ...]


def check(network: Any, label: str) -> None:
    """Checks that torchax is installed and that a module can be frozen.

    Raises:
        UserError: it is not installed, a BatchNorm layer has no running statistics, or a parameter has no values.
    """
    load(label)
    import torch

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{label}: layer {name or 'itself'} ({type(module).__name__}) has no running statistics, so an "
                "image's logits depend on its batch; expected track_running_stats=True"
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta or isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
            raise UserError(f"{label}: {name} has no values; call the module once, or load its weights")


@functools.cache
def load(label: str) -> Any:
    """Imports torchax.

    Raises:
        UserError: torch or torchax is not installed, or they do not fit each other.
    """
    try:
        with _dropped_operations():
            import torchax

            torchax.default_env()
    except ImportError as error:
        raise UserError(f"{label} needs torchax ({error}); pip install 'cudfkd_jax[torchax]'") from error
    except Exception as error:  # torchax looks up PyTorch's internals when imported
        raise UserError(
            f"{label}: the installed torchax and torch do not fit ({type(error).__name__}: {_one_line(error)}); "
            "pip install 'cudfkd_jax[torchax]'"
        ) from error
    return torchax


class _Dropped:
    """An operation that PyTorch no longer has: a key in torchax's tables, never called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, overload: str) -> str:
        return f"{self._name}.{overload}"


@contextlib.contextmanager
def _dropped_operations() -> Iterator[None]:
    """Lets torchax 0.0.13 name what PyTorch dropped: overloads for named tensors in 2.13, operations in 2.14."""
    import torch

    def overload(packet: Any, name: str) -> Any:
        if "dimname" in name.lower() or "names" in name:
            return f"{packet}.{name}"
        raise AttributeError(name)

    def operation(namespace: Any, name: str) -> Any:
        if namespace.name == "aten" and not name.startswith("__"):
            return _Dropped(f"aten.{name}")
        raise AttributeError(name)

    with (
        _falls_back(torch._ops.OpOverloadPacket, overload),
        _falls_back(torch._ops._OpNamespace, operation),
    ):
        yield


@contextlib.contextmanager
def _falls_back(kind: Any, fallback: Callable[[Any, str], Any]) -> Iterator[None]:
    """Attributes that objects of a class lack are the fallback's."""
    look_up = kind.__getattr__

    def with_fallback(self: Any, name: str) -> Any:
        try:
            return look_up(self, name)
        except AttributeError:
            return fallback(self, name)

    kind.__getattr__ = with_fallback
    try:
        yield
    finally:
        kind.__getattr__ = look_up


def tensors(network: Any) -> Tensors:
    """Returns a module's tensors as arrays; tied weights appear under each of their names."""
    saved = network.state_dict()
    held = {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }
    weights, constants = {}, {}
    for name, tensor in held.items():
        if name in saved and tensor.is_floating_point():
            weights[name] = _to_numpy(tensor)
        elif not name.endswith(COUNTER):
            constants[name] = _to_numpy(tensor)
    return Tensors(weights, constants)


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def heads(network: Any, num_classes: int) -> tuple[str, ...]:
    """Returns the name of the last linear layer with an output for each class, if there is one."""
    import torch

    found = [
        name
        for name, module in network.named_modules()
        if name and type(module) is torch.nn.Linear and module.out_features == num_classes
        if "weight" in module._parameters  # not computed from others, as weight_norm does
    ]
    return tuple(found[-1:])


def evaluate(
    network: Any, held: Mapping[str, jax.Array], images: jax.Array, calls: Calls, dtype: Any, label: str
) -> jax.Array:
    """Computes a module's logits in evaluation mode.

    Args:
        network: a `torch.nn.Module`; left as it was.
        held: an array for each of its tensors.
        images: `[B, C, H, W]`.
        calls: the layers that are computed outside.
        dtype: of convolutions and matrix products; None: that of their operands.
        label: names the module in messages.

    Raises:
        UserError: torchax cannot run it; the message names the layer and the operation.
    """
    torchax = load(label)
    import torch
    from torchax import interop

    # PyTorch's operations promote no operands; Flax's layers, which are called within, do.
    floating = (array for array in held.values() if jnp.issubdtype(array.dtype, jnp.floating))
    images = images.astype(jnp.result_type(jnp.float32, *floating))
    views = interop.torch_view(dict(held))
    layers = {id(view): name for name, view in views.items()}
    environment = torchax.default_env()
    try:
        # A key of its own: torchax would keep the traced successor of its global one.
        seeded, mode = environment.override_property(prng=jax.random.key(0)), _mode()(calls, layers, dtype)
        with environment, seeded, _evaluation(network), mode:
            found = torch.func.functional_call(network, views, (interop.torch_view(images),), tie_weights=False)
        found = getattr(found, "logits", found)  # as networks of transformers return them
        if not isinstance(found, torch.Tensor):
            raise UserError(f"{label} returns a {type(found).__name__}; expected logits, a tensor [B, classes]")
        return interop.jax_view(found)
    except UserError:
        raise
    except Exception as error:  # any module, any operation
        raise UserError(
            f"{label}: {_where(network, error)} cannot run in JAX ({type(error).__name__}: {_one_line(error)}); "
            "replace the operation, or keep tensors in parameters and buffers and Python's branches free of them"
        ) from error


@functools.cache
def _mode() -> type:
    """Returns the mode that sees PyTorch's functions before torchax does; a class, as torch is imported late."""
    import torch
    from torch.nn import functional as f
    from torch.overrides import TorchFunctionMode
    from torchax import interop

    narrow = {
        *(f.linear, f.bilinear, f.scaled_dot_product_attention, f.multi_head_attention_forward),
        *(f.conv1d, f.conv2d, f.conv3d, f.conv_transpose1d, f.conv_transpose2d, f.conv_transpose3d),
        *(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.einsum),
        *(torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm, torch.addmm, torch.baddbmm),
    }
    wide = {
        *(f.layer_norm, f.group_norm, f.instance_norm, f.rms_norm, f.normalize, f.softmax, f.log_softmax),
        *(torch.layer_norm, torch.group_norm, torch.softmax, torch.Tensor.softmax, torch.var_mean),
    }

    class Mode(TorchFunctionMode):
        def __init__(self, calls: Calls, layers: Mapping[int, str], dtype: Any):
            super().__init__()
            self.calls, self.layers, self.dtype = calls, layers, dtype

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is f.batch_norm:
                return self._batch_norm(*args, **kwargs)
            if func is f.linear and (found := self._linear(*args, **kwargs)) is not None:
                return found
            if self.dtype is not None and func in narrow:
                args, kwargs = self._cast((args, kwargs), self.dtype)
            elif self.dtype is not None and func in wide:
                args, kwargs = self._cast((args, kwargs), jnp.float32)
            return func(*args, **kwargs)

        def _layer(self, tensor: Any) -> str:
            return self.layers.get(id(tensor), "").rpartition(".")[0]

        def _linear(self, input: Any, weight: Any, bias: Any = None) -> Any:
            """Returns the output of a head; None for other layers."""
            name = self._layer(weight)
            if name not in self.calls.heads:
                return None
            return interop.torch_view(self.calls.linear(name, interop.jax_view(input)))

        def _batch_norm(
            self,
            input: Any,
            running_mean: Any,
            running_var: Any,
            weight: Any = None,
            bias: Any = None,
            training: bool = False,
            momentum: float = 0.1,
            eps: float = 1e-5,
        ) -> Any:
            name = self._layer(running_mean)
            if training:
                raise UserError(
                    f"BatchNorm {name or 'without running statistics'} normalises by the batch in evaluation "
                    "mode; expected running statistics"
                )
            own = self._is_own(name, "weight", weight) and self._is_own(name, "bias", bias)
            if not name or not own:  # statistics or parameters of another origin: computed, but not seen
                return f.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
            return interop.torch_view(self.calls.batch_norm(name, interop.jax_view(input), eps))

        def _is_own(self, layer: str, leaf: str, tensor: Any) -> bool:
            name = f"{layer}.{leaf}"
            return name not in self.layers.values() if tensor is None else self.layers.get(id(tensor)) == name

        def _cast(self, tree: Any, dtype: Any) -> Any:
            def cast(value: Any) -> Any:
                if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                    return value
                return interop.torch_view(interop.jax_view(value).astype(dtype))

            return torch.utils._pytree.tree_map(cast, tree)

    return Mode


@contextlib.contextmanager
def _evaluation(network: Any) -> Iterator[None]:
    """Puts a module into evaluation mode, and each of its layers back into its own."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _where(network: Any, error: BaseException) -> str:
    """Returns the innermost layer in an error's traceback, in words."""
    names = {id(module): name for name, module in network.named_modules()}
    found, trace = network, error.__traceback__
    while trace:
        owner = trace.tb_frame.f_locals.get("self")
        found = owner if id(owner) in names else found
        trace = trace.tb_next
    kind = type(found).__name__
    return f"layer {names[id(found)]} ({kind})" if names[id(found)] else kind


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:_REASON]
