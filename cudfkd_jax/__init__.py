"""Data-free knowledge distillation with a curriculum (CuDFKD) in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cudfkd_jax.api import Result, distill
    from cudfkd_jax.settings import load as load_config

__all__ = ["Result", "distill", "load_config"]


def __getattr__(name: str) -> Any:
    """The functions for programs, imported when asked for: the command line needs less and starts sooner."""
    if name in __all__:
        from cudfkd_jax import api, settings

        return settings.load if name == "load_config" else getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
