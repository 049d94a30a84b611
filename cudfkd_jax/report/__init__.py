"""Reports: `report.html` and its figures for one run, `compare.html` for several."""

from typing import TYPE_CHECKING, Any

from cudfkd_jax.report.files import COMPARISON, FOLDER, REPORT, is_missing

if TYPE_CHECKING:
    from cudfkd_jax.report.write import write_comparison, write_missing, write_report

__all__ = ["COMPARISON", "FOLDER", "REPORT", "is_missing", "write_comparison", "write_missing", "write_report"]


def __getattr__(name: str) -> Any:
    """What draws, imported when asked for: a run starts without waiting for matplotlib."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cudfkd_jax.report import write

    return getattr(write, name)
