"""Runs that are killed at random moments; see `scripts/crash_test.py`."""
