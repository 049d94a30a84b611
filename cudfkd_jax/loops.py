"""How step functions are repeated: from Python, or one compiled call an epoch.

Both loops take a state at any step, also inside a round, to the end of its epoch and agree on the result; they
differ in what they cost. On a GPU one call an epoch saves a dispatch a step. XLA's CPU backend runs convolutions
inside a compiled loop tens of times slower (jax-ml/jax#12868), so there the loop is Python's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cudfkd_jax.parallel import Axis, Devices
from cudfkd_jax.steps import RunState

LOOPS = ("auto", "python", "scan")

Step = Callable[..., RunState]  # (state, *frozen, axis) -> state
EpochFunction = Callable[..., RunState]  # (state, *frozen, progress) -> state


class Epoch(NamedTuple):
    """`rounds` times `synthesis_steps` synthesis steps and then `student_steps` student steps."""

    rounds: int
    synthesis_steps: int
    student_steps: int

    @property
    def steps(self) -> int:
        """Student steps of an epoch."""
        return self.rounds * self.student_steps

    def synthesis_due(self, step: int) -> int:
        """Synthesis steps that come before student step `step` (counted from the start of the run)."""
        return (step // self.student_steps + 1) * self.synthesis_steps


def make_epoch_function(
    kind: str, epoch: Epoch, devices: Devices, student_step: Step, synthesis_step: Step | None = None
) -> EpochFunction:
    """A function that drives a state to the end of its epoch.

    Args:
        kind: "python", "scan" or "auto" (Python on the CPU, scan elsewhere).
        epoch: how the steps follow each other.
        devices: what the steps are compiled for.
        student_step, synthesis_step: `(state, *frozen, axis) -> state`; the second may be None where
            `epoch.synthesis_steps` is 0.

    Returns:
        `(state, *frozen, progress) -> state` on replicated trees. `progress(steps_in_epoch)` is called after
        each student step (by the scan only at the end), and the Python loop stops there where it returns True.
        Both stop where a step failed, Python's at the end of that round.
    """
    python = _python_epoch(epoch, devices, student_step, synthesis_step)
    if kind == "auto":
        kind = "python" if devices.devices[0].platform == "cpu" else "scan"
    return python if kind == "python" else _scan_epoch(epoch, devices, student_step, synthesis_step, python)


def _python_epoch(
    epoch: Epoch, devices: Devices, student_step: Step, synthesis_step: Step | None
) -> EpochFunction:
    train = devices.compile(student_step)
    synthesise = devices.compile(synthesis_step) if synthesis_step else None

    def run(state: RunState, *frozen: Any, progress: Callable[[int], bool]) -> RunState:
        step, synthesis = (int(devices.unreplicate(n)) for n in (state.step, state.synthesis_step))
        end = (step // epoch.steps + 1) * epoch.steps
        while step < end:
            while synthesise and synthesis < epoch.synthesis_due(step):
                state = synthesise(state, *frozen)
                synthesis += 1
            state = train(state, *frozen)
            step += 1
            round_done = step % epoch.student_steps == 0
            if round_done and bool(devices.unreplicate(state.failed)):
                break
            if progress(step - (end - epoch.steps)):
                break
        return state

    return run


def _scan_epoch(
    epoch: Epoch,
    devices: Devices,
    student_step: Step,
    synthesis_step: Step | None,
    python: EpochFunction,
) -> EpochFunction:
    def whole(state: RunState, *frozen: Any, axis: Axis) -> RunState:
        def one_round(state: RunState, _: None) -> tuple[RunState, None]:
            if synthesis_step:
                state = _repeat(synthesis_step, epoch.synthesis_steps, state, *frozen, axis=axis)
            return _repeat(student_step, epoch.student_steps, state, *frozen, axis=axis), None

        return jax.lax.scan(one_round, state, None, length=epoch.rounds)[0]

    compiled = devices.compile(whole)

    def run(state: RunState, *frozen: Any, progress: Callable[[int], bool]) -> RunState:
        step, synthesis = (int(devices.unreplicate(n)) for n in (state.step, state.synthesis_step))
        if step % epoch.steps or synthesis != step // epoch.student_steps * epoch.synthesis_steps:
            return python(state, *frozen, progress=progress)  # saved inside an epoch by the other loop
        state = jax.block_until_ready(compiled(state, *frozen))
        progress(epoch.steps)
        return state

    return run


def _repeat(step: Step, times: int, state: RunState, *frozen: Any, axis: Axis) -> RunState:
    return jax.lax.scan(lambda s, _: (step(s, *frozen, axis=axis), None), state, None, length=times)[0]
