"""Reports: `report.html` and its figures for one run, `compare.html` for several."""

from cudfkd_jax.report.write import (
    COMPARISON,
    FOLDER,
    REPORT,
    is_missing,
    write_comparison,
    write_missing,
    write_report,
)

__all__ = ["COMPARISON", "FOLDER", "REPORT", "is_missing", "write_comparison", "write_missing", "write_report"]
