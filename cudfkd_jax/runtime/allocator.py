"""The C library's allocator: memory that a step frees stays in the process for the next one."""

import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's parameter numbers
_LARGEST = 2**30  # bytes of a retained block; XLA allocates a step's temporary arrays as one


def keep_freed_memory() -> None:
    """Makes glibc retain freed blocks instead of returning them to the system; does nothing without glibc.

    XLA's CPU backend allocates a step's temporary arrays, tens to hundreds of megabytes, at its start and frees
    them at its end. By default glibc maps blocks of that size each time, so that every page is cleared and faults
    once per step, which takes a tenth of a bfloat16 step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
