"""Times the steps of data-free distillation on this machine's devices.

    python scripts/benchmark.py --config=configs/digits.py

The networks have random weights, which cost what trained ones cost, and no data are read. Steps alternate as in
a round and each is waited for; a round is timed as a whole and waited for at its end only. The persistent
compilation cache is used only where JAX_COMPILATION_CACHE_DIR names one: else the times of the start are those
of a first start.
"""

import time

_START = time.perf_counter()  # before the imports, whose time is reported

import functools
import json
import platform
import statistics
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cudfkd_jax import build, configuration, networks, steps, trainer, validate
from cudfkd_jax.errors import UserError
from cudfkd_jax.loops import Epoch, Steps, distillation_steps, make_epoch_function
from cudfkd_jax.parallel import Devices
from cudfkd_jax.steps import RunState

_IMPORTS_S = time.perf_counter() - _START

_PACKAGES = ("cudfkd_jax", "jax", "jaxlib", "flax")

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


def measure(config: ConfigDict, rounds: int) -> dict[str, Any]:
    """Times the start, the steps and the round of a configuration.

    Args:
        config: whole, as a run would get it.
        rounds: to take the medians of, after one to warm up.

    Returns:
        JSON-ready: "timings" with the median seconds and the images a second of each, "start" in seconds, and
        what was timed where.
    """
    begin = time.perf_counter()
    setup = set_up(config)
    state, frozen = jax.block_until_ready(setup.state), setup.frozen
    set_up_s = time.perf_counter() - begin
    assert setup.steps.synthesis
    if setup.steps.begin:
        state = setup.steps.begin(state, *frozen)
    state, first_synthesis_s = _timed(setup.steps.synthesis, state, *frozen)
    state, first_student_s = _timed(setup.steps.student, state, *frozen)
    to_first_step_s = time.perf_counter() - begin

    state, _ = _step_by_step(setup, state)  # warms up
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        state, taken = _step_by_step(setup, state)
        for kind, values in taken.items():
            seconds[kind] = seconds.get(kind, []) + values
    seconds["round"] = []
    for _ in range(rounds):
        state, taken_s = _timed(_round, state, setup)
        seconds["round"].append(taken_s)
    if setup.compiled_round:
        state = setup.compiled_round(state, *frozen)
        seconds["round, compiled"] = []
        for _ in range(rounds):
            state, taken_s = _timed(setup.compiled_round, state, *frozen)
            seconds["round, compiled"].append(taken_s)

    batch_size = config.distill.batch_size
    per_round = batch_size * setup.epoch.student_steps
    devices = setup.devices.devices
    return {
        "teacher": config.teacher.arch,
        "student": config.student.arch,
        "batch_size": batch_size,
        "synthesis_steps": setup.epoch.synthesis_steps,
        "student_steps": setup.epoch.student_steps,
        "rounds": rounds,
        "timings": {
            kind: _timing(values, per_round if kind.startswith("round") else batch_size)
            for kind, values in seconds.items()
        },
        "start": {
            "imports_s": _IMPORTS_S,
            "set_up_s": set_up_s,
            "first_synthesis_step_s": first_synthesis_s,
            "first_student_step_s": first_student_s,
            "to_first_step_s": _IMPORTS_S + to_first_step_s,
        },
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
    }


def table(measured: dict[str, Any]) -> str:
    """What `measure` returned, for people."""
    m, start = measured, measured["start"]
    lines = [
        f"{m['teacher']} -> {m['student']}, batch {m['batch_size']}, a round of {m['synthesis_steps']} synthesis "
        f"and {m['student_steps']} student steps, medians of {m['rounds']} rounds",
        f"{m['devices']['count']} x {m['devices']['kind']}, "
        + ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
        "",
        f"{'':16}{'ms':>10}{'images/s':>12}",
    ]
    lines += [
        f"{kind:16}{1000 * timing['seconds']:10,.1f}{timing['images_per_s']:12,.0f}"
        for kind, timing in m["timings"].items()
    ]
    lines += [
        "",
        f"to the end of the first student step: {start['to_first_step_s']:.1f} s = imports "
        f"{start['imports_s']:.1f} + initialisation {start['set_up_s']:.1f} + first synthesis step "
        f"{start['first_synthesis_step_s']:.1f} + first student step {start['first_student_step_s']:.1f}, "
        "compilation included",
    ]
    return "\n".join(lines)


def _timed(step: Step, state: RunState, *arguments: Any) -> tuple[RunState, float]:
    begin = time.perf_counter()
    state = jax.block_until_ready(step(state, *arguments))
    return state, time.perf_counter() - begin


def _turns(setup: Setup) -> list[tuple[str, Step | None]]:
    """All steps of a round in order, by kind; the turns of the method are None where it has none."""
    parts, epoch = setup.steps, setup.epoch
    return [
        ("begin", parts.begin),
        *[("synthesis step", parts.synthesis)] * epoch.synthesis_steps,
        ("finish", parts.finish),
        *[("student step", parts.student)] * epoch.student_steps,
    ]


def _step_by_step(setup: Setup, state: RunState) -> tuple[RunState, dict[str, list[float]]]:
    """A round, every step of it waited for."""
    seconds: dict[str, list[float]] = {}
    for kind, step in _turns(setup):
        if step:
            state, taken_s = _timed(step, state, *setup.frozen)
            seconds.setdefault(kind, []).append(taken_s)
    return state, seconds


def _round(state: RunState, setup: Setup) -> RunState:
    """A round whose steps are not waited for."""
    for _, step in _turns(setup):
        state = step(state, *setup.frozen) if step else state
    return state


def _timing(seconds: list[float], images: int) -> dict[str, float]:
    median = statistics.median(seconds)
    return {"seconds": median, "images_per_s": images / median}


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    chosen = flags.FLAGS
    if chosen.config is None:
        sys.exit("benchmark: no configuration; give one, e.g. --config=configs/digits.py")
    try:
        measured = measure(chosen.config, chosen.rounds)
    except UserError as error:
        sys.exit(f"benchmark: {error}")
    print(json.dumps(measured, indent=2) if chosen.json else table(measured))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "the configuration", lock_config=True)
    flags.DEFINE_integer("rounds", 10, "rounds to take the medians of", lower_bound=1)
    flags.DEFINE_bool("json", False, "print JSON instead of a table")
    app.run(_main)
