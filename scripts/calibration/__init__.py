"""Right and wrong teachers, and their measurement; see `scripts/calibrate_verification.py`."""
