"""Damaged and hostile files for everything that reads files; see `scripts/fuzz.py`."""
