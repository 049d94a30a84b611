"""Times the steps of data-free distillation on this machine's devices.

    python scripts/benchmark.py --config=configs/digits.py

The networks have random weights, which cost what trained ones cost, and no data are read. Steps alternate as in
a round and each is waited for; a round is timed as a whole and waited for at its end only. The persistent
compilation cache is used only where JAX_COMPILATION_CACHE_DIR names one: else the times of the start are those
of a first start.
"""

import time

_START = time.perf_counter()  # before the imports, whose time is reported

import json
import platform
import statistics
import sys
from importlib import metadata
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cudfkd_jax.errors import UserError
from cudfkd_jax.timing import set_up, step_by_step, timed, whole_round

_IMPORTS_S = time.perf_counter() - _START

_PACKAGES = ("cudfkd_jax", "jax", "jaxlib", "flax")


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
    state, first_synthesis_s = timed(setup.steps.synthesis, state, *frozen)
    state, first_student_s = timed(setup.steps.student, state, *frozen)
    to_first_step_s = time.perf_counter() - begin

    state, _ = step_by_step(setup, state)  # warms up
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        state, taken = step_by_step(setup, state)
        for kind, values in taken.items():
            seconds[kind] = seconds.get(kind, []) + values
    seconds["round"] = []
    for _ in range(rounds):
        state, taken_s = timed(whole_round, state, setup)
        seconds["round"].append(taken_s)
    if setup.compiled_round:
        state = setup.compiled_round(state, *frozen)
        seconds["round, compiled"] = []
        for _ in range(rounds):
            state, taken_s = timed(setup.compiled_round, state, *frozen)
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
