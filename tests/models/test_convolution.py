"""Tests of the convolution: its oneDNN forms against JAX in float64, and that XLA calls oneDNN."""

import functools
import platform
import re
from pathlib import Path

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import jaxlib.version
import nets
import numpy as np
import pytest
import rounds
from hypothesis import strategies as st
from jax import lax

from cudfkd_jax.models import convolution, normalisation
from cudfkd_jax.models.capture import apply
from cudfkd_jax.models.convolution import conv_general_dilated, conv_of_upsampled, upsample_2x
from cudfkd_jax.runtime import devices, onednn
from cudfkd_jax.runtime.devices import local_devices
from cudfkd_jax.training.loops import distillation_steps

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Of the largest value: bfloat16's rounding error, and several of float32's, in which sums round too.
EPSILONS = {"bfloat16": 2.0**-8, "float32": 2.0**-20}


@pytest.fixture(name="in_use")
def _in_use(monkeypatch):
    """Enables the forms for oneDNN, which are correct without it too."""
    monkeypatch.setattr(onednn, "in_use", lambda dtype: jnp.dtype(dtype).name in EPSILONS)
    monkeypatch.setattr(convolution, "_WIDE", 8 * 12)  # small enough for a direct computation in float64


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(jnp.bfloat16).astype(np.float64)


def value_and_gradients(function, x, kernel, gradient):
    """Returns a function's value and the gradients of both operands, computed by one program."""

    @jax.jit
    def compute(x, kernel, gradient):
        value, pull = jax.vjp(function, x, kernel)
        return value, *pull(gradient)

    return compute(x, kernel, gradient)


def check_gradients(ours, exact, x: np.ndarray, kernel: np.ndarray, dtype: str = "bfloat16") -> None:
    """Compares result and gradients of a function in this dtype with those of another in float64."""
    gradient = normal(2, *jax.eval_shape(exact, x, kernel).shape)
    with jax.enable_x64(True):
        wanted = value_and_gradients(exact, x, kernel, gradient)
    found = value_and_gradients(ours, *(operand.astype(dtype) for operand in (x, kernel, gradient)))
    for ours_, exact_ in zip(found, wanted, strict=True):
        assert ours_.dtype == dtype
        exact_ = np.asarray(exact_)
        assert exact_.dtype == np.float64
        atol = EPSILONS[dtype] * np.abs(exact_).max()
        np.testing.assert_allclose(np.asarray(ours_, np.float64), exact_, rtol=0, atol=atol)


