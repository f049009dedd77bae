"""Checkpoints: bit for bit, whole or not at all, never of another training."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import torch

from deploy.errors import UsageError
from deploy.train.checkpoint import FILE, Checkpoint, load, save

KEY = {"graph": "ab", "seed": "0"}


def some(value: float = 1.5, count: int = 1000) -> Checkpoint:
    tensors = {
        "w": torch.full((count,), value),
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "half": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "flags": torch.tensor([True, False]),
        "count": torch.tensor([2**62]),
    }
    return Checkpoint(KEY, {"epoch": 3, "loss": 0.1 + 0.2, "none": None, "list": [1, 2.5]}, tensors)


def test_it_comes_back_bit_for_bit(tmp_path: Path) -> None:
    kept = some()
    save(kept, tmp_path)
    back = load(tmp_path, KEY)
    assert back is not None
    assert back.facts == kept.facts
    assert list(back.tensors) == list(kept.tensors)
    for name, tensor in kept.tensors.items():
        found = back.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        raw = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found, tensor) if t.numel())
        assert len({bytes(r.tolist()) for r in raw}) <= 1
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_there_is_none_yet(tmp_path: Path) -> None:
    assert load(tmp_path, KEY) is None


def test_another_graph_or_seed_is_refused_by_name(tmp_path: Path) -> None:
    save(some(), tmp_path)
    with pytest.raises(UsageError, match="another graph, another seed"):
        load(tmp_path, {"graph": "cd", "seed": "1"})
    with pytest.raises(UsageError, match="with another teacher") as caught:
        load(tmp_path, {**KEY, "teacher": "ef"})
    assert "another folder" in caught.value.hint


@pytest.mark.parametrize("cut", [0, 5, 12, 40, 600, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    save(some(), tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError, match="is damaged"):
        load(tmp_path, KEY)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / FILE)
    with pytest.raises(UsageError, match="is damaged, or no checkpoint"):
        load(tmp_path, KEY)


def test_positions_outside_the_file_are_refused(tmp_path: Path) -> None:
    save(some(), tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b'"torch.float32", [1000], 0', b'"torch.float32", [9999], 0'))
    with pytest.raises(UsageError, match="'w' lies outside"):
        load(tmp_path, KEY)


def test_a_full_disk_leaves_the_last_one(tmp_path: Path) -> None:
    save(some(1.0), tmp_path)
    (tmp_path / f"{FILE}.new").symlink_to("/dev/full")
    with pytest.raises(
        UsageError, match="no space left for a checkpoint of the training; the last one is kept"
    ):
        save(some(2.0), tmp_path)
    back = load(tmp_path, KEY)
    assert back is not None
    assert back.tensors["w"][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_disk_that_fills_up_in_the_middle_leaves_the_last_one(tmp_path: Path) -> None:
    save(some(1.0), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UsageError, match="the last one is kept"):
            save(some(2.0, count=100_000), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    back = load(tmp_path, KEY)
    assert back is not None
    assert back.tensors["w"][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_other_trouble_passes_through(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        save(some(), tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT
