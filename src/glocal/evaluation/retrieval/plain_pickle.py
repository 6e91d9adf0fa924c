"""Read a pickle without running anything it names: for ground-truth files that were only ever written as pickles."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from glocal.errors import DataError

# What the standard unpickler, or a stand-in, raises on bytes that make no sense.
_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, MemoryError, OverflowError, RecursionError)


def load_plain_pickle(path: Path) -> Any:
    """Load a pickle that may hold only dicts, lists, tuples, sets, strings, bytes, numbers and numeric NumPy arrays.

    No class or function named by the file is ever called: NumPy's are answered by stand-ins which build the array from
    its bytes. Python 2 strings are read as Latin-1.

    Raises:
        DataError: for anything else in the file, naming it.
    """
    try:
        with path.open("rb") as file:
            return _build_arrays(_PlainUnpickler(file, encoding="latin1").load())
    except (OSError, EOFError, pickle.UnpicklingError, *_MALFORMED) as error:
        raise DataError(f"{path} is no pickle of plain containers, numbers and arrays: {error}") from error


class _ArrayStandIn:
    """Takes the place of an array (or of a dtype, or of one scalar) while its parts arrive."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DtypeStandIn(_ArrayStandIn):
    def resolve(self) -> np.dtype[Any]:
        name = self.arguments[0]
        if not isinstance(name, str) or name[:1] not in "iufb" or not name[1:].isdigit():
            raise ValueError(f"arrays of type {name!r} aren't plain numbers")
        big = self.state is not None and self.state[1] == ">"
        kind: np.dtype[Any] = np.dtype(name).newbyteorder(">" if big else "<")
        return kind


class _ReconstructStandIn(_ArrayStandIn):
    def resolve(self) -> NDArray[Any]:
        _, shape, dtype, fortran, raw = self.state
        return _array(raw, dtype, shape, "F" if fortran else "C")


class _FromBufferStandIn(_ArrayStandIn):
    def resolve(self) -> NDArray[Any]:
        raw, dtype, shape, order = self.arguments
        return _array(raw, dtype, shape, order)


class _ScalarStandIn(_ArrayStandIn):
    def resolve(self) -> Any:
        dtype, raw = self.arguments
        return _array(raw, dtype, (), "C").item()


def _array(raw: Any, dtype: Any, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    if not isinstance(dtype, _DtypeStandIn):
        raise ValueError("an array without a type")
    raw = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(raw, dtype=dtype.resolve()).reshape(shape, order="F" if order == "F" else "C")


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Python 3 writes bytes as `_codecs.encode(text, "latin1")` in protocol 2; no other codec is followed."""
    if encoding != "latin1":
        raise ValueError(f"codec {encoding!r} isn't followed")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ReconstructStandIn for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _ScalarStandIn for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FromBufferStandIn for core in ("core", "_core")},
    ("numpy", "ndarray"): _ArrayStandIn,
    ("numpy", "dtype"): _DtypeStandIn,
    ("_codecs", "encode"): _latin1_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("builtins", "bytearray"): bytearray,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names '{module}.{name}', which isn't a plain value")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside the file")


def _build_arrays(value: Any) -> Any:
    """Replace every stand-in by its array."""
    if isinstance(value, dict):
        return {_build_arrays(key): _build_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_build_arrays(item) for item in value)
    if isinstance(value, _ArrayStandIn):
        if not hasattr(value, "resolve"):
            raise ValueError("it holds a NumPy object that is no array")
        return value.resolve()
    return value
