"""The C library's allocator: memory that a step gives back stays in the process for the next one."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's numbers of them
_LARGEST = 2**30  # bytes of a block that is kept; XLA asks for a step's temporary arrays as one


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks instead of returning them to the system; does nothing elsewhere.

    XLA's CPU backend allocates a step's temporary arrays, tens to hundreds of megabytes, when it begins and frees
    them when it ends. glibc maps blocks of that size anew each time, so that every page of them is cleared and
    faults once a step: a tenth of the time of a step in bfloat16.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
