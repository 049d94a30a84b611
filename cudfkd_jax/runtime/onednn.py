"""oneDNN in XLA's CPU backend: where it is used, and how its use is asked for.

jaxlib contains oneDNN from 0.11 on and calls it for convolutions and matrix products in programs that are compiled
with OPTIONS. In bfloat16, on processors with AMX or AVX512-BF16, it reaches several times the rate of XLA's own
convolutions, but only in the forms that XLA's rewriter recognises: the networks' operations (`models/`) choose
those forms where `in_use` says so and otherwise compute what JAX does by default.
"""

import functools

import jax
import jax.numpy as jnp

# YNNPACK would otherwise take some of the convolutions; see `devices._options`.
OPTIONS: dict[str, bool | str] = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}
CONVOLUTION = "__onednn$convolution"  # the target of its calls in a compiled program


@functools.cache
def available() -> bool:
    """Whether XLA's CPU backend turns bfloat16 convolutions into calls of oneDNN when compiled with OPTIONS."""
    images = jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((3, 3, 8, 8), jnp.bfloat16)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    try:
        compiled = jax.jit(convolve, compiler_options=OPTIONS).lower(images, kernel).compile()
    except jax.errors.JaxRuntimeError:  # the option is not known
        return False
    return CONVOLUTION in (compiled.as_text() or "")


def in_use(dtype: jax.typing.DTypeLike) -> bool:
    """Whether operations on arrays of this dtype take the forms that are fast with oneDNN.

    A property of the default backend, jaxlib and the processor alone: the same at every start on a machine, as the
    same bits after resuming need.
    """
    return jnp.dtype(dtype) == jnp.bfloat16 and jax.default_backend() == "cpu" and available()
