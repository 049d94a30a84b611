"""The effect of compiler flags on a round."""

from typing import Any

from gpu.session import Session
from gpu.sizes import Pair

_BEST = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_autotune_level=0",
)


def run(session: Session, pair: Pair) -> dict[str, Any]:
    """Measures a round with each flag and without any, with `scripts/xla_flags.py`."""
    flags = ";".join(_BEST if session.platform == "gpu" else ("--xla_cpu_enable_fast_math=true",))
    child = session.call(
        "flags",
        *("scripts/xla_flags.py", f"--config={pair.config}", *pair.changes, f"--flags={flags}", "--repeats=1"),
        *(f"--rounds={1 if session.smoke else 3}", "--config.distill.rounds_per_epoch=2"),
    )
    return {"ok": True, "table": child.log.read_text(encoding="utf-8", errors="replace")}


def show(result: dict[str, Any]) -> str:
    """Returns the script's table."""
    return str(result["table"]).rstrip()
