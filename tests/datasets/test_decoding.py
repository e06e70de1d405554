"""Image files of all kinds: 8 and 16 bits, damaged, too large, of pixels without a range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metapeft as mp
from metapeft.datasets.decoding import decoded

RAMP = np.linspace(0, 65535, 16 * 16).reshape(16, 16)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(suffix: str, channels: int, tmp_path: Path) -> None:
    file = tmp_path / f"grey.{suffix}"
    Image.fromarray(RAMP.astype(np.uint16)).save(file)
    pixels = decoded(file, 16, channels)
    assert pixels.shape == (channels, 16, 16)
    for channel in pixels:
        np.testing.assert_allclose(channel, RAMP / 257, atol=0.6)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype: type, tmp_path: Path) -> None:
    Image.fromarray((RAMP / 65535).astype(dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(mp.DataError, match=r"x\.tiff has pixels of 32 bits"):
        decoded(tmp_path / "x.tiff", 16, 1)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(RAMP.astype(np.uint8)).save(file)
    whole = file.read_bytes()
    places = [whole.index(name) for name in (b"IHDR", b"IDAT", b"IEND")]
    damaged = [whole[:end] for end in (0, 10, 40)]
    damaged += [whole[:place] + b"?!?!" + whole[place + 4 :] for place in places[:2]]
    damaged.append(whole[: places[0] + 4] + b"\xff" * 8 + whole[places[0] + 12 :])  # its size
    (tmp_path / "x.ppm").write_bytes(b"P6 8 x 255 ")
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(mp.DataError, match=r"x\.png is no whole image"):
            decoded(file, 16, 1)
    with pytest.raises(mp.DataError, match=r"x\.ppm is no whole image"):
        decoded(tmp_path / "x.ppm", 16, 1)


def test_a_picture_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(mp.DataError, match=r"x\.png is no whole image .*decompression bomb"):
        decoded(tmp_path / "x.png", 16, 1)
