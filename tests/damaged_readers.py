"""The readers that damaged files are given to, each with a whole file of its kind."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metapeft as mp
from metapeft.cli.config_file import from_file
from metapeft.cli.shell import app
from metapeft.cli.sweep_jobs import numbers_of
from metapeft.datasets import store
from metapeft.datasets.decoding import decoded
from metapeft.datasets.images import ImageData
from metapeft.datasets.miniimagenet_rows import read_rows
from metapeft.datasets.omniglot_files import Folders, Torchmeta, Zips
from metapeft.episodes import listing
from metapeft.experiments import results
from metapeft.training.runs import checkpoint
from metapeft.training.runs.run import Run
from metapeft.updates.peft_import import read_adapter
from theory.figures import rows


@dataclass(frozen=True)
class Reader:
    """A reader of a folder, and the file in it that is damaged.

    Args:
        make: fills a folder. read: of the folder. file: in it. own: whether the library wrote it, so that changes show.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    file: str
    own: bool = True


def _run(folder: Path) -> None:
    with Run.create(
        folder / "run", {"ways": 5, "lr": 0.1, "learner": {"method": "maml", "steps": [1, 2]}}
    ) as run:
        for step in range(4):
            run.log(step, loss=1.0 / (1 + step), name="x")
        run.save(
            "latest", {"w": torch.arange(24.0).view(4, 6), "n": 3, "nested": [1.5, ("a", None)]}, {"step": 3}
        )


def _read_run(folder: Path) -> Any:
    with Run.open(folder / "run", writable=False) as run:
        return run.config, run.environment, run.metrics()


def _network() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for number, value in enumerate(net.parameters()):
            value.copy_(torch.arange(value.numel()).view(value.shape) / 10 + number)
    return net


def _adapter(folder: Path) -> None:
    model = mp.attach(_network(), {"0.weight": mp.LoRA(2), "2.weight": mp.LoRA(0)})
    factors = {name: torch.ones_like(value[0]) for name, value in model.factors().items()}
    mp.export_peft(model, factors, folder / "adapter", weights={"0.bias": torch.ones(4)})


def _read_adapter(folder: Path) -> Any:
    net = mp.load_base(_network(), folder / "adapter")
    formats, factors = read_adapter(folder / "adapter", net)
    return {name: repr(value) for name, value in formats.items()}, factors, dict(net.state_dict())


def _foreign(folder: Path) -> None:
    _adapter(folder)
    (folder / "adapter" / "metapeft.json").unlink()
    shutil.rmtree(folder / "adapter" / "base")


def _read_foreign(folder: Path) -> Any:
    formats, factors = read_adapter(folder / "adapter", _network())
    return {name: repr(value) for name, value in formats.items()}, factors


PIXELS = np.arange(3 * 12 * 12, dtype=np.uint8).reshape(12, 12, 3)


def _picture(name: str, mode: str = "RGB", **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        image = Image.fromarray(PIXELS).convert(mode)
        if mode == "I;16":
            image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 250)
        image.save(folder / name, **options)

    return make


def _decode(name: str) -> Callable[[Path], Any]:
    return lambda folder: decoded(folder / name, 8, 3)


def _table(folder: Path) -> None:
    lines = ["filename,label", *(f"n{c}{i}.jpg,n{c}" for c in range(3) for i in range(4))]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def _drawings() -> dict[str, bytes]:
    found = {}
    for number in range(2):
        file = io.BytesIO()
        Image.fromarray(np.full((105, 105), 255 * number, np.uint8)).convert("1").save(file, "PNG")
        found[f"000{number}_01.png"] = file.getvalue()
    return found


def _zips(folder: Path) -> None:
    for name in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file, content in _drawings().items():
                archive.writestr(f"{name}/Latin/character01/{file}", content)


