"""Data-free knowledge distillation with a curriculum (CuDFKD) in JAX and Flax."""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    print("cudfkd: error: Windows is not supported; run it on Linux or macOS, or in WSL", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from cudfkd_jax.config import presets as defaults
    from cudfkd_jax.config.loading import load as load_config
    from cudfkd_jax.runs.api import Result, distill

__all__ = ["Result", "defaults", "distill", "load_config"]


def __getattr__(name: str) -> Any:
    """What programs and configuration files use, imported when asked for: the command line needs less of it."""
    match name:
        case "Result" | "distill":
            from cudfkd_jax.runs import api

            return getattr(api, name)
        case "defaults":  # of configuration files, also those that earlier versions wrote into a run's folder
            from cudfkd_jax.config import presets

            return presets
        case "load_config":
            from cudfkd_jax.config import loading

            return loading.load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
