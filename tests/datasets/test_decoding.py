"""Image files of all kinds: 8 and 16 bits, damaged, too large, of pixels without a range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metapeft as mp
from metapeft.datasets import decoding
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


def disc(size: int = 16) -> np.ndarray:
    """True within a circle."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(x, y) < size / 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "webp", "L with a transparent value"])
@pytest.mark.parametrize("ground", ["white", "black"])
def test_transparent_pictures_stand_on_the_ground(mode: str, ground: str, tmp_path: Path) -> None:
    """A disc of grey 90 on what is transparent, which is black beneath, as icons are."""
    alpha = (255 * disc()).astype(np.uint8)
    grey = np.where(disc(), 90, 0).astype(np.uint8)
    colours = Image.fromarray(np.stack([grey, grey, grey, alpha], 2), "RGBA")
    if mode == "L with a transparent value":
        Image.fromarray(grey).save(tmp_path / "x.png", transparency=0)
    elif mode == "webp":
        colours.save(tmp_path / "x.webp", lossless=True)
    else:
        picture = colours.quantize(4) if mode == "P" else colours.convert(mode)
        picture.save(tmp_path / "x.png")
    (file,) = tmp_path.iterdir()
    expected = np.where(disc(), 90, 255 if ground == "white" else 0)
    for channels in (1, 3):
        found = decoded(file, 16, channels, ground)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1)


def test_transparency_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoding._say_once.cache_clear()
    for name in ("a", "b"):
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / f"{name}.png")
        assert (decoded(tmp_path / f"{name}.png", 8, 3) == 255).all()
    assert [record.message for record in caplog.records] == [
        "some images are transparent: they are put on a white ground; ground= takes another"
    ]


def test_pictures_are_turned_as_the_camera_was(tmp_path: Path) -> None:
    upright = Image.fromarray(np.where(np.arange(16) < 8, 200, 20)[:, None].repeat(16, 1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it to the right by 90 degrees
    upright.rotate(90).save(tmp_path / "x.jpg", exif=exif, quality=100)
    found = decoded(tmp_path / "x.jpg", 16, 1)[0]
    np.testing.assert_allclose(found, np.asarray(upright), atol=12)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_grey_maps_of_sixteen_bits(largest: int, tmp_path: Path) -> None:
    values = (RAMP / 65535 * largest).round().astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 %d\n" % largest + values.tobytes())
    np.testing.assert_allclose(decoded(tmp_path / "x.pgm", 16, 1)[0], RAMP / 257, atol=0.6)
