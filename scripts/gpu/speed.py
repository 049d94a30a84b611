"""Speed of a pair's round compared with PyTorch's, and its profile."""

import json
import time
from typing import Any

from gpu.session import Session, StepFailedError
from gpu.sizes import Pair

_TURNS = 7


def run(session: Session, name: str, pair: Pair, *, peer: bool = True) -> dict[str, Any]:
    """Compiles our and PyTorch's programs in parallel, then measures them alternately with nothing else running.

    Args:
        session: the current session.
        name: the name of the step.
        pair: the networks and their settings.
        peer: whether to measure PyTorch too.
    """
    begin = time.monotonic()
    # A short epoch, because it is also measured in one call.
    shape = (f"--config={pair.config}", *pair.changes, "--config.distill.rounds_per_epoch=4")
    ahead = {
        what: session.start(f"{name}_{what}", "-m", "gpu.ahead", what, *shape)
        for what in ("ours", "peer")[: 1 + peer]
    }
    for what, child in ahead.items():
        status = child.wait(session.until - 30)
        session.say(f"  {what} compiled ahead: {child.said()}" + (f" (exit status {status})" if status else ""))
    ready = time.monotonic()
    result: dict[str, Any] = {"compile_ahead_s": ready - begin}
    arguments = ("scripts/benchmark.py", *shape, f"--rounds={2 if session.smoke else _TURNS}", "--json")
    try:
        result |= _benchmark(session, name, [*arguments, *["--peer=torch"] * peer])
    except StepFailedError as error:
        result |= _benchmark(session, name, list(arguments)) | {"no_peer": str(error)}
    result["seconds"] = time.monotonic() - begin
    session.keep(name, result | {"ok": False})  # in case the trace takes too long
    result |= _kernels(session, name, shape) if session.platform == "gpu" else {}
    return result | {"seconds": time.monotonic() - begin, "ok": True}


def round_s(result: dict[str, Any]) -> float:
    """Returns the seconds per round of the training loop."""
    return float(result["timings"].get("epoch", result["timings"]["round"])["seconds"]) / (
        result["rounds_per_epoch"] if "epoch" in result["timings"] else 1
    )


def show(result: dict[str, Any]) -> str:
    """Formats the results as a table."""
    lines = [
        f"  {result['teacher']} -> {result['student']}, batch {result['batch_size']}, {result['compute_dtype']}, "
        f"{result['devices']['kind']}"
    ]
    for kind, t in result["timings"].items():
        share = t["floor_s"] / t["seconds"]
        lines.append(
            f"  {kind:16}{1e3 * t['seconds']:9.2f} ms {t['images_per_s']:11,.0f} images/s  floor {share:.0%}"
        )
    for name, peer in (result["peers"] or {"rounds": {}})["rounds"].items():
        ratio, seconds = peer["round_over_ours"]["median"], peer["timings"]["round"]["seconds"]
        lines.append(f"  {name:16}{1e3 * seconds:9.2f} ms   {ratio:.2f} times ours")
    if "no_peer" in result:
        lines.append(f"  without PyTorch: {result['no_peer']}")
    memory = result["peak_memory_mib"]["device"]
    lines.append(f"  peak memory {memory or 0:,.0f} MiB; compiled ahead in {result['compile_ahead_s']:.0f} s")
    for kind, ms in result.get("kinds_ms", {}).items():
        lines.append(f"    {ms:9.2f} ms  {kind}")
    if "idle" in result:
        lines.append(f"    {result['kernels']} kernels per round, idle {result['idle']:.0%}")
    return "\n".join(lines)


def _benchmark(session: Session, name: str, arguments: list[str]) -> dict[str, Any]:
    out = session.scratch / f"{name}_benchmark.json"
    out.unlink(missing_ok=True)
    session.call(f"{name}_benchmark", *arguments, out=out)
    return dict(json.loads(out.read_text())[0])


def _kernels(session: Session, name: str, shape: tuple[str, ...]) -> dict[str, Any]:
    out = session.scratch / f"{name}_kernels.json"
    try:
        session.call(f"{name}_kernels", "-m", "gpu.kernels", f"--out={out}", *shape, seconds=90)
    except StepFailedError as error:
        return {"no_trace": str(error)}
    return dict(json.loads(out.read_text()))
