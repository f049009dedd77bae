"""Of a damaged bundle the damaged file is named, of a wrong artifact the first wrong operation."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends.tensorrt import TensorRT
from deploy.bundle.read import Bundle, file_digest, load_bundle, load_plan
from deploy.bundle.verify import first_divergence, read_selftest, verify_bundle, write_selftest
from deploy.errors import UsageError, VerificationError
from deploy.execute.reference import Session
from deploy.frontend.onnx_file import read
from deploy.pipeline import build
from deploy.spec.artifact import Artifact


def rehash(folder: Path, name: str) -> None:
    """Make the manifest say that the file is as it should be."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = file_digest(folder / name)
    path.write_text(json.dumps(manifest))


def change_weight(path: Path, name: str) -> None:
    """Add something that matters to every number of one initializer."""
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    array = onnx.numpy_helper.to_array(tensor)
    changed = (array // 2 + 40).astype(array.dtype) if array.dtype.kind == "i" else array * 1.5 + 0.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed.astype(array.dtype), name))
    onnx.save(proto, path)


def readers(path: Path, name: str) -> set[str]:
    return {node.name for node in onnx.load(path).graph.node if name in node.input}


def initializers(path: Path, *, integer: bool) -> list[str]:
    """Names of the weights: arrays of more than one number."""
    kinds = "i" if integer else "f"
    arrays = [(t.name, onnx.numpy_helper.to_array(t)) for t in onnx.load(path).graph.initializer]
    return [
        name
        for name, array in arrays
        if array.dtype.kind in kinds and array.dtype != np.int64 and array.size > 8
    ]


def test_a_good_bundle_passes_and_says_how_close_it_came(built: Bundle) -> None:
    verification = verify_bundle(built.folder)
    assert verification.passed
    assert verification.samples == 8
    assert verification.error <= verification.tolerance
    assert verification == verify_bundle(str(built.folder))


def test_verifying_changes_nothing(bundle_copy: Path) -> None:
    before = {p: file_digest(p) for p in bundle_copy.rglob("*") if p.is_file()}
    verify_bundle(bundle_copy)
    assert before == {p: file_digest(p) for p in bundle_copy.rglob("*") if p.is_file()}


HASHED = ["artifact/model.onnx", "graph.onnx", "plan.json", "deploy.lock", "selftest.npz"]


@pytest.mark.parametrize("name", HASHED)
@pytest.mark.parametrize("damage", ["one bit", "shorter", "empty", "missing", "a folder"])
def test_every_damaged_file_is_named(bundle_copy: Path, name: str, damage: str) -> None:
    path = bundle_copy / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "one bit":
        data[len(data) // 2] ^= 1
    elif damage == "shorter":
        data = data[:-1]
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else data)
    with pytest.raises(VerificationError) as caught:
        verify_bundle(bundle_copy)
    assert caught.value.message.startswith(f"{path}: ")
    assert "again" in caught.value.hint


def test_every_file_of_the_first_half_is_hashed(built: Bundle) -> None:
    assert sorted(built.manifest.files) == sorted(HASHED)


@pytest.mark.parametrize("name", HASHED)
def test_a_manifest_that_hides_a_file_is_refused(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][name]
    path.write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match=f"no SHA-256 of {name}"):
        verify_bundle(bundle_copy)


def test_measurements_and_log_are_not_part_of_what_is_verified(bundle_copy: Path) -> None:
    (bundle_copy / "build.log").write_text("another")
    (bundle_copy / "measurements.json").unlink()
    assert verify_bundle(bundle_copy).passed


def test_a_changed_artifact_with_a_changed_hash_fails_its_self_test(bundle_copy: Path) -> None:
    model = bundle_copy / "artifact" / "model.onnx"
    for name in initializers(model, integer=True):
        change_weight(model, name)
    rehash(bundle_copy, "artifact/model.onnx")
    with pytest.raises(VerificationError, match="self-test failed: output 'y' is off by") as caught:
        verify_bundle(bundle_copy)
    assert "onnxruntime" in caught.value.hint


def test_a_self_test_of_another_artifact_is_refused(bundle_copy: Path) -> None:
    feeds, outputs = read_selftest(bundle_copy / "selftest.npz")
    write_selftest(bundle_copy / "selftest.npz", {"other": feeds["x"]}, outputs)
    rehash(bundle_copy, "selftest.npz")
    with pytest.raises(VerificationError, match="other inputs or outputs"):
        verify_bundle(bundle_copy)


