"""Operations and bytes of a step, as XLA's cost analysis counts them.

Operations are counted before compilation and bytes after it. The compiler fuses operations that would otherwise go
through memory, and on GPUs it replaces convolutions and products by calls of cuDNN and cuBLAS, which its analysis
cannot see. A multiply-add counts as two operations; taps on the padding of a convolution do not count. A library
call counts as the bytes of its arguments and results. The analysis counts one iteration of a loop.

The least bytes are a lower bound for every program with the same result: each convolution and matrix product reads
its operands and writes its result once, and everything between them is fused.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cudfkd_jax.training.batching import equations

# `%name = f32[8,16]{1,0} custom-call(`, or with a tuple `(f32[8,16]{1,0}, u8[64]{0})`.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_SCRATCH = "u8"


class Cost(NamedTuple):
    """The cost of one call, over all devices."""

    flops: float
    bytes: float
    least_bytes: float

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Cost":
        """Returns the cost of `count` calls."""
        return Cost(*(count * value for value in self))


def operations(step: Callable[..., Any], *arguments: Any) -> float:
    """Counts the operations of a function, independently of the device.

    Args:
        step: a function of arrays.
        arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`.
    """
    # Only the CPU backend analyses programs that are not compiled.
    with jax.default_device(jax.devices("cpu")[0]):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        analysis: Any = jax.jit(step).lower(*shapes).cost_analysis()
    return analysis["flops"]


def least_bytes(step: Callable[..., Any], *arguments: Any) -> float:
    """Computes a lower bound of the bytes that a function moves on any device; takes the same as `operations`."""
    return sum(
        float(variable.aval.size * variable.aval.dtype.itemsize)
        for equation in equations(jax.make_jaxpr(step)(*arguments).jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        for variable in (*equation.invars, *equation.outvars)
    )


def traffic(compiled: Any) -> float:
    """Counts the bytes that a `jax.stages.Compiled` reads and writes on one device."""
    return compiled.cost_analysis()["bytes accessed"] + library_bytes(compiled.as_text())


def library_bytes(text: str) -> float:
    """Counts the bytes of the arguments and results of a program's library calls, without their scratch space.

    Args:
        text: the program as `jax.stages.Compiled.as_text` prints it.
    """
    if " custom-call(" not in text:
        return 0.0
    instructions = _INSTRUCTION.findall(text)
    sizes = {name: _bytes(shape) for name, shape, _, _ in instructions}
    return sum(
        sizes[name] + sum(sizes.get(argument, 0.0) for argument in _arguments(rest))
        for name, _, operation, rest in instructions
        if operation == "custom-call"
    )


def _arguments(rest: str) -> list[str]:
    return re.findall(r"%([\w.-]+)", rest.partition(")")[0])


def _bytes(shape: str) -> float:
    total = 0.0
    for dtype, bits, dimensions in _ARRAY.findall(shape):
        size = (int(bits) if bits else 8) / 8
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += 0 if dtype == _SCRATCH and shape.startswith("(") else size
    return total
