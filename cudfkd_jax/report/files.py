"""The files of a report, and whether a run lacks its own."""

from pathlib import Path

from cudfkd_jax.evaluation.summary import SUMMARY

REPORT, COMPARISON, FOLDER = "report.html", "compare.html", "report"


def is_missing(folder: Path) -> bool:
    """Returns whether a finished run has no page, or one older than its summary."""
    summary, written = folder / SUMMARY, folder / REPORT
    if not summary.exists():
        return False
    return not written.exists() or written.stat().st_mtime_ns < summary.stat().st_mtime_ns