@pytest.mark.parametrize("missing", ["feeds", "outputs", "both"])
def test_an_empty_self_test_proves_nothing(bundle_copy: Path, missing: str) -> None:
    feeds, outputs = read_selftest(bundle_copy / "selftest.npz")
    write_selftest(
        bundle_copy / "selftest.npz",
        {} if missing in ("feeds", "both") else feeds,
        {} if missing in ("outputs", "both") else outputs,
    )
    rehash(bundle_copy, "selftest.npz")
    with pytest.raises(VerificationError, match="other inputs or outputs"):
        verify_bundle(bundle_copy)


def test_nan_in_the_outputs_fails(bundle_copy: Path) -> None:
    feeds, outputs = read_selftest(bundle_copy / "selftest.npz")
    outputs["y"][0, 0] = np.nan
    write_selftest(bundle_copy / "selftest.npz", feeds, outputs)
    rehash(bundle_copy, "selftest.npz")
    with pytest.raises(VerificationError, match="off by inf"):
        verify_bundle(bundle_copy)


class Planted:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_arrays_are_never_loaded(bundle_copy: Path, tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    np.savez(bundle_copy / "selftest.npz", **{"input/x": np.array([Planted(trap)], dtype=object)})
    rehash(bundle_copy, "selftest.npz")
    with pytest.raises(VerificationError, match=r"selftest\.npz: not a self-test"):
        verify_bundle(bundle_copy)
    assert not trap.exists()


def truncated_member() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("input/x.npy", b"\x93NUMPY\x01\x00")
    return buffer.getvalue()


def text_member() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("input/x.txt", "text")
    return buffer.getvalue()


def plain_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"text", b"PK\x03\x04", pickle.dumps({}), truncated_member(), text_member(), plain_array()],
    ids=["empty", "text", "half a zip", "a pickle", "half an array", "a text", "one array"],
)
def test_a_self_test_that_is_no_archive_of_arrays_is_refused(bundle_copy: Path, data: bytes) -> None:
    (bundle_copy / "selftest.npz").write_bytes(data)
    rehash(bundle_copy, "selftest.npz")
    with pytest.raises(VerificationError, match=r"selftest\.npz"):
        verify_bundle(bundle_copy)


def test_a_folder_that_is_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        verify_bundle(tmp_path)


def test_the_self_test_round_trips_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """Names with slashes, and such as numpy.savez takes for its own arguments."""
    feeds = {"a/b": np.arange(6, dtype=np.int64).reshape(2, 3), "file": np.ones((2, 1), np.float16)}
    outputs = {"allow_pickle": np.array([True, False]), "input/x": np.zeros((2, 0), np.float32)}
    write_selftest(tmp_path / "1.npz", feeds, outputs)
    write_selftest(tmp_path / "2.npz", dict(reversed(feeds.items())), outputs)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    for stored, given in zip(read_selftest(tmp_path / "1.npz"), (feeds, outputs), strict=True):
        assert stored.keys() == given.keys()
        for name, array in given.items():
            assert stored[name].dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array)


@dataclass(frozen=True)
class Changed:
    """An ONNX file, and a copy of it with one weight changed."""

    good: Path
    bad: Path

    def divergence(self, samples: dict[str, np.ndarray], tolerance: float = 1e-2) -> str | None:
        with Session(self.bad) as runner:
            return first_divergence(read(self.good).model, runner, samples, tolerance)


def with_changed_weight(good: Path, folder: Path, weight: str) -> Changed:
    bad = folder / "bad.onnx"
    bad.write_bytes(good.read_bytes())
    change_weight(bad, weight)
    return Changed(good, bad)


NODES = {"w1": "Conv", "b1": "Conv", "w2": "Conv", "w3": "Gemm", "b3": "Gemm"}


@pytest.mark.parametrize("weight", NODES)
def test_the_first_diverging_operation_of_a_float_graph_is_the_one_with_the_changed_weight(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path, weight: str
) -> None:
    source = read(network).model
    (node,) = [n for n in source.graph if any(v is not None and v.name == weight for v in n.inputs)]
    assert node.op_type == NODES[weight]
    found = with_changed_weight(network, tmp_path, weight).divergence(images)
    assert found is not None
    assert found.startswith(f"{node.op_type} '{node.name}' (value '{node.outputs[0].name}', off by ")


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_first_diverging_operation_of_a_quantized_graph_reads_the_changed_weight(
    built: Bundle, images: dict[str, np.ndarray], tmp_path: Path, position: int
) -> None:
    model = built.folder / "artifact" / "model.onnx"
    weight = initializers(model, integer=True)[position]
    found = with_changed_weight(model, tmp_path, weight).divergence(images)
    assert found is not None
    assert found.split("'")[1] in readers(model, weight)


def test_equal_graphs_have_no_diverging_operation(network: Path, images: dict[str, np.ndarray]) -> None:
    assert Changed(network, network).divergence(images, tolerance=1e-4) is None


def test_a_bundle_moved_elsewhere_verifies(bundle_copy: Path, tmp_path: Path) -> None:
    moved = bundle_copy.rename(tmp_path / "with a space")
    assert verify_bundle(moved).passed
    assert load_bundle(moved).manifest.target == "x86-avx2"


@pytest.mark.parametrize("seed", [12, 37, 46, 57, 62, 79])
def test_float16_noise_does_not_refuse_a_right_artifact(
    random_network: Callable[[int], Path], tmp_path: Path, seed: int
) -> None:
    """These flip a code of INT8 close to the output in float16, which few other roundings do."""
    images = np.random.default_rng(seed).standard_normal((2, 3, 8, 8)).astype(np.float32)
    bundle = build(
        random_network(seed), target="jetson", data={"x": images}, measure=False, out=tmp_path / "dist",
        cache=tmp_path / "cache",
    )  # fmt: skip
    verification = bundle.manifest.verification
    assert verification.noise_floor <= verification.tolerance
    assert verification.error <= verification.tolerance < 0.2


def test_float16_noise_does_not_hide_a_wrong_artifact(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bias that is half as large again; integers and scales are those of the plan."""
    lower = TensorRT.lower

    def wrong(self: TensorRT, *arguments: object) -> Artifact:
        artifact = lower(self, *arguments)  # type: ignore[arg-type]
        proto = onnx.load(artifact.main)
        tensor = next(t for t in proto.graph.initializer if t.name.startswith("b3"))
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array((array * 1.5).astype(array.dtype), tensor.name))
        onnx.save(proto, artifact.main)
        return artifact

    monkeypatch.setattr(TensorRT, "lower", wrong)
    with pytest.raises(VerificationError, match="the tensorrt artifact strays") as caught:
        build(
            network,
            target="jetson",
            data=images,
            measure=False,
            out=tmp_path / "dist",
            cache=tmp_path / "cache",
        )
    assert caught.value.hint.startswith("first diverging operation: Gemm ")


def test_float16_noise_leaves_alone_what_decides_about_shapes_and_domains(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float[n, 3, 4, 4] x) => (float[n, 3, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Resize <mode = "linear"> (a, , scales)
        c = Pow (b, two)
        d = Resize <mode = "nearest"> (x, , scales)
        e = Concat <axis = 1> (c, d)
        f = Conv (e, v)
        s = Shape <start = 3, end = 4> (f)  t = Squeeze (s)  u = Cast <to = 1> (t)
        r = Range (zero, u, one)
        y = Add (f, r)
    }"""
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.standard_normal((3, 3, 3, 3)).astype(np.float32) / 5,
        "v": generator.standard_normal((3, 6, 1, 1)).astype(np.float32) / 2,
        "scales": np.float32([1, 1, 2, 2]),
        **{name: np.float32(number) for name, number in (("zero", 0), ("one", 1), ("two", 2))},
    }
    images = {"x": generator.standard_normal((8, 3, 4, 4)).astype(np.float32)}
    path = save(tmp_path / "m.onnx", text, arrays)
    for precision in ("fp16", "int8"):
        bundle = build(
            path, target="jetson", data=images, precision=precision, measure=False,
            out=tmp_path / "dist", cache=tmp_path / "cache",
        )  # fmt: skip
        assert bundle.manifest.verification.passed
        assert bundle.manifest.verification.tolerance < 0.2


def test_bfloat16_is_verified_within_its_own_rounding(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    bundle = build(
        network, target="x86-bf16", runtime="openvino", precision="bf16", data=images, measure=False,
        out=tmp_path / "dist", cache=tmp_path / "cache",
    )  # fmt: skip
    verification = bundle.manifest.verification
    assert 2.0**-8 <= verification.noise_floor < 0.1
    assert verification.error <= verification.tolerance
    assert {block.precision for block in load_plan(bundle).blocks} == {"bf16"}


def test_inputs_half_way_between_two_codes_are_noise(tmp_path: Path) -> None:
    """Pixels from -1 to 1 in steps of 2 / 255, quantized over just that range: all lie half-way."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,1,4,4] x) => (float[N,1,4,4] y) { [c] y = Conv(x, w) }""",
        initializers=[ir.tensor(np.ones((1, 1, 1, 1), np.float32), name="w")],
    )
    ir.save(model, tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 1, 4, 4))
    pixels[0, 0, 0, :2] = 0, 255
    images = (pixels / 255 * 2 - 1).astype(np.float32)
    bundle = build(
        tmp_path / "model.onnx", target="x86-vnni", data={"x": images}, precision="int8", measure=False,
        out=tmp_path / "dist", cache=tmp_path / "cache",
    )  # fmt: skip
    assert bundle.manifest.verification.noise_floor >= 1 / 255
