"""Alternating measurements and their medians."""

import statistics
from collections.abc import Callable, Mapping, Sequence

Seconds = dict[str, list[float]]  # by kind of work


def alternate(passes: Mapping[str, Callable[[], Seconds]], repeats: int) -> dict[str, Seconds]:
    """Calls the passes alternately, so that other load on the machine affects all of them alike.

    Args:
        passes: by name; each returns its seconds by kind of work.
        repeats: number of calls of each.

    Returns:
        The seconds of all repeats in order, by name and kind.
    """
    taken: dict[str, Seconds] = {name: {} for name in passes}
    for _ in range(repeats):
        for name, work in passes.items():
            for kind, seconds in work().items():
                taken[name].setdefault(kind, []).extend(seconds)
    return taken


def timing(seconds: Sequence[float], images: int) -> dict[str, float]:
    """Returns the median time and the images per second at it."""
    median = statistics.median(seconds)
    return {"seconds": median, "images_per_s": images / median}


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Computes the ratio of their time to ours per repeat: its median, minimum and maximum."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
