"""Weights in forms that do not fit together: one clear error, from whoever reads them, in little memory."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")
from coreml_packages import saved

from backends.coreml.notes import METADATA, Notes
from backends.coreml.readback import read_stored, read_weights
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import sdk
from deploy.errors import BackendError

RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 16, (32, 64)).astype(np.uint8)
CODES[:4, :4] = np.arange(16).reshape(4, 4)
MASK = RNG.random((32, 64)) < 0.4
VALUES = RNG.normal(0, 1, int(MASK.sum())).astype(np.float32)
BOOK = RNG.normal(0, 1, 16).astype(np.float32)


def packed(array: np.ndarray, bits: int) -> np.ndarray:
    rows = np.unpackbits(array.astype(np.uint8).reshape(-1, 1), axis=1, bitorder="little", count=bits)
    return np.packbits(rows.reshape(-1), bitorder="little")


def old(mb, x):
    """As iOS 16 has them: plain bytes and a shape."""
    shape = np.array([32, 64], np.uint32)
    table = mb.constexpr_lut_to_dense(indices=packed(CODES, 4), lut=BOOK, shape=shape, name="book")
    thin = mb.constexpr_sparse_to_dense(nonzero_data=VALUES, mask=packed(MASK, 1), shape=shape, name="thin")
    steps = {"scale": np.full(32, 0.01, np.float32), "zero_point": np.int8(3), "axis": np.int32(0)}
    grid = mb.constexpr_affine_dequantize(quantized_data=CODES.astype(np.int8), **steps, name="grid")
    both = mb.add(x=mb.linear(x=x, weight=table), y=mb.linear(x=x, weight=thin))
    return mb.add(x=both, y=mb.linear(x=x, weight=grid))


def new(mb, x):
    """As iOS 18 has them: types of few bits."""
    from coremltools.converters.mil.mil import types

    def narrow(array: np.ndarray, kind: str) -> np.ndarray:
        return array.astype(np.uint8).astype(types.nptype_from_builtin(types.string_to_builtin(kind)))

    lut = BOOK.reshape(1, 1, 16, 1)
    table = mb.constexpr_lut_to_dense(indices=narrow(CODES, "uint4"), lut=lut, name="book")
    mask = narrow(MASK, "uint1")
    codes = RNG.integers(1, 100, VALUES.size).astype(np.int8)
    scale = np.full((32, 1), 0.01, np.float32)
    joint = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=mask, nonzero_data=codes, scale=scale, name="joint"
    )
    thin = mb.constexpr_sparse_to_dense(nonzero_data=joint[1], mask=joint[0], name="thin")
    return mb.add(x=mb.linear(x=x, weight=table), y=mb.linear(x=x, weight=thin))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("built")
    found = {"old": saved(old, {"x": (1, 64)}, folder / "old.mlpackage", target="iOS16")}
    found["new"] = saved(new, {"x": (1, 64)}, folder / "new.mlpackage", target="iOS18")
    return found


def notes(which: str) -> str:
    """What a package of ours would say of these weights."""
    empty = {field.name: {"l": [], "d": {}, "s": ""}[str(field.type)[0]] for field in fields(Notes)}
    names = ("book", "thin") if which == "old" else ("book",)
    name = "grid" if which == "old" else "thin"
    planned = [(name, name, False)]
    return Notes(**{**empty, "planned": planned, "weights": {name: name for name in names}}).text()


def read(package: Path) -> None:
    read_stored(package)
    list(read_weights(package, ("book", "thin")))


def operation(message, kind: str):
    block = next(iter(message.mlProgram.functions["main"].block_specializations.values()))
    return next(o for o in block.operations if o.type == kind)


def value(message, kind: str, name: str):
    """A parameter of an operation as it is stored."""
    one = operation(message, kind)
    return one.attributes[name] if name in one.attributes else one.inputs[name].arguments[0].value


def sizes(message, kind: str, name: str, *wanted: int) -> None:
    """Say other sizes of a parameter than those of its blob."""
    dimensions = value(message, kind, name).type.tensorType.dimensions
    for dimension, size in zip(dimensions, wanted, strict=True):
        dimension.constant.size = size


def numbers(message, kind: str, name: str, array: np.ndarray) -> None:
    """Put other float32 numbers into the program itself."""
    given = value(message, kind, name)
    given.ClearField("blobFileValue")
    given.immediateValue.tensor.floats.values[:] = array.ravel().tolist()
    tensor = given.type.tensorType
    tensor.rank = array.ndim
    del tensor.dimensions[:]
    for size in array.shape:
        tensor.dimensions.add().constant.size = size


def shaped(message, kind: str, *wanted: int) -> None:
    """Say another shape of what lies in plain bytes."""
    tensor = value(message, kind, "shape").immediateValue.tensor
    tensor.bytes.values = np.array(wanted, np.uint32).tobytes()


def itself(message) -> None:
    """What is put in places is what comes of that."""
    one = operation(message, "constexpr_sparse_to_dense")
    one.inputs["nonzero_data"].arguments[0].name = one.outputs[0].name


def flipped(package: Path) -> None:
    """One bit more in the mask."""
    file = next(package.rglob("weight.bin"))
    content, mask = bytearray(file.read_bytes()), packed(MASK, 1).tobytes()
    place, bit = content.index(mask), int(np.flatnonzero(~MASK)[0])
    content[place + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def along(message, axis: int) -> None:
    """Say another axis of scales."""
    value(message, AFFINE, "axis").immediateValue.tensor.ints.values[:] = [axis]


AFFINE, LUT = "constexpr_affine_dequantize", "constexpr_lut_to_dense"
SPARSE = "constexpr_sparse_to_dense"
JOINT = "constexpr_sparse_blockwise_shift_scale"
HARM: dict[str, tuple[str, Callable[..., None], str]] = {
    "a table of 3, old": ("old", lambda m: numbers(m, LUT, "lut", BOOK[:3]), "a table of 3"),
    "a table of 8, old": ("old", lambda m: numbers(m, LUT, "lut", BOOK[:8]), "a table of 8"),
    "more bits than bytes": ("old", lambda m: numbers(m, LUT, "lut", np.resize(BOOK, 64)), "1024 bytes for"),
    "a shape of 2^62, old": ("old", lambda m: shaped(m, LUT, 2**31, 2**31), "more than 8 GiB"),
    "a mask for 2^62, old": ("old", lambda m: shaped(m, SPARSE, 2**31, 2**31), "more than 8 GiB"),
    "a mask for fewer, old": ("old", lambda m: shaped(m, SPARSE, 32, 63), "256 bytes for 2016 numbers"),
    "a bit too many, old": ("old", flipped, r"values for \d+ places"),
    "scales along no axis, old": ("old", lambda m: along(m, 7), "axis 7"),
    "scales along another axis, old": ("old", lambda m: along(m, 1), "32 scales"),
    "a table of 3": ("new", lambda m: numbers(m, LUT, "lut", BOOK[:3].reshape(1, 1, 3, 1)), "a table of 3"),
    "a table too short": (
        "new", lambda m: numbers(m, LUT, "lut", BOOK[:8].reshape(1, 1, 8, 1)), "index 15 of a table of 8",
    ),
    "groups that do not go into it": (
        "new", lambda m: numbers(m, LUT, "lut", np.resize(BOOK, (5, 1, 16, 1))), r"blocks \[5, 1\]",
    ),
    "a table without groups": (
        "new", lambda m: numbers(m, LUT, "lut", BOOK), r"a table \[16\] for indices",
    ),
    "a table of 2^40": ("new", lambda m: sizes(m, LUT, "lut", 1, 1, 2**40, 1), "has 16 numbers"),
    "indices of 2^40": ("new", lambda m: sizes(m, LUT, "indices", 2**34, 64), "has 2048 numbers"),
    "a mask of 2^40": ("new", lambda m: sizes(m, JOINT, "data_mask", 2**34, 64), "has 2048 numbers"),
    "a bit too many": ("new", flipped, r"values for \d+ places"),
    "scales with an axis too many": (
        "new", lambda m: numbers(m, JOINT, "scale", np.full((32, 1, 2), 0.01)), r"blocks \[32, 1, 2\]",
    ),
    "scales that do not go into it": (
        "new", lambda m: numbers(m, JOINT, "scale", np.full((5, 1), 0.01)), r"blocks \[5, 1\]",
    ),
    "no scales": ("new", lambda m: numbers(m, JOINT, "scale", np.zeros((32, 0))), r"blocks \[32, 0\]|has 0"),
    "a circle": ("new", itself, "which nothing before it makes|holds no integers"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARM)
def test_what_does_not_fit_is_said(what: str, built: dict[str, Path], tmp_path: Path) -> None:
    which, harm, said = HARM[what]
    package = Path(shutil.copytree(built[which], tmp_path / "net.mlpackage"))
    file = next(package.rglob("*.mlmodel"))
    message = sdk().proto.Model_pb2.Model.FromString(file.read_bytes())
    message.description.metadata.userDefined[METADATA] = notes(which)
    if harm is flipped:
        harm(package)
    else:
        harm(message)
    file.write_bytes(message.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BackendError, match=said) as ran:
        CoreMLRunner(package, CoreMLOptions())
    with pytest.raises(BackendError, match=said) as looked:
        read(package)
    assert all("net.mlpackage" in e.value.message for e in (ran, looked))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def test_what_fits_is_read(built: dict[str, Path], tmp_path: Path) -> None:
    for which, path in built.items():
        package = Path(shutil.copytree(path, tmp_path / f"{which}.mlpackage"))
        file = next(package.rglob("*.mlmodel"))
        message = sdk().proto.Model_pb2.Model.FromString(file.read_bytes())
        message.description.metadata.userDefined[METADATA] = notes(which)
        file.write_bytes(message.SerializeToString())
        read(package)
        CoreMLRunner(package, CoreMLOptions()).close()
