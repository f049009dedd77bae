"""Files as numpy writes them, files that are damaged, and the memory that reading them takes."""

from __future__ import annotations

import gc
import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.data.dataset import Dataset, open_dataset, split
from deploy.data.npz import open_npz
from deploy.errors import DataError
from deploy.spec.tensors import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("n", 3, 8))
SAMPLES = np.random.default_rng(0).normal(size=(50, 3, 8)).astype(np.float32)
LABELS = np.arange(50) % 7
Save = Callable[..., None]
BOTH = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


def read(dataset: Dataset, size: int = 7) -> tuple[np.ndarray, np.ndarray]:
    batches = list(dataset.batches(size))
    return np.concatenate([b.feeds["x"] for b in batches]), np.concatenate([b.ids for b in batches])


def problem(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(open_dataset(path, [X]))
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value.message


@BOTH
def test_reads_what_numpy_wrote(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "d.npz", x=SAMPLES, y=LABELS)
    dataset = open_dataset(tmp_path / "d.npz", [X])
    for _ in range(2):
        np.testing.assert_array_equal(read(dataset)[0], SAMPLES)
    labels = [b.targets[""] for b in dataset.batches(8, feeds=False)]
    np.testing.assert_array_equal(np.concatenate(labels), LABELS)
    part, ids = read(dataset.select(np.arange(11, 23)))
    np.testing.assert_array_equal(part, SAMPLES[11:23])
    part, ids = read(split(dataset, 0.4, seed=3)[1])
    np.testing.assert_array_equal(part, SAMPLES[ids])


@given(st.sets(st.integers(0, 49), min_size=1), st.integers(1, 60), st.booleans())
def test_any_rows_in_any_batch_size(
    tmp_path_factory: pytest.TempPathFactory, rows: set[int], size: int, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    (np.savez_compressed if packed else np.savez)(path, x=SAMPLES)
    index = np.array(sorted(rows))
    got, ids = read(open_dataset(path, [X]).select(index), size)
    np.testing.assert_array_equal(got, SAMPLES[index])
    np.testing.assert_array_equal(ids, index)


@BOTH
def test_column_major_arrays_as_data_frames_give_them(tmp_path: Path, save: Save) -> None:
    save(tmp_path / "d.npz", x=np.asfortranarray(SAMPLES))
    np.testing.assert_array_equal(read(open_dataset(tmp_path / "d.npz", [X]))[0], SAMPLES)
    part, ids = read(open_dataset(tmp_path / "d.npz", [X]).select(np.array([3, 9, 40])), 2)
    np.testing.assert_array_equal(part, SAMPLES[ids])


def test_a_large_column_major_array_says_how_to_save_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.data.npz._WHOLE_LIMIT", 100)
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(SAMPLES))
    assert "column by column" in problem(tmp_path / "d.npz")


def test_npy_is_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", SAMPLES)
    dataset = open_dataset("d.npy", [X], root=tmp_path)
    np.testing.assert_array_equal(read(dataset)[0], SAMPLES)
    assert len(dataset.digest) == 64
    with pytest.raises(DataError, match=r"the model has 2 \(x, z\)"):
        open_dataset(tmp_path / "d.npy", [X, X.model_copy(update={"name": "z"})])


def test_the_digest_is_that_of_the_arrays_that_are_read(tmp_path: Path) -> None:
    for name, x in (("a", SAMPLES), ("b", SAMPLES), ("c", SAMPLES + 1)):
        np.savez(tmp_path / f"{name}.npz", y=LABELS, x=x)
    a, b, c = (open_dataset(tmp_path / f"{n}.npz", [X]).digest for n in "abc")
    assert a == b != c


def test_packed_arrays_are_unpacked_once_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=SAMPLES)
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(copies))
    dataset = open_dataset(tmp_path / "d.npz", [X])
    assert not list(copies.iterdir())
    read(dataset)
    (only,) = copies.iterdir()
    assert only.stat().st_size == SAMPLES.nbytes
    np.testing.assert_array_equal(read(dataset.select(np.arange(3, 9)))[0], SAMPLES[3:9])
    assert list(copies.iterdir()) == [only]
    del dataset
    gc.collect()
    assert not list(copies.iterdir())


