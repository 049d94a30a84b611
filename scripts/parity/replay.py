"""Runs the releases' functions on our random draws and reads their local variables."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.nn.modules import batchnorm


@contextlib.contextmanager
def feeding(draws: Sequence[np.ndarray]) -> Iterator[None]:
    """Makes `torch.randn` return these arrays in order.

    Raises:
        ValueError: a requested shape differs, or draws are left at the end.
    """
    waiting, original = list(draws), torch.randn

    def randn(*size: Any, requires_grad: bool = False, **options: Any) -> torch.Tensor:
        asked = options.get("size", size[0] if len(size) == 1 and isinstance(size[0], list | tuple) else size)
        draw = waiting.pop(0)
        if tuple(asked) != draw.shape:
            raise ValueError(f"the release draws {tuple(asked)} where we draw {draw.shape}")
        tensor = torch.from_numpy(np.array(draw)).to(torch.get_default_dtype())
        return tensor.requires_grad_(requires_grad)

    with patched(torch, randn=randn):
        yield
    assert torch.randn is original
    if waiting:
        raise ValueError(f"the release leaves {len(waiting)} of our draws unused")


@contextlib.contextmanager
def patched(target: Any, **values: Any) -> Iterator[None]:
    """Sets attributes temporarily."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


class Trace:
    """The local variables of a function at its return, and before each execution of a given line.

    Attributes:
        returned: variables at the last return.
        steps: variables before the line, in order; tensors are copies without gradients.
    """

    def __init__(self) -> None:
        self.returned: dict[str, Any] = {}
        self.steps: list[dict[str, Any]] = []


@contextlib.contextmanager
def traced(function: Callable[..., Any], line: str = "") -> Iterator[Trace]:
    """Records the local variables of a function when it is called in this thread.

    Args:
        function: the release's function.
        line: the beginning of the line to record, the first that matches; "" records only the return.
    """
    code, trace = inspect.unwrap(function).__code__, Trace()
    number = _number(function, line) if line else -1

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lineno == number:
            trace.steps.append({key: _copy(value) for key, value in frame.f_locals.items()})
        if event == "return":
            trace.returned = dict(frame.f_locals)
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: local if frame.f_code is code else None)
    try:
        yield trace
    finally:
        sys.settrace(before)


def _number(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return next(first + i for i, line in enumerate(lines) if line.strip().startswith(text))


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def recording_gradients() -> Iterator[list[list[torch.Tensor]]]:
    """Collects the gradients of all parameters at each step of Adam."""
    gradients: list[list[torch.Tensor]] = []
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: Any, **options: Any) -> Any:
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return original(self, *arguments, **options)

    with patched(torch.optim.Adam, step=step):
        yield gradients


@contextlib.contextmanager
def weights_of_full_precision() -> Iterator[None]:
    """Makes `.float()` keep the default precision, because `curr_v` uses it for float32 weights of hard and soft.

    Their rounding, 1e-8, can change the sign of an activation near 0, which is visible a few steps later.
    """
    with patched(torch.Tensor, float=lambda self: self.to(torch.get_default_dtype())):
        yield


@contextlib.contextmanager
def biased_running_variance() -> Iterator[None]:
    """Makes PyTorch's BatchNorm track the biased variance of a batch, like Flax's."""
    original = batchnorm.F.batch_norm

    def batch_norm(
        x: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        weight: Any = None,
        bias: Any = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        before = var.clone() if training else var
        out = original(x, mean, var, weight, bias, training, momentum, eps)
        if training:
            count = x.numel() // x.shape[1]
            kept = (1 - momentum) * before  # var has become kept + momentum · unbiased
            # Through .data, because the backward pass rejects arrays changed after the forward pass.
            var.data.copy_(kept + (var.data - kept) * ((count - 1) / count))
        return out

    with patched(batchnorm.F, batch_norm=batch_norm):
        yield