@hypothesis.given(
    batch=st.integers(1, 3),
    height=st.integers(7, 9),
    width=st.integers(7, 11),
    # The first kind uses JAX's form, the second exchanged operands, the third products.
    channels=st.sampled_from([(1, 5), (8, 3), (8, 12)]),
    size=st.sampled_from([1, 2, 3, 7]),
    stride=st.sampled_from([1, 2]),
    padding=st.sampled_from(["SAME", "VALID", "torch", ((2, 0), (0, 1))]),
    dtype=st.sampled_from(sorted(EPSILONS)),
)
@hypothesis.settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_gradients_are_those_of_float64(in_use, batch, height, width, channels, size, stride, padding, dtype):
    if padding == "torch":
        padding = ((size // 2, size // 2),) * 2
    x, kernel = normal(0, batch, height, width, channels[0]), normal(1, size, size, *channels)
    arguments = {"window_strides": (stride, stride), "padding": padding, "dimension_numbers": LAYOUT}
    check_gradients(
        functools.partial(conv_general_dilated, **arguments),
        functools.partial(lax.conv_general_dilated, **arguments),
        x,
        kernel,
        dtype,
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3, 5, 6, 7), "bfloat16"), ((1, 4, 4, 128, 70), "bfloat16"), ((2, 3, 5, 6, 7), "float32")],
)
def test_repeated_pixels_need_not_be_read(in_use, shape, dtype):
    batch, height, width, channels, features = shape
    arguments = {"window_strides": (1, 1), "padding": [(1, 1), (1, 1)], "dimension_numbers": LAYOUT}

    def rounded_taps(x, kernel):  # the sums of taps are rounded, like the kernel's gradient
        return lax.conv_general_dilated(upsample_2x(x), kernel, **arguments)

    # Integers small enough that the sums of their taps are exact.
    kernel = np.random.default_rng(1).integers(-8, 8, (3, 3, channels, features)).astype(np.float64)
    check_gradients(
        functools.partial(conv_of_upsampled, **arguments),
        rounded_taps,
        normal(0, batch, height, width, channels),
        kernel,
        dtype,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"feature_group_count": 2},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"dtype": jnp.float16},
    ],
    ids=str,
)
def test_everything_else_is_left_to_jax(in_use, monkeypatch, change):
    """Checks bits, including gradients."""
    monkeypatch.setattr(convolution, "_convolve", None)
    change = dict(change)
    dtype = change.pop("dtype", jnp.bfloat16)
    arguments = {"window_strides": (1, 1), "padding": [(1, 1), (1, 0)], "dimension_numbers": LAYOUT} | change
    groups = change.get("feature_group_count", 1)
    x, kernel = normal(0, 2, 8, 8, 4).astype(dtype), normal(1, 3, 3, 4 // groups, 6).astype(dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def results(operation, x, kernel):
        value, pull = jax.vjp(functools.partial(operation, **arguments), x, kernel)
        return value, *pull(jnp.ones_like(value))

    both = (jax.device_get(results(f, x, kernel)) for f in (conv_general_dilated, lax.conv_general_dilated))
    for ours, jax_s in zip(*both, strict=True):
        assert (ours == jax_s).all()


@pytest.mark.parametrize(
    ("extent", "size", "stride", "padding"),
    [
        ((2, 2), (3, 3), 1, "SAME"),
        ((4, 4), (3, 3), 2, "SAME"),  # whose input gradient is a convolution of 2x2
        ((2, 2), (3, 3), 2, ((1, 1), (1, 1))),
        ((1, 5), (3, 3), 1, "SAME"),
        ((5, 3), (2, 5), 1, ((0, 1), (2, 2))),
        ((2, 2), (3, 3), 1, ((2, 1), (0, 3))),
    ],
    ids=str,
)
def test_a_kernel_larger_than_the_maps_is_a_product(extent, size, stride, padding):
    arguments = {"window_strides": (stride, stride), "padding": padding, "dimension_numbers": LAYOUT}
    ours, jax_s = (functools.partial(f, **arguments) for f in (conv_general_dilated, lax.conv_general_dilated))
    x, kernel = normal(0, 3, *extent, 4), normal(1, *size, 4, 6)
    gradient = normal(2, *jax.eval_shape(jax_s, x, kernel).shape)
    with jax.enable_x64(True):
        found, wanted = (value_and_gradients(f, x, kernel, gradient) for f in (ours, jax_s))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            operands = (a.astype(dtype) for a in (x, kernel, gradient))
            program = jax.jit(lambda x, kernel, gradient: jax.vjp(ours, x, kernel)[1](gradient)).lower(*operands)
        assert "dot_general" in program.as_text() and "convolution" not in program.as_text()


@pytest.mark.parametrize("extent", [(3, 3), (5, 4)])
def test_a_kernel_that_fits_is_left_to_jax(monkeypatch, extent):
    monkeypatch.setattr(convolution, "_by_products", None)
    arguments = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUT}
    ours, jax_s = (functools.partial(f, **arguments) for f in (conv_general_dilated, lax.conv_general_dilated))
    operands = normal(0, 3, *extent, 4).astype(np.float32), normal(1, 3, 3, 4, 6).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(ours)(*operands), jax.jit(jax_s)(*operands))


