"""Data-free knowledge distillation with a curriculum (CuDFKD) in JAX and Flax.

    result = cudfkd_jax.distill(
        teacher=(module, variables),  # a trained linen classifier
        student="wrn16_1",
        image_shape=(32, 32, 3),
        num_classes=10,
        mean=(0.491, 0.482, 0.447),  # the teacher's normalisation of images in [0, 1]
        std=(0.202, 0.199, 0.201),
        config=cudfkd_jax.load_config("cifar10"),
        workdir="runs/student",
    )
    result.student.variables, result.metrics

`help(cudfkd_jax.distill)` describes the arguments.
"""

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    print("cudfkd: error: Windows is not supported; run it on Linux or macOS, or in WSL", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from cudfkd_jax.config import presets as defaults
    from cudfkd_jax.config.loading import load as load_config
    from cudfkd_jax.runs.api import Result, distill
    from cudfkd_jax.training.trainer import Callback

__all__ = ["Callback", "Result", "__version__", "defaults", "distill", "load_config"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """What programs and configuration files use, imported when asked for: the command line needs less of it."""
    match name:
        case "Result" | "distill":
            from cudfkd_jax.runs import api

            return getattr(api, name)
        case "Callback":
            from cudfkd_jax.training import trainer

            return trainer.Callback
        case "defaults":  # of configuration files, also those that earlier versions wrote into a run's folder
            from cudfkd_jax.config import presets

            return presets
        case "load_config":
            from cudfkd_jax.config import loading

            return loading.load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
