"""Pickles read without running any of what they ask for: arrays, lists, tuples, dicts, texts and numbers, nothing else.

A pickle is a program. Here it is first read through, opcode by opcode: what can only be needed for objects is refused,
and so are lengths and places beyond the file, before anything is allocated. Then it is loaded with stand-ins for the
few functions by which NumPy arrays, bytes and ordered dicts are written; every other name is refused. What comes out
can hold no more bytes than the file.
"""

from __future__ import annotations

import mmap
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base.errors import DataError

_DATA = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE EMPTY_LIST
    APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS POP DUP MARK
    POP_MARK GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD PROTO STOP
    FRAME
"""
_OPCODES = frozenset(_DATA.split())
_PLACES = frozenset({"GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT"})
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_KINDS = "?bhilqBHILQefdSU"  # letters of NumPy types without objects


class _Refused(Exception):
    """Why a pickle is not read."""


def load(file: Path) -> Any:
    """What a pickle of data holds; arrays and dtypes in it are taken out with `array` and `text`.

    Raises:
        DataError: a pickle that asks for anything but data, is damaged or cut short.
    """
    try:
        with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check(content)
            content.seek(0)
            return _Unpickler(content, encoding="bytes").load()
    except _Refused as error:
        raise DataError(
            f"{file} {error}: nothing of it was run; pickles of data hold arrays, lists, dicts, texts and numbers only"
        ) from None
    except (OSError, MemoryError) as error:
        raise DataError(f"{file} cannot be read ({error})") from None
    # a damaged program trips over whatever it happens to say, and pickle documents no list of errors
    except Exception as error:
        raise DataError(
            f"{file} is no whole pickle ({error or type(error).__name__}): was its download cut short? Fetch it again"
        ) from None


def array(value: Any) -> Any:
    """The array that a stand-in holds; a list of whole numbers as an array; everything else as it is."""
    if isinstance(value, _Array):
        return value.found()
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return np.array(value, dtype=np.int64)
    return value


def text(value: Any) -> Any:
    """Bytes of Python 2's texts as text; everything else as it is."""
    return value.decode("latin1") if isinstance(value, bytes) else value


def items(value: Any, file: Path) -> dict[str, Any]:
    """The entries of a dict by their names, as text; DataError where it is none."""
    if not isinstance(value, dict):
        raise DataError(f"{file} holds no dict but a {type(value).__name__}: is it another data set's?")
    return {str(text(key)): entry for key, entry in value.items()}


def texts(value: Any) -> list[str] | None:
    """A list (or array) of texts; None for anything else."""
    found = array(value)
    if isinstance(found, np.ndarray) and found.ndim == 1:
        found = found.tolist()
    if not isinstance(found, list | tuple):
        return None
    named = [text(one) for one in found]
    return named if all(isinstance(one, str) for one in named) else None


def _check(content: mmap.mmap) -> None:
    size = len(content)
    for opcode, argument, _ in pickletools.genops(content):  # type: ignore[arg-type]  # all that it needs is read
        if opcode.name not in _OPCODES:
            raise _Refused(f"is a pickle of objects ({opcode.name})")
        if opcode.name in _PLACES and not 0 <= int(str(argument)) <= size:
            raise _Refused("is a pickle that asks for more memory than its size")
        if opcode.name == "GLOBAL":
            _known(*str(argument).split(" ", 1))


def _known(module: str, name: str = "") -> str:
    found = _GLOBALS.get((module, name))
    if found is None:
        raise _Refused(f"is a pickle that wants to run {module}.{name}")
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Global(_known(module, name))


class _Global:
    """What stands for one of NumPy's functions; made anew each time, so that nothing can be left on it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *given: Any) -> Any:
        return _CALLS[self._name](*given)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("is a pickle that wants to change a function")


class _Array:
    """An array, once its state is set."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("holds an array that NumPy did not write")
        _, shape, kind, fortran, raw = state
        self._found = _filled(raw, kind, shape, "F" if fortran else "C")

    def found(self) -> NDArray[Any]:
        if self._found is None:
            raise DataError("a pickle holds an array without content: was it damaged? Fetch it again")
        return self._found


class _Dtype:
    """A NumPy type without objects and fields."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = text(code), "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 7 or any(part is not None for part in state[2:5]):
            raise _Refused("holds an array of records, not of numbers")
        self.order = text(state[1])

    def dtype(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or self.order not in ("<", ">", "=", "|"):
            raise _Refused("holds an array of an unknown type")
        found = np.dtype(self.code)
        if found.char not in _KINDS:
            raise _Refused("holds an array of objects, which may be of any kind")
        return found if self.order in "|=" else found.newbyteorder("<" if self.order == "<" else ">")


def _filled(raw: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
    if isinstance(raw, list):
        raise _Refused("holds an array of objects, which may be of any kind")
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if not isinstance(kind, _Dtype) or not isinstance(raw, bytes | bytearray):
        raise _Refused("holds an array that NumPy did not write")
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise _Refused("holds an array without a shape")
    found = np.frombuffer(raw, kind.dtype()) if len(raw) else np.zeros(0, kind.dtype())
    return found.reshape(shape, order="F" if order in ("F", b"F") else "C")


def _scalar(kind: Any, raw: Any) -> Any:
    return _filled(raw, kind, (1,), "C")[0].item()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    found = _Array()
    found.__setstate__((1, shape, kind, order in ("F", b"F"), raw))
    return found


def _encoded(value: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(value, str) or text(encoding) not in ("latin1", "latin-1"):
        raise _Refused("is a pickle that wants to run _codecs.encode")
    return value.encode("latin1")


def _no_call(*_: Any) -> Any:
    raise _Refused("is a pickle that wants to call numpy.ndarray")


_GLOBALS: dict[tuple[str, str], str] = {
    **{(module, "_reconstruct"): "array" for module in _MODULES},
    **{(module, "scalar"): "scalar" for module in _MODULES},
    **{(module, "_frombuffer"): "buffer" for module in _NUMERIC},
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "dict",
    **{(module, "bytes"): "nothing" for module in ("__builtin__", "builtins")},
}
_CALLS: dict[str, Any] = {
    "array": lambda *_: _Array(),
    "scalar": _scalar,
    "buffer": _from_buffer,
    "class": _no_call,
    "dtype": _Dtype,
    "encode": _encoded,
    "dict": lambda pairs=(): dict(pairs),
    "nothing": lambda: b"",  # how protocols 0 to 2 write empty bytes; with arguments it is a TypeError
}


def whole_numbers(value: Any, file: Path, name: str) -> Sequence[int]:
    """A list or array of whole numbers of at least 0, as Python's own; DataError for anything else."""
    found = array(value)
    if isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind in "iu":
        numbers: list[int] = found.tolist()
        if all(number >= 0 for number in numbers):
            return numbers
    raise DataError(f"{file} must have {name} as whole numbers of at least 0, one for each image")
