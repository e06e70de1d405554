"""From photos of one's own to named predictions, in the shell and in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metapeft as mp
from metapeft.cli import run
from metapeft.datasets.images import ImageData

NAMES = ("dark", "light")


def photo(light: bool, seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    random = np.random.default_rng(seed)
    low, high = (150, 256) if light else (0, 100)
    return Image.fromarray(random.integers(low, high, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of three examples, and four photos to be told apart."""
    root = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        (root / "examples" / name).mkdir(parents=True)
        for i in range(3):
            photo(name == "light", 10 + i).save(root / "examples" / name / f"{i}.png")
    for i in range(4):
        photo(i % 2 == 1, i).save(root / f"new{i}.jpg")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps; what it has to tell apart needs none."""
    folder = tmp_path_factory.mktemp("run") / "x"
    images = torch.randint(
        0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    data = ImageData(images, torch.arange(60) % 6, list("abcdef"))
    learner = mp.methods.protonet(
        mp.backbones.conv4(channels=3, width=8, size=16, blocks=2), preprocess=data.preprocess
    )
    mp.BilevelTrainer(learner, tasks_per_step=2, progress=False).fit(
        mp.EpisodeSampler(data, 3, 2, 2), 2, run_dir=folder
    )
    return folder


def test_the_shell_says_what_the_photos_are(trained: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    files = [str(photos / f"new{i}.jpg") for i in range(4)]
    out, picture = tmp_path / "found.json", tmp_path / "found.png"
    more = ["--support", str(photos / "examples"), "--json", str(out), "--picture", str(picture)]
    assert run(["predict", str(trained), *files, *more]) == 0
    assert "6 examples of 2 classes" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [row["class"] for row in found] == ["dark", "light", "dark", "light"]
    for row in found:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
    with Image.open(picture) as image:
        assert image.size[0] > image.size[1] > 100


def test_the_same_in_python(trained: Path, photos: Path) -> None:
    learner = mp.load(trained)
    assert learner.image_shape == (3, 16, 16)
    shown = mp.read_support(photos / "examples", like=learner)
    assert shown.classes == NAMES
    assert shown.images.shape == (6, 3, 16, 16)
    adapted = learner.adapt(shown.images, shown.labels, classes=shown.classes)
    images = mp.read_images([photos / f"new{i}.jpg" for i in range(4)], like=learner)
    names, probabilities = adapted.predict(images)
    assert names == ["dark", "light", "dark", "light"]
    torch.testing.assert_close(probabilities, adapted(images).softmax(-1))
    assert learner.adapt(shown.images, shown.labels).predict(images).names == ["0", "1", "0", "1"]
    one = mp.read_images(photos / "new0.jpg", size=16, channels=1)
    assert one.shape == (1, 1, 16, 16)
    assert torch.equal(mp.read_images(photos / "new0.jpg", like=images), images[:1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{photos}/gone.jpg", "--support", "{photos}/examples"], "gone.jpg is not there"),
        (["{photos}/examples", "--support", "{photos}/examples"], "one file an image"),
        (["{photos}/new0.jpg", "--support", "{photos}/examples/dark"], "holds no folders"),
        (["{photos}/new0.jpg", "--support", "{photos}/nothing"], "no folder"),
    ],
)
def test_what_is_not_there(
    trained: Path, photos: Path, arguments: list[str], sentence: str, capsys: Any
) -> None:
    given = [argument.format(photos=photos) for argument in arguments]
    assert run(["predict", str(trained), *given]) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_names_and_sizes_that_do_not_fit(photos: Path) -> None:
    learner = mp.methods.centroids(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)))
    with pytest.raises(ValueError, match="size= and channels= are missing"):
        mp.read_images(photos / "new0.jpg", like=learner)
    x, y = torch.randn(2, 3, 2, 2), torch.tensor([0, 1])
    for wrong in (["a"], ["a", "a"], "ab"):
        with pytest.raises(ValueError, match="one for each label"):
            learner.adapt(x, y, classes=wrong)
    many = learner.adapt_many(x.unsqueeze(0), y.unsqueeze(0))
    with pytest.raises(ValueError, match=r"task\(0\)"):
        many.predict(x.unsqueeze(0))
