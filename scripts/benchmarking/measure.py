"""One measurement: our programs, what they cost, and another framework's rounds in turn with ours."""

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
from cudfkd_jax.config import build
from cudfkd_jax.evaluation import summary
from cudfkd_jax.experiments.timing import set_up, timed

_PACKAGES = ("cudfkd_jax", "jax", "jaxlib", "flax")


def measure_all(
    configs: Sequence[ConfigDict], repeats: int, *, peer: str = "", imports_s: float = 0.0
) -> list[dict[str, Any]]:
    """Measures configurations that differ in their numbers of devices, and what the devices could do.

    Args:
        configs: each whole, as a run would get it, with a number of devices.
        repeats: to take the medians of, after one to warm up.
        peer: one of `peers.PEERS`, whose rounds take turns with ours; "": none.
        imports_s: what the imports of this process took.

    Returns:
        JSON-ready, in the order of the configurations; times in seconds, costs of all devices together, memory in
        MiB. A time multiplied by `of_product` or `of_stream` is the least that its operations or bytes take here;
        bytes that caches serve count too, and can make that more than the time. `floor_s` is what operations or
        the least bytes take at the ceilings, whichever is more. `finite` is False where a step
        failed, from which on the state stays as it was and times may not be those of a run. `load_before` is the
        number of other threads that wanted to run in the minute before.

    Raises:
        UserError: a setting is out of range, or not one that the peer knows.
    """
    load = os.getloadavg()[0]
    # A device's peak of memory is never reset. It is lower where more devices share the batch, so these come
    # first, and the ceilings, which take memory too, come last.
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
    setup, set_up_s = timed(set_up, config)
    ours = Ours(setup)
    first = {kind: ours.first(kind) for kind in ours.kinds}
    passes = {"each step": ours.each_step, "round": ours.round}
    if setup.loop == "scan":
        passes["epoch"] = ours.epoch
    warm = alternate(passes, 1)
    memory = summary.peak_memory(setup.devices)  # before a peer's comes on top
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
    """That a step makes or sees, and that the student sees in a round and in an epoch."""
    d = config.distill
    a_round = d.batch_size * d.student_steps
    more = {"round": a_round, "epoch": a_round * d.rounds_per_epoch}
    return {kind: more.get(kind, d.batch_size) for kind in kinds}


def _beside(measured: dict[str, Any], reached: Ceilings) -> dict[str, Any]:
    """A measurement, and what part of the ceilings of its devices each program reaches."""
    devices = measured["devices"]
    count = 1 if devices["platform"] == "cpu" else devices["count"]  # those on the CPU share its cores
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
    """Processors that this process may use, on each of which XLA's CPU backend has a thread."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
