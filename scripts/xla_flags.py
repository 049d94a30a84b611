"""Measures the effect of individual compiler flags on a round, alternating with no flag.

    python scripts/xla_flags.py --config=configs/cifar10.py --platform=gpu [--config.KEY=VALUE]
    python scripts/xla_flags.py --config=configs/digits.py --platform=cpu
    python scripts/xla_flags.py --config=configs/digits.py --flags="--xla_a=1;--xla_b=2 --xla_c=3"

Each measurement runs `scripts/benchmark.py` in a separate process. XLA_FLAGS of the environment apply to all
measurements. Flags unknown to this XLA version are reported.

--platform=PLATFORM  measures the flags listed for cpu or gpu (gpu)
--flags=FLAGS        measures these instead, separated by semicolons
--repeats=N          measurements per flag (3)
--rounds=N           rounds per measurement (5)
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cudfkd_jax.runtime import cli
from cudfkd_jax.runtime.errors import UserError, choose

_FLAGS = {
    "gpu": (
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_autotune_level=0",
        "--xla_gpu_autotune_level=4",
        "--xla_gpu_enable_triton_gemm=false",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_exhaustive_tiling_search=true",
        "--xla_gpu_deterministic_ops=true",
    ),
    "cpu": (
        "--xla_cpu_enable_fast_math=true",
        "--xla_cpu_enable_concurrency_optimized_scheduler=true",
        "--xla_cpu_prefer_vector_width=512",
        "--xla_cpu_multi_thread_eigen=false",
    ),
}
_NONE = ""


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    return cli.guard(_run, arguments, __doc__ or "")


def _run(arguments: Sequence[str]) -> None:
    parser = cli.Parser()
    for option, default in (("platform", "gpu"), ("flags", ""), ("repeats", "3"), ("rounds", "5")):
        parser.add_argument(f"--{option}", default=default)
    parser.add_argument("--config", required=True)
    options, settings = parser.parse_known_args(arguments)
    choose("--platform", options.platform, tuple(_FLAGS))
    if not options.repeats.isdecimal() or not int(options.repeats):
        raise UserError(f"--repeats is {options.repeats!r}; expected a positive integer")
    flags = options.flags.split(";") if options.flags else _FLAGS[options.platform]
    found: dict[str, list[dict[str, Any]]] = {flag: [] for flag in (_NONE, *flags)}
    refused: dict[str, str] = {}
    for _ in range(int(options.repeats)):
        for flag in [flag for flag in found if flag not in refused]:
            measured = _measure(flag, [f"--config={options.config}", *settings, f"--rounds={options.rounds}"])
            if isinstance(measured, str):
                refused[flag] = measured
            else:
                found[flag].append(measured)
    if _NONE in refused:
        raise UserError(refused[_NONE])
    print(_table(found, refused))


def _measure(flag: str, arguments: Sequence[str]) -> dict[str, Any] | str:
    """Returns the benchmark's measurement with a flag, or the last line of its error."""
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return dict(json.loads(done.stdout)[0])


def _table(found: dict[str, list[dict[str, Any]]], refused: dict[str, str]) -> str:
    base = _median(found[_NONE])
    lines = [f"{'round ms':>10} {'of none':>8} {'compile s':>10}  flag"]
    for flag, measured in found.items():
        if flag in refused:
            lines.append(f"{'':30}  {flag}: {refused[flag]}")
            continue
        milliseconds, compile_s = 1000 * _median(measured), statistics.median(map(_compile_s, measured))
        lines.append(f"{milliseconds:10.1f} {_median(measured) / base:8.3f} {compile_s:10.1f}  {flag or 'none'}")
    return "\n".join(lines)


def _median(measured: Sequence[dict[str, Any]]) -> float:
    return statistics.median(m["timings"]["round"]["seconds"] for m in measured)


def _compile_s(measured: dict[str, Any]) -> float:
    return float(sum(measured["compile_s"].values()))


if __name__ == "__main__":
    cli.leave(main)
