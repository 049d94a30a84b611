"""Operations and bytes of a compiled program, as XLA's cost analysis counts them.

Operations are counted in the program as it was lowered, bytes as it was compiled: the compiler fuses what would
otherwise go through memory, and on GPUs it turns convolutions and products into calls of cuDNN and cuBLAS, of
which its analysis knows nothing. A multiply-add is two operations, and taps on the padding of a convolution do not
count. Of what a call of a library moves only its arguments and results are known, so that is what counts.
"""

import re
from typing import Any, NamedTuple

# `%name = f32[8,16]{1,0} custom-call(`, also of a tuple `(f32[8,16]{1,0}, u8[64]{0})`.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)$", re.MULTILINE)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_SCRATCH = "u8"


class Cost(NamedTuple):
    """Of one call on one device."""

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> "Cost":
        """Of so many calls."""
        return Cost(count * self.flops, count * self.bytes)


def cost(lowered: Any, compiled: Any) -> Cost:
    """The cost of a program without loops (of a loop the analysis counts one turn).

    Args:
        lowered: a `jax.stages.Lowered`.
        compiled: its `jax.stages.Compiled`.
    """
    moved = compiled.cost_analysis()["bytes accessed"] + library_bytes(compiled.as_text())
    return Cost(lowered.cost_analysis()["flops"], moved)


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
        sizes[name] + sum(sizes[argument] for argument in _arguments(rest))
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
