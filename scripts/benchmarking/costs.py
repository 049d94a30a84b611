"""Operations and bytes of a step, as XLA's cost analysis counts them.

Operations are counted in the program before XLA compiles it, bytes in what it compiles: the compiler fuses what
would otherwise go through memory, and on GPUs it turns convolutions and products into calls of cuDNN and cuBLAS,
of which its analysis knows nothing. A multiply-add is two operations, and taps on the padding of a convolution do
not count. Of what a library's call moves only its arguments and results are known, so that is what counts. Of a
loop the analysis counts one turn.

The least bytes are those without which no program does the same: each convolution and matrix product reads its
operands and writes its result once, and what lies between them is done on the way.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cudfkd_jax.training.batching import equations

# `%name = f32[8,16]{1,0} custom-call(`, also of a tuple `(f32[8,16]{1,0}, u8[64]{0})`.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_SCRATCH = "u8"


class Cost(NamedTuple):
    """Of a call, on all devices together."""

    flops: float
    bytes: float
    least_bytes: float

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Cost":
        """Of so many calls."""
        return Cost(*(count * value for value in self))


def operations(step: Callable[..., Any], *arguments: Any) -> float:
    """What a function computes, on any device.

    Args:
        step: of arrays.
        arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`.
    """
    # Only for the CPU does XLA analyse what it has not compiled.
    with jax.default_device(jax.devices("cpu")[0]):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        analysis: Any = jax.jit(step).lower(*shapes).cost_analysis()
    return analysis["flops"]


def least_bytes(step: Callable[..., Any], *arguments: Any) -> float:
    """What a function must at least move, on any device; arguments as for `operations`."""
    return sum(
        float(variable.aval.size * variable.aval.dtype.itemsize)
        for equation in equations(jax.make_jaxpr(step)(*arguments).jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        for variable in (*equation.invars, *equation.outvars)
    )


def traffic(compiled: Any) -> float:
    """Bytes that the programs of a `jax.stages.Compiled` read and write on one device."""
    return compiled.cost_analysis()["bytes accessed"] + library_bytes(compiled.as_text())


def library_bytes(text: str) -> float:
    """Bytes of the arguments and results of all library calls in a compiled program, without their scratch space.

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
