"""Orbax without what it and TensorStore print about errors that they raise too."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

import absl.logging

_STRAGGLERS_S = 0.5  # until the threads of a call that failed have all said so


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps Orbax and TensorStore's threads and futures from printing pages of an error that is raised too."""
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
