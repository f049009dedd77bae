"""The order of samples: every one once an epoch, decided by seed and epoch, and where they lie."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from deploy.data.dataset import Dataset, open_dataset
from deploy.errors import DataError
from deploy.spec.tensors import TensorSpec
from deploy.train.loader import Loader, Shuffled, Windows, number, open_loader

SPEC = (TensorSpec(name="x", dtype="float32", shape=("n", 3)),)
COUNT = 103


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    x = np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)
    np.savez_compressed(tmp_path / "data.npz", x=x, y=np.arange(COUNT))
    return open_dataset(tmp_path / "data.npz", SPEC)


def open_as(kind: str, dataset: Dataset, folder: Path, seed: int = 0) -> Loader:
    limits = {"memory": (1 << 20, None), "mapped": (0, None), "windows": (800, 0)}[kind]
    return open_loader(dataset, 10, seed, folder, in_memory=limits[0], on_disk=limits[1])


def rows(loader: Loader, epoch: int, first: int = 0) -> list[list[int]]:
    found = []
    for samples in loader.epoch(epoch, first):
        assert np.array_equal(samples.targets[""], samples.rows)
        assert np.array_equal(samples.feeds["x"][:, 0], samples.rows * 3)
        found.append(samples.rows.tolist())
    return found


KINDS = ["memory", "mapped", "windows"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_comes_once_in_batches_of_about_one_size(
    kind: str, dataset: Dataset, tmp_path: Path
) -> None:
    loader = open_as(kind, dataset, tmp_path / "work")
    assert isinstance(loader, Windows if kind == "windows" else Shuffled)
    batches = rows(loader, 0)
    assert len(batches) == loader.batches == 11
    assert sorted(row for batch in batches for row in batch) == list(range(COUNT))
    assert {len(batch) for batch in batches} <= ({9, 10} if kind != "windows" else {7, 8, 10})
    assert (tmp_path / "work").is_dir() == (kind != "memory")


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_follows_from_seed_and_epoch(kind: str, dataset: Dataset, tmp_path: Path) -> None:
    loader, again = (open_as(kind, dataset, tmp_path / "work") for _ in range(2))
    assert rows(loader, 2) == rows(again, 2)
    assert rows(loader, 2) != rows(loader, 3)
    assert rows(loader, 2) != rows(open_as(kind, dataset, tmp_path / "work", seed=1), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 1, 7, 11])
def test_an_epoch_goes_on_where_it_was(kind: str, first: int, dataset: Dataset, tmp_path: Path) -> None:
    loader = open_as(kind, dataset, tmp_path / "work")
    assert rows(loader, 1, first) == rows(loader, 1)[first:]


def test_mapped_and_in_memory_is_the_same_order(dataset: Dataset, tmp_path: Path) -> None:
    assert rows(open_as("memory", dataset, tmp_path), 4) == rows(open_as("mapped", dataset, tmp_path), 4)


def test_unpacked_samples_are_used_again_and_leftovers_go(dataset: Dataset, tmp_path: Path) -> None:
    leftover = tmp_path / f"samples-{dataset.digest[:32]}.new-abc"
    leftover.mkdir()
    open_as("mapped", dataset, tmp_path)
    (folder,) = tmp_path.glob("samples-*")
    before = folder.stat().st_mtime_ns
    open_as("mapped", dataset, tmp_path)
    assert folder.stat().st_mtime_ns == before


def test_a_view_counts_its_own_rows(dataset: Dataset, tmp_path: Path) -> None:
    view = dataset.select(np.arange(50, 90))
    for kind in KINDS:
        found = list(open_as(kind, view, tmp_path / "work").epoch(0))
        assert sorted(np.concatenate([s.rows for s in found]).tolist()) == list(range(40))
        assert all(np.array_equal(s.targets[""], s.rows + 50) for s in found)


def test_windows_are_shuffled_inside(dataset: Dataset, tmp_path: Path) -> None:
    flat = [row for batch in rows(open_as("windows", dataset, tmp_path), 0) for row in batch]
    size = 40  # 800 bytes hold 40 samples of 20 bytes
    for start in range(0, COUNT, size):
        part = flat[start : start + size]
        assert sorted(part) == list(range(start, min(COUNT, start + size)))
        assert part != sorted(part)


def test_a_full_disk_lets_samples_stream(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    loader = open_as("mapped", dataset, tmp_path)
    assert isinstance(loader, Windows)
    assert "shuffled only among 10 that follow each other" in caplog.text
    assert sorted(row for batch in rows(loader, 0) for row in batch) == list(range(COUNT))
    assert not list(tmp_path.glob("samples-*"))


def test_unfit_samples_are_told(tmp_path: Path) -> None:
    x = np.ones((20, 3), np.float32)
    x[13, 1] = np.nan
    with pytest.raises(DataError, match="13"):
        open_loader(open_dataset({"x": x, "y": np.zeros(20, int)}, SPEC), 4, 0, tmp_path)


def test_seeds_of_different_places_differ() -> None:
    drawn = {number(0, e, b) for e in range(20) for b in range(20)} | {number(1, 0, 0), number(0, 0, 0, 1)}
    assert len(drawn) == 402
    assert all(0 <= seed < 2**63 for seed in drawn)
