"""Checkpoints: a tree of tensors and plain values as one safetensors file, written atomically, never pickled.

The tensors are entries of the file under their path in the tree; the tree itself, with what is not a tensor,
is JSON in the header of the file, and so is the SHA-256 of both. Any reader of safetensors can look inside.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metapeft.base.errors import RunError
from metapeft.base.files import write_atomically
from metapeft.base.reading import check_file, reading
from metapeft.base.state import sha256

FORMAT = "metapeft-checkpoint-2"
_BEFORE = "metapeft-checkpoint-1"  # of 0.2, without a SHA-256
_CAUSE = "it was cut short, changed, or is no safetensors file"


def save(
    path: str | os.PathLike[str],
    tree: Any,
    metadata: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Write a tree to one safetensors file; an older file at that path is replaced at once or not at all.

    A tree is a tensor, number, string, boolean, None, or a dict, list or tuple of trees (so: every
    `state_dict()` of torch). Keys of dicts may be strings, numbers, booleans, None or tuples of them.
    What comes back is equal bit for bit, but simpler: mappings come back as `dict`, tuples of any kind as
    `tuple`, tensors as contiguous leaves on the CPU; tensors that shared memory no longer do.

    Args:
        path: the file; its folder must exist.
        tree: what to keep.
        metadata: facts about it, for whoever opens the file: anything that JSON can say.
        beside: facts that `said_beside` reads without the tensors.

    Raises:
        ValueError: for something in the tree that is none of the above, named by its path.
        RunError: if the file cannot be written (no space, no permission); the older one is untouched.

    Example:
        >>> import tempfile
        >>> optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/latest.safetensors", optimizer.state_dict(), {"step": 3})
        ...     state, metadata = load(f"{folder}/latest.safetensors")
        >>> state == optimizer.state_dict(), metadata
        (True, {'step': 3})
    """
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT,
        "structure": json.dumps(_encode(tree, (), tensors)),
        "metadata": json.dumps(dict(metadata or {})),
        "beside": json.dumps(dict(beside or {})),
    }
    header["sha256"] = sha256(tensors, *header.values())
    write_atomically(path, safetensors.torch.save(tensors, header))


def load(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """Read what `save` wrote.

    Args:
        path: the file.

    Returns:
        The tree and the metadata; tensors are on the CPU.

    Raises:
        RunError: if the file is missing, damaged (one changed byte is seen), or was not written by `save`.

    Example:
        >>> load("nowhere.safetensors")
        Traceback (most recent call last):
        metapeft.base.errors.RunError: checkpoint nowhere.safetensors cannot be read: No such file or directory
    """
    with _opened(path) as file:
        header = file.metadata() or {}
        _check_format(path, header)
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no iterator)
        _check_sha256(header, tensors)
        return _decode(json.loads(header["structure"]), tensors), json.loads(header["metadata"])


def said_beside(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says `beside` its tree, which is not read, nor checked; `{}` where it says nothing."""
    with _opened(path) as file:
        found: dict[str, Any] = json.loads((file.metadata() or {}).get("beside", "{}"))
        return found


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts about a checkpoint that `save` was given; its tensors are not read, nor is anything checked."""
    with _opened(path) as file:
        found: dict[str, Any] = json.loads((file.metadata() or {}).get("metadata", "{}"))
        return found


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The file, open; what goes wrong in reading it is one sentence."""
    with reading(f"checkpoint {os.fspath(path)}"):
        check_file(path)
        try:
            with safe_open(os.fspath(path), framework="pt") as file:
                yield file
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, RunError):
                raise
            said = f"there is no {error}" if isinstance(error, KeyError) else error
            raise RunError(f"checkpoint {path} is damaged ({said}): {_CAUSE}") from error


def _check_format(path: str | os.PathLike[str], header: Mapping[str, str]) -> None:
    if header.get("format") not in (FORMAT, _BEFORE):
        raise RunError(
            f"checkpoint {path} was not written by metapeft: its format is {header.get('format')!r}, "
            f"not {FORMAT!r}; weights of other programs are read with safetensors itself"
        )


def _check_sha256(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless tensors and header are what was written; a file of before has no SHA-256."""
    said = dict(header)
    expected = said.pop("sha256", None)
    if expected is None and set(said) == {"format", "structure", "metadata"} and said["format"] == _BEFORE:
        return
    texts = [said[name] for name in ("format", "structure", "metadata", "beside")]
    if expected != sha256(tensors, *texts) or len(said) != len(texts):
        raise ValueError("its SHA-256 is not that of what was written")


def _encode(value: Any, path: tuple[Any, ...], tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a tree, whose tensors are put into `tensors`; an object of JSON names its own kind."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):  # JSON keeps finite doubles exactly, and has no others
        return float(value) if math.isfinite(value) else {"float": float(value).hex()}
    if isinstance(value, Tensor):
        return {"tensor": _add_tensor(value, path, tensors)}
    if isinstance(value, Mapping):
        pairs = (
            (_encode_key(key, path), _encode(item, (*path, key), tensors)) for key, item in value.items()
        )
        return {"dict": [list(pair) for pair in pairs]}
    if isinstance(value, list | tuple):
        items = [_encode(item, (*path, index), tensors) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise ValueError(
        f"{_name(path)} is a {type(value).__name__}: a checkpoint holds tensors, numbers, strings, booleans, "
        "None, and dicts, lists and tuples of them"
    )


def _encode_key(key: Any, path: tuple[Any, ...]) -> Any:
    if isinstance(key, tuple):
        return {"tuple": [_encode_key(part, path) for part in key]}
    if key is None or isinstance(key, str | int | float):
        return _encode(key, path, {})
    raise ValueError(f"{_name(path)} has a key of type {type(key).__name__}: {key!r}")


def _add_tensor(tensor: Tensor, path: tuple[Any, ...], tensors: dict[str, Tensor]) -> str:
    """Put a plain copy of the tensor into `tensors` under a name that is free there; return the name."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{_name(path)} is a tensor of {tensor.dtype} ({tensor.layout}, on {tensor.device}): "
            "a checkpoint holds dense tensors with values, of a type that safetensors knows"
        )
    name = _name(path)
    while name in tensors or name == "__metadata__":  # the keys 0 and "0" have one name; the last is reserved
        name += "'"
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    tensors[name] = plain.clone(memory_format=torch.contiguous_format)
    return name


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    if kind == "float":
        return float.fromhex(content)
    raise KeyError(f"unknown node {kind!r}")


def _name(path: Iterable[Any]) -> str:
    return "/".join(str(part) for part in path) or "tree"


_DTYPES = frozenset(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2"),
    )
)
