"""Profiles a round by kernel.

    python -m gpu.kernels --out=FILE --config=FILE [--config.KEY=VALUE]

Traces two rounds of the training loop and writes JSON: the milliseconds per round of each kind of kernel and of
the longest kernels, and the share of idle time.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from cudfkd_jax.config import jobs, loading
from cudfkd_jax.runs import timing
from cudfkd_jax.runtime import cli

_ROUNDS, _LONGEST = 2, 40
_KINDS = {
    "convolution, product": r"cudnn|xmma|cutlass|gemm|conv|sm90|sm80|nvjet|dgrad|wgrad|fprop",
    "reduction": r"reduce",
    "layout": r"transpose|nchw|nhwc|copy",
    "fusion": r"fusion",
    "memory": r"memcpy|memset",
}


def measure(file: str, changes: Sequence[str]) -> dict[str, Any]:
    """Traces rounds of a configuration after one warm-up round."""
    config = loading.load(file)
    loading.override(config, changes)
    setup = timing.set_up(jobs.untrained_job(config))
    drive = setup.scan(1) if setup.loop == "scan" else None
    assert drive, "only compiled loops can be traced"
    state = setup.state
    with TemporaryDirectory() as folder:
        for i in range(1 + _ROUNDS):
            if i == 1:
                jax.profiler.start_trace(folder)
            # The scan only starts at step 0. The counters are new arrays because each call donates its state.
            begin = state.replace(step=jnp.int32(0), synthesis_step=jnp.int32(0))
            state = jax.block_until_ready(drive(begin, *setup.frozen, progress=lambda steps: False))
        jax.profiler.stop_trace()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return summarise(list(_kernels(ProfileData.from_file(str(path)))))


def summarise(kernels: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Computes the time per round of kernels `(name, begin, end)` in ns."""
    if not kernels:
        return {"kinds_ms": {}, "longest_ms": {}, "kernels": 0, "span_ms": 0.0, "idle": 0.0}
    by_name, by_kind = Counter[str](), Counter[str]()
    for name, begin, end in kernels:
        by_name[re.sub(r"[._]\d+", "", name)[:120]] += end - begin  # type: ignore[assignment]
        by_kind[_kind(name)] += end - begin  # type: ignore[assignment]
    span = max(end for *_, end in kernels) - min(begin for _, begin, _ in kernels)
    unit = 1e6 * _ROUNDS
    return {
        "kinds_ms": {kind: value / unit for kind, value in by_kind.most_common()},
        "longest_ms": {name: value / unit for name, value in by_name.most_common(_LONGEST)},
        "kernels": len(kernels) // _ROUNDS,
        "span_ms": span / unit,
        "idle": 1 - sum(by_kind.values()) / span,
    }


def _kind(name: str) -> str:
    return next((kind for kind, words in _KINDS.items() if re.search(words, name.lower())), "other")


def _kernels(profile: ProfileData) -> Iterator[tuple[str, float, float]]:
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if "Stream" in line.name:
                for event in line.events:
                    yield event.name, event.start_ns, event.start_ns + event.duration_ns


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    out, file, *changes = arguments
    cli.use_compilation_cache()
    result = measure(file.removeprefix("--config="), changes)
    Path(out.removeprefix("--out=")).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
