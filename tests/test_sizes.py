"""What says that it is large is refused before it takes memory or time."""

from __future__ import annotations

import os
import resource
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metapeft as mp
from metapeft.base.reading import read_json
from metapeft.cli.config_file import from_file
from metapeft.cli.shell import app
from metapeft.datasets.decoding import decoded
from metapeft.training.runs import checkpoint


def png(width: int, height: int, bits: int) -> bytes:
    """A grey picture of zeros, a few hundred kilobytes whatever its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed, row = zlib.compressobj(9), bytes(1 + width * bits // 8)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_picture_of_a_hundred_million_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(13300, 13300, 16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        mp.DataError, match=r"a.png has 13300 x 13300 pixels, more than the 67108864 that are read"
    ):
        decoded(tmp_path / "a.png", 84, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_sixteen_bits_as_eight(tmp_path: Path) -> None:
    from PIL import Image

    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "w.png")
    expected = np.round(values / 257).astype(np.uint8)
    assert np.array_equal(decoded(tmp_path / "w.png", 32, 1)[0], expected)


@pytest.mark.skipif(os.name == "nt", reason="pipes with names are POSIX's")
@pytest.mark.parametrize("name", ["a.png", "a.json"])
def test_a_pipe_blocks_nobody(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="it is no file, but a pipe"):
        decoded(tmp_path / name, 8, 3) if name.endswith("png") else read_json(tmp_path / name)


def test_a_label_is_not_a_number_of_ways() -> None:
    learner = mp.methods.protonet(mp.backbones.mlp(4, 3, hidden=(8,)))
    with pytest.raises(
        ValueError, match="support_y has labels up to 200000000: they would be 200000001 ways"
    ):
        learner.adapt(torch.randn(2, 4), torch.tensor([0, 200_000_000]))


def test_names_in_yaml_that_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"bomb.yaml.*it has an anchor or an alias"):
        from_file(tmp_path / "bomb.yaml", app, ["train"])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
@pytest.mark.parametrize("name", ["deep.json", "deep.yaml"])
def test_deep_options(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        from_file(tmp_path / name, app, ["train"])


@pytest.mark.parametrize("rule", ["threshold", "total", "parameters", "uniform", "shuffled", "random"])
def test_ranks_of_many_layers(rule: str) -> None:
    layers = {f"layer{n}": torch.zeros(4) for n in range(20_000)}
    options: dict[str, Any] = {} if rule == "threshold" else {"total": 40_000}
    if rule == "parameters":
        options["costs"] = dict.fromkeys(layers, 1)
    began = time.monotonic()
    found = mp.ranks(layers, rule, **options)
    assert sum(found.values()) == (80_000 if rule == "threshold" else 40_000)
    assert time.monotonic() - began < 30


def test_the_sum_of_a_large_checkpoint_is_quick(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x.safetensors", {"w": torch.zeros(2**22)})
    began = time.process_time()
    checkpoint.load(tmp_path / "x.safetensors")
    assert time.process_time() - began < 1.0  # 16 MiB
