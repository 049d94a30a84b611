"""A safe reader of pickled arrays, which calls no code that the file names.

A pickle may name and call any callable. This reader accepts only three names, those that rebuild an array, and
replaces them with plain stand-ins, because NumPy's originals trust sizes and object pointers in the file.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from cudfkd_jax.data.base import one_line
from cudfkd_jax.runtime.errors import UserError

_NUMBERS = re.compile("b1|[iuf][1248]")


class _DType:
    """A stand-in for `numpy.dtype(code, align, copy)`, restricted to numbers."""

    def __init__(self, code: str, *_: object):
        if not _NUMBERS.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A stand-in for the empty array that `_reconstruct(ndarray, (0,), b'b')` returns before its state is set."""

    def __init__(self, *_: object):
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, raw = state
        if isinstance(raw, str):  # Python 2 did not distinguish bytes from text
            raw = raw.encode("latin-1")
        self.value = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")


_STAND_INS = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): None,  # never called, only passed as an argument
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # its name since NumPy 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"the name {module}.{name}")
        return _STAND_INS[module, name]


def load_arrays(path: Path) -> dict[str, Any]:
    """Reads a pickled dictionary of arrays, lists, strings and numbers, written by Python 2 or 3.

    Raises:
      UserError: the file is damaged or contains anything else, none of which is executed.
      OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin-1").load()
        items = dict(content)
    # The opcodes of a damaged or hostile file raise errors of many types.
    except Exception as error:
        raise UserError(
            f"{path} is damaged or holds more than arrays, lists, strings and numbers ({one_line(error)}): "
            "nothing in it was run; fetch the official archive again"
        ) from error
    return {key: value.value if isinstance(value, _Array) else value for key, value in items.items()}
