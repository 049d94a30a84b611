"""Folding of BatchNorm in evaluation mode into the preceding convolution, for any linen module.

With running mean μ and variance σ², scale γ and shift β, and a convolution of kernel K and bias b,

    γ (K ∗ x + b − μ) / √(σ² + ε) + β  =  (a K) ∗ x + a (b − μ) + β,    a = γ / √(σ² + ε) per output channel,

which saves one pass over the activations and is equal up to rounding.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


def interceptor() -> Callable[..., Any]:
    """Returns an interceptor for `nn.intercept_methods`, for one application of a module in evaluation mode.

    It skips each BatchNorm over the last axis whose input is directly the output of an `nn.Conv`, and repeats that
    convolution with folded weights; the compiler removes the unused first one. Other BatchNorms are unchanged,
    including those separated from the convolution by a lifted transformation.
    """
    convolved: dict[str, Any] = {}  # the latest convolution, its input and its output

    def intercept(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return next_function(*args, **kwargs)
        x: Any = (*args, *kwargs.values())[0]
        if type(module) is nn.BatchNorm and x is convolved.get("result") and module.axis == -1:
            return _fold(convolved["conv"], convolved["input"], module)
        result = next_function(*args, **kwargs)
        if type(module) is nn.Conv:
            convolved.update(conv=module, input=x, result=result)
        return result

    return intercept


def _fold(conv: nn.Conv, x: jax.Array, norm: nn.BatchNorm) -> Any:
    own, shift, running = conv.variables["params"], norm.variables.get("params", {}), norm.variables["batch_stats"]
    factor = shift.get("scale", 1.0) * jax.lax.rsqrt(running["var"] + norm.epsilon)
    bias = factor * (own.get("bias", 0.0) - running["mean"]) + shift.get("bias", 0.0)
    folded = conv.clone(use_bias=True, parent=None)
    return folded.apply({"params": {"kernel": own["kernel"] * factor, "bias": bias}}, x)