class Users(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(8, (3, 3), strides=2, dtype=jnp.bfloat16)(x)


def test_a_users_network_takes_the_operation(in_use, monkeypatch):
    calls = []
    monkeypatch.setattr(
        convolution, "conv_general_dilated", lambda *a, **k: calls.append(a) or conv_general_dilated(*a, **k)
    )
    variables = jax.jit(Users().init)(jax.random.key(0), np.zeros((1, 8, 8, 4), np.float32))
    assert not calls
    jax.jit(functools.partial(apply, Users()))(variables, np.zeros((1, 8, 8, 4), np.float32))
    assert len(calls) == 1


def _rewrites() -> bool:
    """Returns whether XLA is known to call oneDNN with this jaxlib and processor."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    new = jaxlib.version.__version_info__ >= (0, 11)
    return new and platform.machine() == "x86_64" and "avx512f" in flags and jax.default_backend() == "cpu"


def _forget() -> None:
    onednn.available.cache_clear()
    devices._options.cache_clear()


@pytest.fixture
def optimised():
    """Enables the compiler passes that conftest.py disables, because calls of oneDNN depend on them."""
    jax.config.update("jax_disable_most_optimizations", False)
    _forget()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    _forget()


@pytest.mark.usefixtures("optimised")
@pytest.mark.skipif(not _rewrites(), reason="this jaxlib does not call oneDNN here")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dtype", "calls"), [("bfloat16", 2), ("float32", 1)])
def test_gradients_are_calls_of_onednn(dtype, calls, stride):
    """In float32, that of the input alone; the result itself is not used.

    Fails if a new jaxlib no longer recognises a form, which is ten times as slow in bfloat16, or recognises one
    that is faster without.
    """
    assert onednn.in_use(dtype)
    module = nn.Conv(16, (3, 3), strides=stride, padding=1, dtype=dtype, conv_general_dilated=conv_general_dilated)
    x, gradient = jnp.zeros((4, 8, 8, 16), dtype), jnp.ones((4, 8 // stride, 8 // stride, 16), dtype)
    variables = jax.jit(module.init)(jax.random.key(0), x)

    def step(variables, x, gradient, axis):
        del axis
        return jax.vjp(module.apply, variables, x)[1](gradient)

    compiled = local_devices(1, bfloat16=dtype == "bfloat16").compile(step, donate_state=False)
    text = compiled.lower(variables, x, gradient).compile().as_text()
    assert text.count(f'custom_call_target="{onednn.CONVOLUTION}"') == calls


@pytest.mark.usefixtures("optimised")
@pytest.mark.skipif(not _rewrites(), reason="this jaxlib does not call oneDNN here")
@pytest.mark.parametrize("stride", [1, 2])
def test_a_loop_calls_onednn_with_the_same_layouts(stride):
    """With XLA's own layouts in a loop, oneDNN uses its reference code, which is fifty times as slow."""
    x, kernel = jnp.zeros((4, 8, 8, 16), jnp.bfloat16), jnp.zeros((3, 3, 16, 16), jnp.bfloat16)
    convolve = functools.partial(
        conv_general_dilated,
        window_strides=(stride, stride),
        padding=[(1, 1), (1, 1)],
        dimension_numbers=LAYOUT,
    )

    def once(x, kernel, axis):
        del axis
        y, pull = jax.vjp(convolve, x, kernel)
        return pull(y)

    def looped(x, kernel, axis):
        return lax.scan(lambda both, _: (once(*both, axis), None), (x, kernel), None, length=3)[0]

    def results(step):
        compile = local_devices(1, bfloat16=True).compile
        text = compile(step, donate_state=False).lower(x, kernel).compile().as_text()
        return sorted(re.findall(rf"\((\w+\[[\d,]+\]).*? custom-call\(.*{re.escape(onednn.CONVOLUTION)}", text))

    assert len(results(once)) == 3
    assert results(looped) == results(once)


def test_a_step_in_these_forms_is_that_of_jax(monkeypatch):
    """Checks in float32 that all forms, including those of the statistics, only change rounding."""
    teacher, leaves = nets.teacher_variables(), {}
    state = nets.initial_state(nets.problem(nets.config()))
    for taken in (False, True):
        for module in (onednn, normalisation):
            monkeypatch.setattr(module, "in_use", lambda dtype, taken=taken: taken)
        problem = nets.problem(nets.config())  # a problem keeps what was traced for it
        steps = distillation_steps(problem).compile(rounds.ONE_DEVICE)
        after = steps.synthesis(rounds.copy(state), teacher)
        leaves[taken] = [np.asarray(x, np.float64) for x in jax.tree.leaves((after.aux, after.synthesis.total))]
    assert any(np.any(a != b) for a, b in zip(leaves[True], leaves[False], strict=True))  # the forms were used
    for found, expected in zip(leaves[True], leaves[False], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max() + 1e-7)