def _read_source(kind: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        source = kind(folder)
        return {path: source.read(path) for path in source.counts}

    return read


def _folders(folder: Path) -> None:
    for name in ("images_background", "images_evaluation"):
        (folder / name / "Latin" / "character01").mkdir(parents=True)
        for file, content in _drawings().items():
            (folder / name / "Latin" / "character01" / file).write_bytes(content)


def _hdf5(folder: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "data.hdf5", "w") as file:
        file["images_background/Latin/character01"] = np.zeros((2, 105, 105), np.uint8)


def _data() -> ImageData:
    return ImageData(torch.zeros(24, 1, 4, 4, dtype=torch.uint8), torch.arange(24) % 4, ["a", "b", "c", "d"])


def _list(folder: Path) -> None:
    listing.dump(mp.EpisodeSampler(_data(), 2, 1, 1, seed=3), 3, folder / "list.json")


def _results(folder: Path) -> None:
    cell = results.Cell(0.9, 0.01, values=[0.8, 1.0])
    row = results.Row("about", 12, {"scale": 1.0, "plain": {"steps": 5}}, columns={"plain": cell})
    results.write(folder / "results.json", results.Results({"ways": 5}, {"maml": row}))


def _options(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _read_options(name: str) -> Callable[[Path], Any]:
    return lambda folder: from_file(folder / name, app, ["train"]).config


STORED = np.arange(5 * 12, dtype=np.uint8).reshape(5, 1, 3, 4)


def _read_store(folder: Path) -> Any:
    return np.array(store.cached_images("x", ["a", 1], STORED.shape, lambda: iter([STORED])))


def _numbers(folder: Path) -> None:
    from metapeft.cli.sweep_jobs import keep_numbers

    (folder / "jobs").mkdir()
    keep_numbers(folder, {"maml-0": "7_0", "maml-1": "7_1"})


def _curves(folder: Path) -> None:
    rows.write(
        [rows.Row("d", 4.0, "lora-ml", 0, step, 0.5, 0.25) for step in (0, 1, "exact")], folder / "d.csv"
    )


JSON = json.dumps({"ways": 5, "shots": 1, "methods": ["maml", "protonet"], "width": 8, "quiet": True})
READERS: dict[str, Reader] = {
    "checkpoint": Reader(
        _run, lambda f: checkpoint.load(f / "run/checkpoints/latest.safetensors"), "run/checkpoints/latest.safetensors"
    ),
    "config": Reader(_run, _read_run, "run/config.json"),
    "environment": Reader(_run, _read_run, "run/environment.json"),
    "metrics": Reader(_run, _read_run, "run/metrics.jsonl"),
    "adapter": Reader(_adapter, _read_adapter, "adapter/adapter_model.safetensors"),
    "adapter's settings": Reader(_adapter, _read_adapter, "adapter/adapter_config.json"),
    "adapter's rest": Reader(_adapter, _read_adapter, "adapter/metapeft.json"),
    "adapter's base": Reader(_adapter, _read_adapter, "adapter/base/model.safetensors"),
    "foreign adapter": Reader(_foreign, _read_foreign, "adapter/adapter_model.safetensors", own=False),
    "foreign settings": Reader(_foreign, _read_foreign, "adapter/adapter_config.json", own=False),
    "store": Reader(lambda f: _read_store(f) is None and None, _read_store, "metapeft/*.npy"),
    "list": Reader(_list, lambda f: listing.verify(f / "list.json", _data()), "list.json"),
    "results": Reader(_results, lambda f: results.read(f / "results.json"), "results.json"),
    "jobs": Reader(_numbers, numbers_of, "jobs/submitted.json"),
    "theory": Reader(_curves, lambda f: rows.read(f / "d.csv"), "d.csv", own=False),
    "png": Reader(_picture("a.png"), _decode("a.png"), "a.png", own=False),
    "palette": Reader(_picture("p.png", "P"), _decode("p.png"), "p.png", own=False),
    "alpha": Reader(_picture("t.png", "RGBA"), _decode("t.png"), "t.png", own=False),
    "wide": Reader(_picture("w.png", "I;16"), _decode("w.png"), "w.png", own=False),
    "jpeg": Reader(_picture("a.jpg"), _decode("a.jpg"), "a.jpg", own=False),
    "gif": Reader(_picture("a.gif"), _decode("a.gif"), "a.gif", own=False),
    "bmp": Reader(_picture("a.bmp"), _decode("a.bmp"), "a.bmp", own=False),
    "tiff": Reader(_picture("a.tif"), _decode("a.tif"), "a.tif", own=False),
    "webp": Reader(_picture("a.webp"), _decode("a.webp"), "a.webp", own=False),
    "pgm": Reader(_picture("a.pgm", "L"), _decode("a.pgm"), "a.pgm", own=False),
    "table": Reader(
        _table, lambda f: read_rows(f / "train.csv", "train", ("n0", "n1", "n2"), None), "train.csv", own=False
    ),
    "zip": Reader(_zips, _read_source(Zips), "images_background.zip", own=False),
    "drawing": Reader(
        _folders, _read_source(Folders), "images_background/Latin/character01/0001_01.png", own=False
    ),
    "hdf5": Reader(_hdf5, _read_source(lambda f: Torchmeta(f / "data.hdf5")), "data.hdf5", own=False),
    "toml": Reader(
        _options("o.toml", 'ways = 5\nshots = 1\nmethods = ["maml", "protonet"]\n'), _read_options("o.toml"), "o.toml",
        own=False,
    ),
    "yaml": Reader(
        _options("o.yaml", "ways: 5\nshots: 1\nmethods: [maml, protonet]\n"), _read_options("o.yaml"), "o.yaml",
        own=False,
    ),
    "json": Reader(_options("o.json", JSON), _read_options("o.json"), "o.json", own=False),
}  # fmt: skip
