"""One measurement: our programs, their costs, and another framework's rounds in alternation with ours."""

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from benchmarking import ceilings, peers
from benchmarking.ceilings import Ceilings
from benchmarking.ours import Ours
from benchmarking.timing import alternate, timing
from cudfkd_jax.config import build, jobs
from cudfkd_jax.evaluation import summary
from cudfkd_jax.runs.timing import set_up, timed

_PACKAGES = ("cudfkd_jax", "jax", "jaxlib", "flax")


def measure_all(
    configs: Sequence[ConfigDict], repeats: int, *, peer: str = "", imports_s: float = 0.0
) -> list[dict[str, Any]]:
    """Measures configurations that differ in their number of devices, and the devices' ceilings.

    Args:
        configs: complete configurations of runs.
        repeats: number of repeats after one warm-up; times are medians.
        peer: one of `peers.PEERS`, whose rounds alternate with ours; "": none.
        imports_s: seconds that the imports of this process took.

    Returns:
        JSON-ready, in the order of the configurations; times in seconds, costs over all devices, memory in MiB. A
        time multiplied by `of_product` or `of_stream` is the least time of its operations or bytes at the
        ceilings; bytes served by caches count too, so the share can exceed 1. `floor_s` is the larger of the
        times that the operations and the least bytes take at the ceilings. `finite` is False where a step was not
        finite; all later steps then leave the state unchanged, and times may differ from those of a run.
        `load_before` is the load average of the minute before.

    Raises:
        UserError: a setting is out of range, or the peer does not support it.
    """
    load = os.getloadavg()[0]
    # A device's peak memory is never reset, and it is lower where more devices share the batch. Hence the largest
    # number of devices is measured first, and the ceilings, which need memory too, last.
    measured = {
        config.devices: _measure(config, repeats, peer=peer, imports_s=imports_s)
        for config in sorted(configs, key=lambda config: config.devices, reverse=True)
    }
    device = build.devices(configs[0]).devices[0]
    reached = ceilings.measured(device, ("float32", configs[0].compute_dtype))
    return [_beside(measured[config.devices], reached) | {"load_before": load} for config in configs]


def _measure(config: ConfigDict, repeats: int, *, peer: str, imports_s: float) -> dict[str, Any]:
    if peer:
        peers.check(config, build.devices(config))
    setup, set_up_s = timed(lambda: set_up(jobs.untrained_job(config)))
    ours = Ours(setup)
    first = {kind: ours.first(kind) for kind in ours.kinds}
    passes = {"each step": ours.each_step, "round": ours.round}
    if setup.loop == "scan":
        passes["epoch"] = ours.epoch
    warm = alternate(passes, 1)
    memory = summary.peak_memory(setup.devices)  # before the peer allocates
    theirs = peers.torch_peers(config, setup.frozen[0], ours.state) if peer else None
    if theirs:
        their_passes = {name: peer_round.run for name, peer_round in theirs.rounds.items()}
        alternate(their_passes, 1)
        passes |= their_passes
    taken = alternate(passes, repeats)

    seconds = taken["each step"] | taken["round"] | taken.get("epoch", {})
    compile_s = {kind: program.compile_s for kind, program in ours.programs.items()}
    for kind in ("round", "epoch") if setup.loop == "scan" else ():
        compile_s[f"{kind} in one call"] = warm[kind][kind][0] - statistics.median(seconds[kind])
    if setup.loop == "python":
        seconds["epoch"] = [setup.epoch.rounds * statistics.median(seconds["round"])]
    devices = setup.devices.devices
    costs = ours.costs()
    images = _images(config, list(seconds))
    return {
        "method": config.method,
        "teacher": config.teacher.module or config.teacher.arch,
        "student": config.student.module or config.student.arch,
        "image_shape": list(config.data.image_shape),
        "batch_size": config.distill.batch_size,
        "synthesis_steps": setup.epoch.synthesis_steps,
        "student_steps": setup.epoch.student_steps,
        "rounds_per_epoch": setup.epoch.rounds,
        "compute_dtype": config.compute_dtype,
        "loop": setup.loop,
        "repeats": repeats,
        "timings": {
            kind: timing(values, images[kind]) | costs[kind]._asdict() for kind, values in seconds.items()
        },
        "rounds_s": seconds["round"],
        "finite": not bool(setup.devices.unreplicate(ours.state.failed)),
        "compile_s": compile_s,
        "peak_memory_mib": memory,
        "start": {
            "imports_s": imports_s,
            "set_up_s": set_up_s,
            "first_steps_s": first,
            "to_first_step_s": imports_s + set_up_s + sum(first.values()),
        },
        "peers": theirs.beside(taken["round"]["round"], taken, images) if theirs else {},
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "threads": _cores(),
        },
        "versions": {"python": platform.python_version()}
        | {name: summary.package_version(name) for name in _PACKAGES},
    }


def _images(config: ConfigDict, kinds: list[str]) -> dict[str, int]:
    """Returns the images per step, and those that the student sees per round and per epoch."""
    d = config.distill
    a_round = d.batch_size * d.student_steps
    more = {"round": a_round, "epoch": a_round * d.rounds_per_epoch}
    return {kind: more.get(kind, d.batch_size) for kind in kinds}


def _beside(measured: dict[str, Any], reached: Ceilings) -> dict[str, Any]:
    """Adds to a measurement the share of its devices' ceilings that each program reaches."""
    devices = measured["devices"]
    count = 1 if devices["platform"] == "cpu" else devices["count"]  # CPU devices share the cores
    product, stream = count * reached.flops[measured["compute_dtype"]], count * reached.stream
    timings = {}
    for kind, t in measured["timings"].items():
        flops_per_s, bytes_per_s = t["flops"] / t["seconds"], t["bytes"] / t["seconds"]
        rates = {"flops_per_s": flops_per_s, "bytes_per_s": bytes_per_s}
        floor_s = max(t["flops"] / product, t["least_bytes"] / stream)
        shares = {"of_product": flops_per_s / product, "of_stream": bytes_per_s / stream, "floor_s": floor_s}
        timings[kind] = t | rates | shares
    top = {"flops_per_s": reached.flops, "bytes_per_s": reached.stream}
    return measured | {"timings": timings, "ceilings": top}


def _cores() -> int:
    """Returns the number of processors available to this process; XLA's CPU backend has a thread on each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