def test_no_room_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=SAMPLES)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert f"{SAMPLES.nbytes:,} bytes" in problem(tmp_path / "d.npz")


def test_very_large_packed_arrays_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=SAMPLES)
    monkeypatch.setattr("deploy.data.npz._UNPACKED_LIMIT", SAMPLES.nbytes - 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    dataset = open_dataset(tmp_path / "d.npz", [X])
    np.testing.assert_array_equal(read(dataset)[0], SAMPLES)
    np.testing.assert_array_equal(read(dataset.select(np.arange(3, 50, 5)))[0], SAMPLES[3::5])


def test_not_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_text("hello, this is text")
    assert "is not an .npz file" in problem(path)
    path.write_bytes(b"")
    assert "it is empty" in problem(path)
    path.write_bytes(b"\x80\x04\x95pickle")
    assert "Python pickle, which is never read" in problem(path)
    np.save(tmp_path / "e.npy", SAMPLES)
    (tmp_path / "e.npy").rename(path)
    assert "single .npy array" in problem(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "'readme.txt', which is not an array" in problem(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "hello, this is text")
    assert "array 'x' is not in the .npy format" in problem(path)
    with zipfile.ZipFile(path, "w"):
        ...
    assert "holds no arrays" in problem(path)


@BOTH
def test_truncated(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "d.npz"
    save(path, x=SAMPLES)
    whole = path.read_bytes()
    for keep in (len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:keep])
        assert "truncated or damaged" in problem(path)


def test_truncated_npy(tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    np.save(path, SAMPLES)
    path.write_bytes(path.read_bytes()[:-1])
    assert "array 'x' is truncated" in problem(path)
    path.write_bytes(b"")
    assert "not in the .npy format" in problem(path)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"shape": (10**9, 3, 8), "fortran_order": False, "descr": "<f4"}
    )
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + SAMPLES.tobytes())
    assert "truncated: its header promises another number of bytes" in problem(tmp_path / "d.npz")


def test_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=SAMPLES)
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    assert "array 'x' is" in problem(path)


@BOTH
def test_pickles_are_refused_unread(tmp_path: Path, save: Save) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
            return (Path(tmp_path / "planted").touch, ())

    save(tmp_path / "d.npz", x=np.array([Planted(), None], dtype=object))
    assert "Python objects, which are stored as a pickle and never read" in problem(tmp_path / "d.npz")
    assert not (tmp_path / "planted").exists()


def test_records_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))
    assert "expected plain numbers" in problem(tmp_path / "d.npz")


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.data.npz._BOMB_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((100_000, 3, 8), np.float32))
    assert "refused as a zip bomb" in problem(tmp_path / "d.npz")
    with zipfile.ZipFile(tmp_path / "e.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", b"0" * 1000)
    assert "a method that numpy does not write" in problem(tmp_path / "e.npz")
    monkeypatch.setattr("deploy.data.npz._SAMPLE_LIMIT", 50)
    np.savez(tmp_path / "f.npz", x=SAMPLES)
    assert "one sample of array 'x' takes 96 bytes" in problem(tmp_path / "f.npz")


@BOTH
def test_memory_is_flat(tmp_path: Path, save: Save) -> None:
    peaks = {}
    for count in (64, 2000):
        path = tmp_path / f"{count}.npz"
        save(path, x=np.tile(SAMPLES[:1, :1].repeat(512, axis=1), (count, 1, 1)), y=np.arange(count))
        spec = TensorSpec(name="x", dtype="float32", shape=("n", 512, 8))
        dataset = open_dataset(path, [spec])
        for _ in dataset.batches(16):  # what a first pass imports and caches is not counted
            break
        tracemalloc.start()
        assert sum(len(batch) for batch in dataset.batches(16)) == count
        assert dataset.digest
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[2000] < 1.1 * peaks[64] + 100_000, peaks
    assert peaks[2000] < 4 << 20


def test_closing_early_releases_the_file(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=SAMPLES)
    source = open_npz(tmp_path / "d.npz")
    blocks = source.rows(["x"], np.arange(50), 4)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]  # a leak would be a ResourceWarning, hence an error
