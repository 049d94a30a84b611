"""Taking turns, and medians."""

import statistics
from collections.abc import Callable, Mapping, Sequence

Seconds = dict[str, list[float]]  # by kind of work


def alternate(passes: Mapping[str, Callable[[], Seconds]], repeats: int) -> dict[str, Seconds]:
    """Calls all of them in turn, so many times, so that what else the machine does falls on each alike.

    Args:
        passes: by name; each returns the seconds of every kind of work that it did.
        repeats: how often.

    Returns:
        By name and kind, the seconds of all repeats in their order.
    """
    taken: dict[str, Seconds] = {name: {} for name in passes}
    for _ in range(repeats):
        for name, work in passes.items():
            for kind, seconds in work().items():
                taken[name].setdefault(kind, []).extend(seconds)
    return taken


def timing(seconds: Sequence[float], images: int) -> dict[str, float]:
    """The median of some times, and how many images a second that is."""
    median = statistics.median(seconds)
    return {"seconds": median, "images_per_s": images / median}


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Their time over ours, repeat by repeat: the median, the least and the most."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
