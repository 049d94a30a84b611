"""Whole rounds of a method with an image pool, on the nets of `nets.py`, for the tests of several methods."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import nets
import numpy as np
import optax

from cudfkd_jax.methods.base import Method
from cudfkd_jax.methods.memory.pool import ImagePool
from cudfkd_jax.objectives import losses
from cudfkd_jax.objectives.student import plain_student_loss
from cudfkd_jax.runtime.devices import SINGLE, Devices, local_devices
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.distill_steps import Problem
from cudfkd_jax.training.loops import Epoch, Steps, distillation_steps, make_epoch_function
from cudfkd_jax.training.state import RunState

EPOCH = Epoch(rounds=2, synthesis_steps=3, student_steps=2)
# Programs that run once need no optimisation, which quadruples the compilation time.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
STUDENT_LOSS = plain_student_loss(functools.partial(losses.kl_divergence, temperature=20.0))


def pool(**changes) -> ImagePool:
    settings = {
        "image_shape": nets.IMAGE_SHAPE,
        "slots": 4,
        "batch_size": 8,
        "student_batch_size": 6,
        "held_out": 2,
        "padding": 1,
        "flip": True,
    }
    return ImagePool(**settings | changes)


def problem(method: Method) -> Problem:
    learning_rate = optax.constant_schedule(0.1)
    return Problem(method, nets.classifier(8), nets.classifier(4), optax.sgd(learning_rate), learning_rate)


@functools.cache  # a step is compiled once for the loop and for tests that call it
def _compile(step):
    return jax.jit(functools.partial(step, axis=SINGLE), donate_argnums=0, compiler_options=UNOPTIMISED)


@dataclasses.dataclass(frozen=True)
class _OneDevice(Devices):
    def compile(self, step, *, donate_state=True):
        assert donate_state
        return _compile(step)


ONE_DEVICE = _OneDevice(local_devices(1).devices)


@functools.partial(jax.jit, static_argnames="method", compiler_options=UNOPTIMISED)
def initial_state(method: Method) -> RunState:
    return distill_steps.init_state(
        jax.random.key(3), nets.teacher_variables(), problem=problem(method), image_shape=nets.IMAGE_SHAPE
    )


@functools.cache
def steps(method: Method) -> Steps:
    return distillation_steps(problem(method))


def compiled(method: Method) -> Steps:
    """Returns the steps `(state, teacher variables) -> state`; they donate the buffers of their state."""
    return steps(method).compile(ONE_DEVICE)


@jax.jit
def copy(state: RunState) -> RunState:
    return jax.tree.map(jnp.copy, state)


@jax.jit
def in_float64(tree):
    """Returns a copy with all real numbers in float64; for programs under `jax.enable_x64`."""
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.copy(x), tree)


def bits(state: RunState) -> list[np.ndarray]:
    return jax.tree.leaves(jax.device_get(state.replace(key=jax.random.key_data(state.key))))


def check_runs(method: Method) -> RunState:
    """Runs two rounds, also interrupted after every step; returns the final state. In float64 where JAX is."""
    teacher, start, parts = nets.teacher_variables(), initial_state(method), steps(method)
    if jax.config.jax_enable_x64:
        teacher, start = map(in_float64, (teacher, start))
    loop = make_epoch_function("python", EPOCH, ONE_DEVICE, parts)
    whole = loop(copy(start), teacher, progress=lambda _: False)
    assert (int(whole.step), int(whole.synthesis_step)) == (4, 6)
    assert not bool(whole.failed)
    piecewise, pieces = copy(start), 0
    while int(piecewise.step) < EPOCH.steps:
        piecewise, pieces = loop(piecewise, teacher, progress=lambda _: True), pieces + 1
    assert pieces == 10  # each of the steps once
    assert all((a == b).all() for a, b in zip(bits(whole), bits(piecewise), strict=True))

    # Neither the memory's shape nor a weak type changes: for another type, steps would be compiled again.
    assert jax.tree.map(jax.typeof, start) == jax.tree.map(jax.typeof, whole)

    def one_round(state, _):
        for step in filter(None, (parts.begin, parts.synthesis, parts.finish, parts.student)):
            state = step(state, teacher, axis=SINGLE)
        return state, None

    # The compiled loop can be traced; running it here would be too slow.
    jax.eval_shape(lambda state: jax.lax.scan(one_round, state, None, length=2), start)
    return whole


def device_differences(test_file: str) -> dict[str, float]:
    """Runs a test file in a process with two devices, in float64, and returns `measure_devices`'s output."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
        + " ".join(f"--{name}={str(value).lower()}" for name, value in UNOPTIMISED.items()),
        "JAX_ENABLE_X64": "True",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, test_file], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def measure_devices(method: Method) -> None:
    """Prints the largest difference of each part of the state between two devices and one after some steps."""

    def after(count: int):
        devices = local_devices(count)
        parts = distillation_steps(problem(method)).compile(devices)
        state = devices.replicate(in_float64(initial_state(method)))
        teacher = devices.replicate(in_float64(nets.teacher_variables()))
        synthesis = parts.synthesis
        steps = (synthesis, synthesis, parts.finish, synthesis, parts.student)  # the last one has a memory
        for step in filter(None, steps):
            state = step(state, teacher)
        assert not np.any(state.failed)
        plain = state.replace(key=jax.random.key_data(state.key))
        if count > 1:
            same = jax.tree.map(lambda x: bool((np.asarray(x) == np.asarray(x)[:1]).all()), plain)
            assert all(jax.tree.leaves(same)), "the devices disagree"
        return jax.device_get(devices.unreplicate(plain))

    def relative(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(a) | np.isfinite(b)  # the initial best loss is infinite
        return float(np.max(np.abs(a - b)[finite], initial=0) / max(np.max(np.abs(a[finite]), initial=0), 1e-12))

    one, two = after(1), after(2)
    parts = {name: (getattr(one.aux, name), getattr(two.aux, name)) for name in one.aux.__dataclass_fields__}
    parts |= {"student": (one.student, two.student)}
    parts |= {"tallies": tuple((state.synthesis, state.training) for state in (one, two))}
    differences = {name: jax.tree.leaves(jax.tree.map(relative, *pair)) for name, pair in parts.items()}
    print(json.dumps({name: max(found, default=0.0) for name, found in differences.items()}))
