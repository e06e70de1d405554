"""Pickles are read as data; none of what they ask for is run."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import metapeft as mp
from metapeft.datasets.forms.unpickler import array, load, text
from tests.datasets.forms import writers


class Runs:
    """An object whose pickle calls a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def stored(folder: Path, content: bytes) -> Path:
    file = folder / "data.pkl"
    file.write_bytes(content)
    return file


ARRAYS: list[NDArray[Any]] = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
    np.arange(3, dtype=">i4"),
    np.array([1.5, -2.0]),
    np.array(["one", "two"]),
    np.array([b"a", b"bc"]),
    np.zeros((0, 3), np.uint8),
    np.array(True),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_comes_out_as_it_was(protocol: int, tmp_path: Path) -> None:
    value = {
        "arrays": ARRAYS, "numbers": [1, -3, 2**70, 0.5, True, None], "nested": {"a": ({"b": [b"raw"]}, ())},
        "scalar": np.int64(7), "ordered": OrderedDict(one=1, two=2),
    }  # fmt: skip
    found = {text(key): entry for key, entry in load(stored(tmp_path, pickle.dumps(value, protocol))).items()}
    for mine, theirs in zip(found["arrays"], ARRAYS, strict=True):
        assert array(mine).dtype == theirs.dtype
        assert np.array_equal(array(mine), theirs)
    assert found["numbers"] == value["numbers"]
    assert found["scalar"] == 7
    assert dict(found["ordered"]) == {"one": 1, "two": 2}
    assert found["nested"]["a"][0]["b"] == [b"raw"]


def test_python_2_wrote_texts_as_bytes(tmp_path: Path) -> None:
    found = load(stored(tmp_path, b"\x80\x02}U\x06labelsU\x03n01s."))
    assert {text(key): text(value) for key, value in found.items()} == {"labels": "n01"}


