"""Tensors that cost a while to make, written once to the cache folder and read from then on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from metapeft.base.files import cache_folder, write_atomically

_log = logging.getLogger("metapeft")


def stored_tensors(
    name: str, identity: Any, make: Callable[[], Mapping[str, Tensor]], what: str = "the texts are tokenised"
) -> dict[str, Tensor]:
    """Tensors by name, made at the first call and read at later ones; a damaged file is written again.

    Where the cache folder cannot be written they are made each time, and a line in the log says so.

    Args:
        name: begins the file's name.
        identity: whatever the content depends on, of types that JSON has; another identity is another file.
        make: gives the tensors. what: is done by it, for the log.

    Example:
        >>> import os, tempfile, torch
        >>> from unittest import mock
        >>> with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        ...     first, again = (stored_tensors("x", 1, lambda: {"x": torch.rand(2)})["x"] for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    from safetensors.torch import load, save

    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    file = cache_folder() / f"{name}-{digest}.safetensors"
    beside = file.with_suffix(".sha256")
    if file.is_file():
        content = file.read_bytes()
        if not beside.exists() or beside.read_text() == hashlib.sha256(content).hexdigest():
            try:
                return load(content)
            except Exception as error:
                _log.warning("%s is damaged (%s): %s anew", file, error, what)
    made = {key: value.contiguous() for key, value in make().items()}
    content = save(made)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        write_atomically(file, content)
        write_atomically(beside, hashlib.sha256(content).hexdigest().encode())
    except OSError as error:
        _log.warning("cannot use the cache %s (%s): %s each time", file, error, what)
    return made
