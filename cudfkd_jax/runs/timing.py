"""Timing of a run's steps on this machine, from which its duration is estimated."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

from cudfkd_jax.config.budget import Pace
from cudfkd_jax.config.jobs import DistillJob, SupervisedJob
from cudfkd_jax.data import Split
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.training import distill_steps, supervised_steps, trainer
from cudfkd_jax.training.batching import batches_at_once
from cudfkd_jax.training.loops import Epoch, EpochFunction, Steps, distillation_steps, make_epoch_function
from cudfkd_jax.training.state import RunState

_TAKEN = 3  # timed steps of each kind

Result = TypeVar("Result")


class Setup(NamedTuple):
    """The timed steps `(state, *frozen, axis)` and their arguments."""

    devices: Devices
    epoch: Epoch
    loop: str  # "python" or "scan"
    parts: Steps
    state: RunState
    frozen: tuple[Any, ...]
    batches: int = 1  # student batches that the scan computes at once

    def scan(self, rounds: int) -> EpochFunction:
        """Returns the function of an epoch of `rounds` rounds in one call."""
        epoch = self.epoch._replace(rounds=rounds)
        return make_epoch_function("scan", epoch, self.devices, self.parts, batches=self.batches)


def timed(call: Callable[..., Result], *arguments: Any) -> tuple[Result, float]:
    """Returns a call's result, once it is ready, and the seconds until then."""
    begin = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    return result, time.perf_counter() - begin


def set_up(job: DistillJob) -> Setup:
    """Compiles nothing yet; initialises the state of a run."""
    problem, variables, devices = job.problem, job.pair.teacher_variables, job.devices
    init = functools.partial(
        distill_steps.init_state,
        job.key,
        variables,
        problem=problem,
        image_shape=job.pair.student_net.image_shape,
    )
    on_cpu = devices.devices[0].platform == "cpu"
    return Setup(
        devices,
        job.epoch,
        ("python" if on_cpu else "scan") if job.loop == "auto" else job.loop,
        distillation_steps(problem),
        devices.replicate(trainer.initialise(init)),
        (devices.replicate(variables),),
        job.batches_at_once or batches_at_once(problem, variables, devices, job.epoch),
    )


def distillation_pace(make_job: Callable[[], DistillJob], *, by_steps: bool = False) -> Pace:
    """Times a few steps of each kind, or whole rounds of a compiled loop, after one for compilation.

    Args:
        make_job: builds the job; part of the run's start.
        by_steps: always times single steps; a round of ADI alone has 1,400 of them.
    """
    setup, set_up_s = timed(lambda: set_up(make_job()))
    warmup = setup.epoch.warmup_rounds  # driven by steps in either loop
    measure = _rounds if setup.loop == "scan" and not by_steps and not warmup else _steps
    compile_s, round_s, synthesis_s = measure(setup)
    return Pace(set_up_s + compile_s + warmup * synthesis_s, round_s * setup.epoch.rounds)


def _rounds(setup: Setup) -> tuple[float, float, float]:
    """Returns the seconds of the first round, which includes its compilation, of the next one, and 0."""
    drive = setup.scan(rounds=1)
    call = functools.partial(drive, progress=lambda _: False)
    state, first_s = timed(call, setup.state, *setup.frozen)
    _, next_s = timed(call, state, *setup.frozen)
    return first_s, next_s, 0.0


def _steps(setup: Setup) -> tuple[float, float, float]:
    """Returns the seconds of the first steps, with compilation, of a round, and of its synthesis, from medians."""
    parts, epoch, state = setup.parts.compile(setup.devices), setup.epoch, setup.state
    turns = (
        (parts.begin, 1),
        (parts.synthesis, epoch.synthesis_steps),
        (parts.finish, 1),
        (parts.student, epoch.student_steps),
    )
    compile_s = round_s = synthesis_s = 0.0
    for step, count in turns:
        if step:
            state, first_s = timed(step, state, *setup.frozen)
            seconds = []
            for _ in range(min(count, _TAKEN)):
                state, taken_s = timed(step, state, *setup.frozen)
                seconds.append(taken_s)
            taken_s = count * statistics.median(seconds)
            compile_s, round_s = compile_s + first_s, round_s + taken_s
            synthesis_s += 0.0 if step is parts.student else taken_s
    return compile_s, round_s, synthesis_s


def supervised_pace(make_job: Callable[[], tuple[SupervisedJob, Split]]) -> Pace:
    """Times a few steps of training on the data.

    Args:
        make_job: builds the job, without a teacher, and loads the training images; part of the run's start.
    """
    begin = time.perf_counter()
    job, (images, labels) = make_job()
    init = functools.partial(supervised_steps.init_state, job.key, images, labels, problem=job.problem)
    step = functools.partial(supervised_steps.supervised_step, problem=job.problem)
    compiled = Steps(step).compile(job.devices).student
    frozen = job.devices.replicate((images, labels))
    state, _ = timed(compiled, job.devices.replicate(trainer.initialise(init)), *frozen)
    start_s, seconds = time.perf_counter() - begin, []
    for _ in range(_TAKEN):
        state, taken_s = timed(compiled, state, *frozen)
        seconds.append(taken_s)
    return Pace(start_s, statistics.median(seconds) * job.epoch.steps)
