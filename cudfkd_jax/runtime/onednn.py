"""oneDNN in XLA's CPU backend: detection and compiler options.

jaxlib contains oneDNN from 0.11 on and calls it for convolutions and matrix products in programs compiled with
OPTIONS, but only in the forms that XLA's rewriter recognises: the operations of networks (`models/`) take those
forms if `in_use` holds, and JAX's defaults otherwise. In bfloat16, on processors with AMX or AVX512-BF16, it is
several times as fast as XLA's own convolutions, in float32 up to twice as fast, except for gradients of kernels.
"""

import functools

import jax
import jax.numpy as jnp

# YNNPACK would otherwise take some of the convolutions; see `devices._options`.
OPTIONS: dict[str, bool | str] = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}
CONVOLUTION = "__onednn$convolution"  # the call target in a compiled program


@functools.cache
def available(dtype: str = "bfloat16") -> bool:
    """Returns whether XLA's CPU backend, with OPTIONS, compiles convolutions of this dtype to oneDNN calls.

    Never where JAX is to compile quickly (JAX_DISABLE_MOST_OPTIMIZATIONS): its cache keeps no such programs.
    """
    if jax.config.read("jax_disable_most_optimizations"):
        return False
    images, kernel = jax.ShapeDtypeStruct((1, 4, 4, 8), dtype), jax.ShapeDtypeStruct((3, 3, 8, 8), dtype)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    try:
        compiled = jax.jit(convolve, compiler_options=OPTIONS).lower(images, kernel).compile()
    except jax.errors.JaxRuntimeError:  # the option is unknown
        return False
    return CONVOLUTION in (compiled.as_text() or "")


def in_use(dtype: jax.typing.DTypeLike) -> bool:
    """Returns whether operations on arrays of this dtype take the forms that are fast with oneDNN.

    The result depends only on the default backend, jaxlib and the processor, so that resuming on the same machine
    is bitwise.
    """
    name = jnp.dtype(dtype).name
    return name in ("bfloat16", "float32") and jax.default_backend() == "cpu" and available(name)
