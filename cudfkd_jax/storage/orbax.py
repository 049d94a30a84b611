"""Orbax without the messages that it and TensorStore print for errors that they also raise."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

import absl.logging

_STRAGGLERS_S = 0.5  # for the threads of a failed call to report


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silences the threads and futures of Orbax and TensorStore, which print pages about errors also raised."""
    futures = logging.getLogger("asyncio")
    verbosity, hook, level = absl.logging.get_verbosity(), sys.unraisablehook, futures.level
    absl.logging.set_verbosity(absl.logging.FATAL)
    sys.unraisablehook = lambda error: None
    futures.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception:
        time.sleep(_STRAGGLERS_S)
        raise
    finally:
        absl.logging.set_verbosity(verbosity)
        sys.unraisablehook = hook
        futures.setLevel(level)
