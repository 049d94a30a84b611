"""The `compute_dtype` of a run, resolved before the run's identity is computed.

"auto" selects bfloat16 where the run's devices compute it fast. A run records its dtype and keeps it on resume,
even on another machine.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from cudfkd_jax.config import build
from cudfkd_jax.config.access import AUTO
from cudfkd_jax.runtime import onednn, processes
from cudfkd_jax.runtime.devices import Devices
from cudfkd_jax.storage import workdir

_CPU_INFO = Path("/proc/cpuinfo")
# Speed-ups of whole rounds by CPU flag: those measured over XLA's own float32 convolutions, divided by the 1.3
# that oneDNN gains in float32 (docs/performance.md).
_GAINS = {"amx_bf16": "about twice", "avx512_bf16": "some 1.5 times"}
_NEWER_PYTHON = (3, 12)  # required by jaxlib 0.11


def settle(config: ConfigDict, folder: Path | None = None) -> None:
    """Replaces `compute_dtype="auto"` by a dtype, in place.

    Args:
        config: the settings of a run.
        folder: the run's workdir; a run already in it keeps its dtype.

    Raises:
        UserError: the settings of a run in the folder cannot be read, or JAX finds no devices.
    """
    devices = build.devices(config)

    def find() -> str | None:
        if config.compute_dtype != AUTO:
            return None
        if folder:
            workdir.check_writable(folder)
        return (_recorded(folder) if folder else None) or _suited(devices)

    found = processes.from_first(find)
    if config.compute_dtype == AUTO and found:  # else the processes differ, which `identity.check_same` reports
        config.compute_dtype = found


def advice(config: ConfigDict) -> str | None:
    """Returns advice for a run that computes in float32 where bfloat16 is faster; otherwise None."""
    devices = build.devices(config)
    if config.compute_dtype != "float32":
        return None
    if gain := _gain(devices):
        return (
            f"computing in float32; these devices are {gain} as fast in bfloat16: a new run with "
            f"--config.compute_dtype={AUTO} takes it"
        )
    if (gain := _gain_of_the_processor(devices)) and sys.version_info < _NEWER_PYTHON:
        newer = ".".join(map(str, _NEWER_PYTHON))
        return (
            f"computing in float32; with Python {newer} or newer, whose JAX uses this processor's matrix units, "
            f"runs with --config.compute_dtype={AUTO} are {gain} as fast"
        )
    return None


def _recorded(folder: Path) -> str | None:
    held = map(workdir.read_settings, workdir.begun_stages(folder).values())
    return next((settings["compute_dtype"] for settings in held if "compute_dtype" in settings), None)


def _suited(devices: Devices) -> str:
    return "float32" if _gain(devices) is None else "bfloat16"


def _gain(devices: Devices) -> str | None:
    """Returns the speed-up of rounds in bfloat16, in words; None if there is none."""
    device = devices.devices[0]
    if device.platform == "cpu":
        gain = _gain_of_the_processor(devices)
        return gain if gain and onednn.available() else None
    capability = getattr(device, "compute_capability", None)  # NVIDIA only; bfloat16 from 8.0 on
    return "up to twice" if capability is None or float(capability) >= 8 else None


def _gain_of_the_processor(devices: Devices) -> str | None:
    """Returns the speed-up on a CPU, whether or not its JAX can use it."""
    # Several CPU devices run under pmap, which does not reach oneDNN.
    flags = _cpu_flags() if len(devices.devices) == 1 and devices.devices[0].platform == "cpu" else frozenset()
    return next((gain for flag, gain in _GAINS.items() if flag in flags), None)


def _cpu_flags() -> frozenset[str]:
    """Returns the CPU's feature flags where Linux lists them; otherwise none."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