HOSTILE = {
    "getattr": pickle.dumps(Runs(getattr, [], "append")),
    "numpy's load": b"cnumpy\nload\n(Vx\ntR.",
    "numpy's own modules": b"cnumpy.core.multiarray\nfromfile\n(Vx\ntR.",
    "an attribute of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93)R.",
    "a class of ours": pickle.dumps(Runs(mp.DataError, "x")),
    "an object of the old kind": b"(ios\nsystem\n.",
    "an object of the old kind, built": b"(cos\nsystem\nVtrue\no.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a persistent id": b"Pid\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of the array class": b"cnumpy\nndarray\n(I9\ntR.",
    "a changed function": b"cnumpy.core.multiarray\n_reconstruct\n}V__doc__\nV\ns}b.",
    "a call of a text": b"Vos\n)R.",
    "an array of objects": pickle.dumps(np.array([{}, []], dtype=object)),
    "records": pickle.dumps(np.zeros(2, dtype=[("a", "u1")])),
    "dates": pickle.dumps(np.zeros(2, dtype="M8[s]")),
    "a set": pickle.dumps({1, 2}),
    "another encoding": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
    "a place beyond all memory": b"\x80\x02]r\xff\xff\xff\xff.",
    "a text beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "an array of bytes beyond the file": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a frame beyond the file": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "nothing": b"",
    "something else": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_data_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    refuse(stored(tmp_path, HOSTILE[kind]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(protocol: int, tmp_path: Path) -> None:
    there = tmp_path / "there"
    for one in (
        Runs(os.system, f"touch {there}"),
        Runs(open, str(there), "w"),
        Runs(eval, f"open({str(there)!r}, 'w')"),
    ):
        refuse(stored(tmp_path, pickle.dumps({"data": [1, one]}, protocol)))
    assert not there.exists()


def refuse(file: Path) -> None:
    with pytest.raises(mp.DataError, match=r"data.pkl (is|holds|cannot)") as caught:
        load(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_it_wants_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        mp.DataError, match=r"is a pickle that wants to run (posix|nt).system: nothing of it was run"
    ):
        load(stored(tmp_path, pickle.dumps([1, Runs(os.system, "true")])))


def test_arrays_that_do_not_fit_their_bytes_are_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(np.zeros((4, 4), np.uint8), 2)
    assert b"K\x04K\x04\x86" in whole
    file = stored(tmp_path, whole.replace(b"K\x04K\x04\x86", b"K\xffK\xff\x86"))
    with pytest.raises(mp.DataError, match="is no whole pickle"):
        load(file)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cut_anywhere_it_is_refused(protocol: int, tmp_path: Path) -> None:
    whole = pickle.dumps(
        {"image_data": np.zeros((2, 2, 2, 3), np.uint8), "class_dict": {"n01": [0, 1]}}, protocol
    )
    for kept in range(protocol % 3, len(whole), 3):
        with pytest.raises(mp.DataError):
            load(stored(tmp_path, whole[:kept]))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damaged_anywhere_it_is_refused_or_data(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    protocol = data.draw(st.sampled_from([0, 2, 4, 5]))
    whole = bytearray(pickle.dumps({"data": np.arange(6, dtype=np.uint8), "labels": [0, 1, "x"]}, protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = load(stored(tmp_path_factory.mktemp("damaged"), bytes(whole)))
    except mp.DataError:
        return
    assert type(found).__module__ in ("builtins", "metapeft.datasets.forms.unpickler")


def test_a_frame_longer_than_memory_can_be(tmp_path: Path) -> None:
    whole = bytearray(pickle.dumps({"labels": [0, 1]}, 4))
    assert whole[2:3] == pickle.FRAME
    whole[10] = 255  # the last byte of its length
    with pytest.raises(mp.DataError, match="no whole pickle"):
        load(stored(tmp_path, bytes(whole)))


def test_every_opcode_of_objects_is_left_out() -> None:
    from metapeft.datasets.forms.unpickler import _OPCODES

    known = {opcode.name for opcode in pickletools.opcodes}
    assert known >= _OPCODES
    assert known - _OPCODES == {
        "PERSID", "BINPERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS",
        "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER",
    }  # fmt: skip


WRONG: dict[str, tuple[Any, str]] = {
    "no dict": ([1, 2], "holds no dict but a list"),
    "no pixels": ({"class_dict": {}}, "has no image_data or data or images, but class_dict"),
    "floats": (
        {"image_data": np.zeros((4, 8, 8, 3)), "class_dict": {}},
        r"must be images as uint8 .*, not float64",
    ),
    "no classes": ({"image_data": writers.block(["n01"])}, "has no class_dict and no labels"),
    "a place beyond": (
        {"image_data": writers.block(["n01"]), "class_dict": {"n01": [0, 1, 2, 9]}},
        "class n01 lists image 9, but there are 4",
    ),
    "an image in two classes": (
        {"image_data": writers.block(["n01"]), "class_dict": {"n01": [0, 1, 2], "n02": [2, 3]}},
        "image 2 is in two classes, n01 and n02",
    ),
    "an image in no class": (
        {"image_data": writers.block(["n01"]), "class_dict": {"n01": [0, 1, 3]}},
        "image 2 is in no class",
    ),
    "places that are texts": (
        {"image_data": writers.block(["n01"]), "class_dict": {"n01": ["a"]}},
        r"must have class_dict\['n01'\] as whole numbers",
    ),
    "too few labels": ({"data": writers.block(["n01"]), "labels": [0, 0, 0]}, "has 4 images and 3 labels"),
    "code": (Runs(os.system, "true"), "wants to run"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_caches_that_hold_something_else_say_what(kind: str, tmp_path: Path) -> None:
    value, message = WRONG[kind]
    writers.dump(tmp_path / "mini-imagenet-cache-train.pkl", value)
    with pytest.raises(mp.DataError, match=message):
        mp.load_dataset("miniimagenet", tmp_path, per_class=None)
