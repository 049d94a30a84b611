"""How long the steps of a run take on this machine, and from that how long a run will.

Networks have random weights, which cost what trained ones cost.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from cudfkd_jax import build, configuration, networks, steps, supervised, trainer, validate
from cudfkd_jax.loops import Epoch, Steps, distillation_steps, make_epoch_function
from cudfkd_jax.parallel import Devices
from cudfkd_jax.steps import RunState

_TAKEN = 3  # steps of a kind

Step = Callable[..., RunState]


class Setup(NamedTuple):
    """What is timed: functions of `(state, *frozen)`, compiled at their first call, and their arguments."""

    devices: Devices
    epoch: Epoch
    steps: Steps
    compiled_round: Step | None  # where the loop of a run is compiled
    state: RunState
    frozen: tuple[Any, ...]


def set_up(config: ConfigDict) -> Setup:
    """Builds the distillation of a configuration around a teacher with random weights.

    Raises:
        UserError: a setting is out of range.
    """
    validate.check(config)
    validate.check_devices(config, ["distill"])
    devices, key = build.devices(config), build.root_key(config, "distill")
    net = networks.described(config, "teacher")
    teacher = networks.classifier(config, net)
    variables = trainer.initialise(lambda: teacher.init(key, net.image_shape))
    problem = build.problem(config, networks.pair(config, net, variables))
    init = functools.partial(steps.init_state, key, variables, problem=problem, image_shape=net.image_shape)
    parts = distillation_steps(problem)
    epoch = configuration.distill_epoch(config)._replace(rounds=1)
    compiled_round = None
    if config.loop == "scan" or (config.loop == "auto" and devices.devices[0].platform != "cpu"):
        run = make_epoch_function("scan", epoch, devices, parts)
        compiled_round = functools.partial(run, progress=lambda _: False)
    return Setup(
        devices,
        epoch,
        parts.compile(devices),
        compiled_round,
        devices.replicate(trainer.initialise(init)),
        (devices.replicate(variables),),
    )


class Pace(NamedTuple):
    """What a run costs, in seconds: until its first step is done, and for each epoch of training."""

    start_s: float
    epoch_s: float


def distillation_pace(config: ConfigDict) -> Pace:
    """Measures a few steps of each kind, or where the loop is compiled whole rounds, after one to compile them.

    Raises:
        UserError: a setting is out of range.
    """
    begin = time.perf_counter()
    setup = set_up(config)
    if setup.compiled_round:
        state, _ = timed(setup.compiled_round, setup.state, *setup.frozen)
        start_s = time.perf_counter() - begin
        _, round_s = timed(setup.compiled_round, state, *setup.frozen)
    else:
        state, seconds = step_by_step(setup, setup.state, most=1)
        start_s = time.perf_counter() - begin
        _, seconds = step_by_step(setup, state, most=_TAKEN)
        kinds = [kind for kind, step in turns(setup) if step]
        round_s = sum(statistics.median(seconds[kind]) for kind in kinds)
    return Pace(start_s, round_s * config.distill.rounds_per_epoch)


def supervised_pace(config: ConfigDict, section: str) -> Pace:
    """Measures a few steps of training on the data; `section` is "teacher" or "scratch".

    Raises:
        UserError: a setting is out of range, or the data cannot be read.
    """
    begin = time.perf_counter()
    validate.check_devices(config, [section])
    images, labels = build.dataset(config, ("train",)).splits["train"]
    devices, key = build.devices(config), build.root_key(config, section)
    epoch = build.supervised_epoch(config, section, len(labels))
    role = "teacher" if section == "teacher" else "student"
    network = networks.classifier(config, networks.described(config, role))
    problem = build.supervised_problem(config, section, network, epoch, None)
    init = functools.partial(supervised.init_state, key, images, labels, problem=problem)
    step = functools.partial(supervised.supervised_step, problem=problem)
    compiled = Steps(step).compile(devices).student
    frozen = devices.replicate((images, labels))
    state, _ = timed(compiled, devices.replicate(trainer.initialise(init)), *frozen)
    start_s, seconds = time.perf_counter() - begin, []
    for _ in range(_TAKEN):
        state, taken_s = timed(compiled, state, *frozen)
        seconds.append(taken_s)
    return Pace(start_s, statistics.median(seconds) * epoch.steps)


def timed(step: Step, state: RunState, *arguments: Any) -> tuple[RunState, float]:
    """Does a step, waits for it, and returns what it gives and the seconds that it took."""
    begin = time.perf_counter()
    state = jax.block_until_ready(step(state, *arguments))
    return state, time.perf_counter() - begin


def turns(setup: Setup) -> list[tuple[str, Step | None]]:
    """All steps of a round in order, by kind; the turns of the method are None where it has none."""
    parts, epoch = setup.steps, setup.epoch
    return [
        ("begin", parts.begin),
        *[("synthesis step", parts.synthesis)] * epoch.synthesis_steps,
        ("finish", parts.finish),
        *[("student step", parts.student)] * epoch.student_steps,
    ]


def step_by_step(
    setup: Setup, state: RunState, *, most: int | None = None
) -> tuple[RunState, dict[str, list[float]]]:
    """A round, every step of it waited for, and the seconds by kind; `most` steps of a kind are taken."""
    seconds: dict[str, list[float]] = {}
    for kind, step in turns(setup):
        if step and (most is None or len(seconds.get(kind, ())) < most):
            state, taken_s = timed(step, state, *setup.frozen)
            seconds.setdefault(kind, []).append(taken_s)
    return state, seconds


def whole_round(state: RunState, setup: Setup) -> RunState:
    """A round whose steps are not waited for."""
    for _, step in turns(setup):
        state = step(state, *setup.frozen) if step else state
    return state
