"""The report of a run: `report.html`, its figures, and `compare.html` of several runs."""

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
