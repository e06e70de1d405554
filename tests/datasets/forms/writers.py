"""One small set of images, written in every form in which people have theirs."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Classes = Mapping[str, Sequence[str]]
EACH = 4  # images a class
ALIASES = {"val": "validation"}


def pixels(name: str, size: int = 12, each: int = EACH) -> Pixels:
    """The images of a class, `(each, size, size, 3)`, told by its name."""
    seed = int.from_bytes(name.encode()[-6:], "big")
    return np.random.default_rng(seed).integers(0, 256, (each, size, size, 3), dtype=np.uint8)


def png(image: Pixels) -> bytes:
    """An image, encoded without loss."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def block(names: Sequence[str], size: int = 12) -> Pixels:
    """The images of some classes, class by class."""
    return np.concatenate([pixels(name, size) for name in names])


def folders(root: Path, classes: Classes, *, split: bool = False) -> None:
    """A folder a class; with `split` below train/, val/ and test/."""
    for part, names in classes.items():
        for name in names:
            folder = root / part / name if split else root / name
            folder.mkdir(parents=True)
            for i, image in enumerate(pixels(name)):
                (folder / f"{name}_{i}.png").write_bytes(png(image))


def rows(root: Path, classes: Classes) -> None:
    """images/ beside three CSV files."""
    (root / "images").mkdir(parents=True)
    for part, names in classes.items():
        listed = [(f"{name}_{i}.png", name) for name in names for i in range(EACH)]
        for name in names:
            for i, image in enumerate(pixels(name)):
                (root / "images" / f"{name}_{i}.png").write_bytes(png(image))
        with (root / f"{part}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("filename", "label"), *listed])


def dump(file: Path, value: Any, protocol: int = 4) -> None:
    """A pickle in a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(value, protocol))


def caches(root: Path, classes: Classes, protocol: int = 4) -> None:
    """learn2learn's and Ren's: `image_data` and `class_dict`, whose validation file is `...-validation.pkl`."""
    for part, names in classes.items():
        places = {name: list(range(i * EACH, (i + 1) * EACH)) for i, name in enumerate(names)}
        file = root / f"mini-imagenet-cache-{ALIASES.get(part, part)}.pkl"
        dump(file, {"image_data": block(names), "class_dict": places}, protocol)


def metaoptnet(root: Path, classes: Classes) -> None:
    """MetaOptNet's: `data`, numbers as `labels`, and `catname2label`."""
    for part, names in classes.items():
        numbers = [i for i in range(len(names)) for _ in range(EACH)]
        named = {name: i for i, name in enumerate(names)}
        file = root / f"miniImageNet_category_split_{part}.pickle"
        dump(file, {"data": block(names), "labels": numbers, "catname2label": named}, 2)


def torchmeta(root: Path, classes: Classes, *, encoded: bool = False) -> None:
    """torchmeta's HDF5, of pixels or of encoded images."""
    h5py = pytest.importorskip("h5py")
    root.mkdir(parents=True, exist_ok=True)
    for part, names in classes.items():
        (root / f"{part}_labels.json").write_text(json.dumps(list(names)))
        with h5py.File(root / f"{part}_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for name in names:
                if encoded:
                    node = group.create_dataset(name, (EACH,), dtype=h5py.special_dtype(vlen=np.uint8))
                    for i, image in enumerate(pixels(name)):
                        node[i] = np.frombuffer(png(image), np.uint8)
                else:
                    group.create_dataset(name, data=pixels(name))


def parquet(root: Path, classes: Classes, *, pieces: int = 2, names_in_file: bool = True) -> None:
    """Parquet as the hub has it: rows of a split shuffled over several files, labels as numbers."""
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet as files

    (root / "data").mkdir(parents=True)
    listed = [name for names in classes.values() for name in names]
    features = {"image": {"_type": "Image"}, "label": {"names": listed, "_type": "ClassLabel"}}
    for part, names in classes.items():
        images = [{"bytes": png(image), "path": None} for name in names for image in pixels(name)]
        labels = [listed.index(name) for name in names for _ in range(EACH)]
        # shuffled, but so that the images of a class keep their order
        order = sorted(range(len(labels)), key=lambda i: (i % EACH, i))
        table = pa.table({"image": [images[i] for i in order], "label": [labels[i] for i in order]})
        if names_in_file:
            described = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": described})
        size = -(-len(order) // pieces)
        for piece in range(pieces):
            name = f"{ALIASES.get(part, part)}-{piece:05d}-of-{pieces:05d}.parquet"
            files.write_table(table.slice(piece * size, size), root / "data" / name)


FORMS: dict[str, Callable[[Path, Classes], None]] = {
    "csv": rows,
    "class folders": folders,
    "split folders": lambda root, classes: folders(root, classes, split=True),
    "learn2learn's pickles": caches,
    "pickles of protocol 2": lambda root, classes: caches(root, classes, 2),
    "pickles of protocol 5": lambda root, classes: caches(root, classes, 5),
    "pickles of protocol 0": lambda root, classes: caches(root, classes, 0),
    "MetaOptNet's pickles": metaoptnet,
    "HDF5": torchmeta,
    "HDF5 of encoded images": lambda root, classes: torchmeta(root, classes, encoded=True),
    "Parquet": parquet,
}
NEEDS = {"HDF5": "h5py", "HDF5 of encoded images": "h5py", "Parquet": "pyarrow"}


def write(form: str, root: Path, classes: Classes) -> Path:
    """The set in a form; skips where its library is not installed."""
    library = NEEDS.get(form)
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    FORMS[form](root, classes)
    return root
