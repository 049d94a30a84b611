"""The time that JAX takes to trace and compile, told apart from the time of the steps."""

import functools
import time

from jax import monitoring

_EVENTS = "/jax/core/compile/"  # tracing, lowering, compiling; durations in seconds, told at the end of each


class CompilationClock:
    """Sums the seconds that this process has spent on tracing and compiling; nested times count once."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []  # disjoint, in order

    def add(self, seconds: float, end: float) -> None:
        """Adds the span of `seconds` that ended at `end` on the monotonic clock."""
        start = end - seconds
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()  # lies inside the new span
        self._spans.append((max(start, self._spans[-1][1] if self._spans else start), end))

    def seconds(self) -> float:
        """Returns the sum so far; compilation under way is not yet in it."""
        return sum(end - start for start, end in tuple(self._spans))

    def working(self) -> float:
        """Returns the time on the monotonic clock, in seconds, minus the sum so far."""
        return time.monotonic() - self.seconds()


@functools.cache
def compilation_clock() -> CompilationClock:
    """Returns this process's clock, which runs from the first call on."""
    clock = CompilationClock()

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        del details
        if event.startswith(_EVENTS):
            clock.add(duration_secs, time.monotonic())

    monitoring.register_event_duration_secs_listener(listen)
    return clock
