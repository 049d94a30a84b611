"""Loops over step functions: driven from Python, or compiled into one call per epoch.

Both loops advance a state from any step, even inside a round, to the end of its epoch, with the same result but
different overhead. On a GPU, one call per epoch saves a dispatch per step. XLA's CPU backend runs float32
convolutions inside a compiled loop tens of times slower (jax-ml/jax#12868). The bfloat16 convolutions of
`models/convolution.py` do not slow down, but one call gains nothing either and handles no signal before its end,
so CPUs use the Python loop.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cudfkd_jax.runtime.devices import Axis, Devices
from cudfkd_jax.training import distill_steps
from cudfkd_jax.training.state import RunState

LOOPS = ("auto", "python", "scan")

Step = Callable[..., RunState]  # (state, *frozen, axis) -> state


class Steps(NamedTuple):
    """Step functions `(state, *frozen, axis) -> state`; all but the first may be None.

    Attributes:
        student: a student step; also takes `batch=`.
        synthesis: a synthesis step.
        begin, finish: run before the first and after the last synthesis step of a round.
        batch: `(aux, key, step, *frozen, axis)` makes the `batch` of step `step`, from a state of its round.
    """

    student: Step
    synthesis: Step | None = None
    begin: Step | None = None
    finish: Step | None = None
    batch: Callable[..., Any] | None = None

    def compile(self, devices: Devices) -> "Steps":
        """Compiles the steps for devices; call them as `(state, *frozen)`."""
        synthesis, begin, finish = (step and devices.compile(step) for step in self[1:4])
        return Steps(devices.compile(self.student), synthesis, begin, finish)


def distillation_steps(problem: distill_steps.Problem) -> Steps:
    """Returns the steps of a data-free problem; `begin` and `finish` are None where its method has none."""
    step = functools.partial(functools.partial, problem=problem)
    return Steps(
        step(distill_steps.student_step),
        step(distill_steps.synthesis_step),
        step(distill_steps.begin_round) if problem.method.begin else None,
        step(distill_steps.finish_round) if problem.method.finish else None,
        step(distill_steps.student_batch),
    )


class Epoch(NamedTuple):
    """`rounds` rounds, each of `synthesis_steps` synthesis steps followed by `student_steps` student steps.

    Before the first epoch of a run there are `warmup_rounds` rounds without student steps.
    """

    rounds: int
    synthesis_steps: int
    student_steps: int
    warmup_rounds: int = 0

    @property
    def steps(self) -> int:
        """Student steps per epoch."""
        return self.rounds * self.student_steps

    def synthesis_due(self, step: int) -> int:
        """Returns the number of synthesis steps before student step `step`, from the start of the run."""
        return (self.warmup_rounds + step // self.student_steps + 1) * self.synthesis_steps


@dataclasses.dataclass(frozen=True)
class EpochFunction:
    """A function that advances states to the end of their epoch.

    Attributes:
        drive: `(state, *frozen, progress) -> state`, from any step. Calls `progress(steps_in_epoch)`, in student
            steps, after each step of either kind (the scan: only at the end), and the Python loop stops if that
            returns True. After a failed step both leave the state as is; the Python loop ends after that round.
        whole: `(state, *frozen) -> state`, from the start of an epoch; returns before the epoch is computed.
            None where Python drives the steps.
    """

    drive: Callable[..., RunState]
    whole: Callable[..., RunState] | None = None

    def __call__(self, state: RunState, *frozen: Any, progress: Callable[[int], bool]) -> RunState:
        return self.drive(state, *frozen, progress=progress)


def make_epoch_function(
    kind: str, epoch: Epoch, devices: Devices, parts: Steps, *, batches: int = 1
) -> EpochFunction:
    """Returns the function that advances replicated states to the end of their epoch.

    Args:
        kind: "python", "scan" or "auto" (Python on CPUs, scan elsewhere).
        epoch: the schedule of steps; has no synthesis steps where `parts` has none.
        devices: the steps are compiled for these.
        parts: the step functions.
        batches: the number of student steps, a divisor of `epoch.student_steps`, whose images and teacher outputs
            the scan computes together, in fewer and larger batches.
    """
    python = _python_epoch(epoch, devices, parts)
    if kind == "auto":
        kind = "python" if devices.devices[0].platform == "cpu" else "scan"
    return python if kind == "python" else _scan_epoch(epoch, devices, parts, batches, python)


def _python_epoch(epoch: Epoch, devices: Devices, parts: Steps) -> EpochFunction:
    train, synthesise, begin, finish, _ = parts.compile(devices)

    def run(state: RunState, *frozen: Any, progress: Callable[[int], bool]) -> RunState:
        step, synthesis = (int(devices.unreplicate(n)) for n in (state.step, state.synthesis_step))
        start = step // epoch.steps * epoch.steps
        while step < start + epoch.steps:
            while synthesise and synthesis < epoch.synthesis_due(step):
                if begin and synthesis % epoch.synthesis_steps == 0:
                    state = begin(state, *frozen)
                state = synthesise(state, *frozen)
                synthesis += 1
                if finish and synthesis % epoch.synthesis_steps == 0:
                    state = finish(state, *frozen)
                if progress(step - start):
                    return state
            state = train(state, *frozen)
            step += 1
            round_done = step % epoch.student_steps == 0
            if round_done and bool(devices.unreplicate(state.failed)):
                break
            if progress(step - start):
                break
        return state

    return EpochFunction(run)


def _scan_epoch(
    epoch: Epoch, devices: Devices, parts: Steps, batches: int, python: EpochFunction
) -> EpochFunction:
    def whole(state: RunState, *frozen: Any, axis: Axis) -> RunState:
        def one_round(state: RunState, _: None) -> tuple[RunState, None]:
            if parts.begin:
                state = parts.begin(state, *frozen, axis=axis)
            if parts.synthesis:
                state = _repeat(parts.synthesis, epoch.synthesis_steps, state, *frozen, axis=axis)
            if parts.finish:
                state = parts.finish(state, *frozen, axis=axis)
            if parts.batch is None or batches == 1:
                return _repeat(parts.student, epoch.student_steps, state, *frozen, axis=axis), None
            return _repeat(several, epoch.student_steps // batches, state, *frozen, axis=axis), None

        return jax.lax.scan(one_round, state, None, length=epoch.rounds)[0]

    def several(state: RunState, *frozen: Any, axis: Axis) -> RunState:
        assert parts.batch
        prepare = functools.partial(parts.batch, axis=axis)
        steps = state.step + jnp.arange(batches)
        prepared = jax.vmap(lambda step: prepare(state.aux, state.key, step, *frozen))(steps)
        return jax.lax.scan(lambda s, b: (parts.student(s, *frozen, batch=b, axis=axis), None), state, prepared)[0]

    compiled = devices.compile(whole)

    def run(state: RunState, *frozen: Any, progress: Callable[[int], bool]) -> RunState:
        step, synthesis = (int(devices.unreplicate(n)) for n in (state.step, state.synthesis_step))
        if step % epoch.steps or synthesis != epoch.synthesis_due(step) - epoch.synthesis_steps:
            # Saved inside an epoch by the other loop, or the first epoch after rounds of warm-up.
            return python(state, *frozen, progress=progress)
        state = jax.block_until_ready(compiled(state, *frozen))
        progress(epoch.steps)
        return state

    return EpochFunction(run, compiled)


def _repeat(step: Step, times: int, state: RunState, *frozen: Any, axis: Axis) -> RunState:
    return jax.lax.scan(lambda s, _: (step(s, *frozen, axis=axis), None), state, None, length=times)[0]
