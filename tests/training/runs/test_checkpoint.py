"""Checkpoints: exact round trips, atomic replacement, refusal of what is foreign or cut short."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections import OrderedDict, namedtuple

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metapeft as mp
from metapeft.training.runs import checkpoint

DTYPES = sorted(checkpoint._DTYPES, key=str)


def same(a, b) -> bool:
    """Equal in value, type and order of keys; floats and tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return bytes(a.contiguous().reshape(-1).view(torch.uint8)) == bytes(b.reshape(-1).view(torch.uint8))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=False)
        return len(a) == len(b) and all(same(k, q) and same(v, w) for (k, v), (q, w) in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a.hex() == b.hex() if isinstance(a, float) else a == b


def round_trip(tree, folder, metadata=None):
    checkpoint.save(folder / "x.safetensors", tree, metadata)
    return checkpoint.load(folder / "x.safetensors")


scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    ),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 9),
)
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.text(), st.integers())
trees = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(tree=trees)
def test_round_trip(tree, tmp_path_factory):
    found, metadata = round_trip(tree, tmp_path_factory.getbasetemp())
    assert same(tree, found)
    assert metadata == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_bits_of_a_type(dtype, tmp_path):
    """Random bytes, so NaNs with a payload, denormals and both zeros."""
    size = dtype.itemsize
    raw = torch.randint(0, 256, (40 * size,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tensor = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype)
    assert same(tensor, round_trip(tensor, tmp_path)[0])


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, 0.1, 1 / 3, 1.7e308]
)
def test_floats(value, tmp_path):
    assert same([value, {value: value}], round_trip([value, {value: value}], tmp_path)[0])


def test_views_and_ties(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tree = {
        "transposed": base.T,
        "strided": base[::2, 1::2],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "tied": [base, base],
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 5),
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    found, _ = round_trip(tree, tmp_path)
    for name in tree.keys() - {"tied"}:
        assert torch.equal(found[name], tree[name]), name
        assert found[name].is_contiguous()
        assert not found[name].requires_grad
    found["tied"][0].zero_()
    assert torch.equal(found["tied"][1], base)


def test_names_that_collide(tmp_path):
    a, b, c, d = (torch.tensor(float(i)) for i in range(4))
    tree = {0: a, "0": b, "x/y": c, "x": {"y": d}, "__metadata__": a, "tree": b, "": c}
    assert same(tree, round_trip(tree, tmp_path)[0])
    assert same(a, round_trip(a, tmp_path)[0])


def test_optimizer_goes_on_exactly(tmp_path):
    """A resumed Adam makes the same steps, bit for bit."""

    def steps(net, optimizer, scheduler, count):
        for index in range(count):
            optimizer.zero_grad()
            (net(torch.full((2, 3), float(index))) ** 2).sum().backward()
            optimizer.step()
            scheduler.step()

    def fresh():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, amsgrad=True)
        return net, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    with torch.random.fork_rng(devices=[]):
        first = fresh()
        steps(*first, 3)
        state, metadata = round_trip([part.state_dict() for part in first], tmp_path, {"step": 3})
        steps(*first, 4)
        second = fresh()
    for part, saved in zip(second, state, strict=True):
        part.load_state_dict(saved)
    steps(*second, 4)
    assert metadata == {"step": 3}
    assert torch.equal(first[0].weight, second[0].weight)


def test_kinds_become_plain(tmp_path):
    pair = namedtuple("pair", "a b")
    tree = {"o": OrderedDict(b=1, a=2), "n": pair(1, 2), "s": torch.ones(2, 3).shape}
    found, _ = round_trip(tree, tmp_path)
    assert found == {"o": {"b": 1, "a": 2}, "n": (1, 2), "s": (2, 3)}
    assert [type(value) for value in found.values()] == [dict, tuple, tuple]


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"a": [1, {2}]}, "a/1 is a set"),
        ({"a": torch.nn.Linear(1, 1)}, "a is a Linear"),
        (b"bytes", "tree is a bytes"),
        ({"a": {frozenset(): 1}}, "a has a key of type frozenset"),
        ({"a": torch.ones(2).to_sparse()}, "a is a tensor of torch.float32 .torch.sparse_coo"),
        ({"a": torch.ones(2, device="meta")}, "on meta"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "a is a tensor of torch.complex128"),
    ],
)
def test_refused_and_nothing_written(tree, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        checkpoint.save(tmp_path / "x", tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 0.5, -1])
def test_cut_short(keep, tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.arange(100)})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(mp.RunError, match=r"x.safetensors is damaged .* cut short"):
        checkpoint.load(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(mp.RunError, match="was not written by metapeft"):
        checkpoint.load(path)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(mp.RunError, match="is damaged"):
        checkpoint.load(path)
    with pytest.raises(mp.RunError, match="cannot be read: Is a directory"):
        checkpoint.load(tmp_path)
    for structure in ('{"dict": 3}', '{"tensor": "b"}', '{"set": []}', "{}", "{"):
        header = {"format": checkpoint.FORMAT, "structure": structure, "metadata": "{}"}
        path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, header))
        with pytest.raises(mp.RunError, match="is damaged"):
            checkpoint.load(path)


def test_failed_write_keeps_the_older(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"step": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(mp.RunError, match="No space left on device; what was there is untouched"):
            checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path)[0] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_real_limit_of_the_system_keeps_the_older(tmp_path):
    """A file may grow to 100 kB only: the write stops in the middle, as on a full disk."""
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(mp.RunError, match="cannot be written: File too large"):
            checkpoint.save(path, torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint.load(path)[0] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_missing_folder(tmp_path):
    with pytest.raises(mp.RunError, match="No such file or directory"):
        checkpoint.save(tmp_path / "none" / "x", {})


def test_killed_in_the_middle_of_a_write(tmp_path):
    """The system kills the process at the 100,000th byte: the older checkpoint is whole and stays usable."""
    code = (
        "import resource, signal, sys, torch\nfrom metapeft.training.runs import checkpoint\n"
        "checkpoint.save(sys.argv[1], {'step': 1})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "checkpoint.save(sys.argv[1], {'step': 2, 'x': torch.zeros(100_000)})\n"
    )
    path = tmp_path / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert checkpoint.load(path)[0] == {"step": 1}
    checkpoint.save(path, {"step": 3})
    assert checkpoint.load(path)[0] == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
