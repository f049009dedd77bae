"""Forms of weights in packages: how many bytes, which numbers, and what is read back of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("coremltools")
from small_graphs import drawn, reference, weights_of, with_weights

from backends.coreml import CoreML
from backends.coreml.package import open_package
from deploy.adapter.profiles import load_profile
from deploy.errors import BackendError, UnsupportedError
from deploy.execute.compare import largest_error
from deploy.graph.edit import constant
from deploy.graph.palette import PaletteForms
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.progress import SILENT
from deploy.quantize.palettes import palettes_of
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences
from deploy.spec.profile import Runtime

HALF = load_profile("iphone15").runtime_named("coreml")
RUNTIMES = {"exact": HALF.model_copy(update={"around": "float32"}), "half": HALF}

NET = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,16,6,6] x, int64[5] k) => (float[1,24] y, float[5,32] z) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    c = ConvTranspose<strides=[2,2]>(r, v)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    m = MatMul(f, t)
    y = Gemm<transB=1>(m, u)
    z = Gather(e, k)
}"""
SHAPES = {"w": (48, 16, 3, 3), "v": (48, 32, 2, 2), "t": (32, 64), "u": (24, 64), "e": (40, 32)}
FEEDS = {
    "x": np.random.default_rng(1).normal(0, 1, (1, 16, 6, 6)).astype(np.float32),
    "k": np.array([3, 0, 39, 7, 3]),
}
SIZE = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
PLAIN = sum(SIZE.values())


def runtime(precision: str = "exact", target: str = "iOS18") -> Runtime:
    base = RUNTIMES[precision]
    options = {**base.options, "minimum_deployment_target": target}
    return base.model_copy(update={"options": options})


def planned(model: ir.Model, on: Runtime, tensors: dict[str, TensorPlan] | None = None) -> Plan:
    palettes = palettes_of(model, CoreML().palette_forms(on))
    return Plan(graph_sha256="", target="", runtime="coreml", tensors=tensors or {}, palettes=palettes)


def lowered(model: ir.Model, folder: Path, on: Runtime, plan: Plan | None = None) -> Artifact:
    folder.mkdir(exist_ok=True)
    return CoreML().lower(model, plan or planned(model, on), on, folder, SILENT)


def run(artifact: Artifact, on: Runtime) -> dict[str, np.ndarray]:
    with CoreML().open(artifact, CoreML().options(on, 1)) as runner:
        return runner.run(FEEDS)


def kinds(artifact: Artifact) -> dict[str, str]:
    """The operation that makes each weight."""
    with open_package(artifact.main.parent) as package:
        notes = json.loads(package.specification.metadata["deploy"])
        made = {o.name: o.type for o in package.function()[0].block.operations}
    return {name: made[variable] for name, variable in notes["weights"].items() if name in SHAPES}


def held(artifact: Artifact) -> dict[str, np.ndarray]:
    return dict(CoreML().weights(artifact, SHAPES))


AXES = {"w": 0, "v": 1, "t": 1, "u": 0, "e": 0}
"""That which counts outputs; rows, of the table."""


def shared(centres: int, group: int | None = None) -> ir.Model:
    """NET with so many different values in each weight, or in each ``group`` of its channels."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in SHAPES.items():
        channels = shape[AXES[name]]
        books = rng.normal(0, 0.3, (channels // (group or channels), centres)).astype(np.float32)
        books = np.repeat(books, group or channels, axis=0)
        rest = int(np.prod(shape)) // channels
        drawn_ = np.take_along_axis(books, rng.integers(0, centres, (channels, rest)), axis=1)
        drawn_[:, :centres] = books[:, : min(rest, centres)]
        order = [n for at, n in enumerate(shape) if at != AXES[name]]
        arrays[name] = np.ascontiguousarray(np.moveaxis(drawn_.reshape(channels, *order), 0, AXES[name]))
    return with_weights(NET, arrays)


def without(array: np.ndarray, share: float) -> np.ndarray:
    """The smallest numbers become 0."""
    return np.where(np.abs(array) > np.quantile(np.abs(array), share), array, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "target", "centres", "group"),
    [
        ("half", "iOS16", 16, None), ("exact", "iOS17", 50, None), ("half", "iOS18", 8, None),
        ("exact", "iOS18", 16, 8), ("half", "iOS18", 2, 4),
    ],
)  # fmt: skip
def test_palettes_are_written_as_such_and_read_back(
    precision: str, target: str, centres: int, group: int | None, tmp_path: Path
) -> None:
    on = runtime(precision, target)
    model = shared(centres, group)
    plan = planned(model, on)
    assert plan.palettes.keys() == SHAPES.keys()
    artifact = lowered(model, tmp_path, on)
    assert set(kinds(artifact).values()) == {"constexpr_lut_to_dense"}
    back = CoreML().read_plan(artifact)
    assert back.palettes == plan.palettes
    assert differences(plan, back) == []
    for name, array in held(artifact).items():
        given = weights_of(model, name)
        want = given.astype(np.float16) if precision == "half" else given
        assert array.dtype == want.dtype
        np.testing.assert_array_equal(array, want)
        assert data_digest(array) == plan.palettes[name].digest
    bits = {name: palette.bits for name, palette in plan.palettes.items()}
    books = sum(
        (1 << p.bits) * (1 if p.axis is None else SHAPES[n][p.axis] // p.size)
        for n, p in plan.palettes.items()
    ) * (2 if precision == "half" else 4)
    indices = sum(SIZE[name] * bits[name] // 8 for name in SHAPES)
    assert books + indices <= artifact.weight_bytes <= books + indices + 2048
    got, want = run(artifact, on), reference(model, FEEDS)
    assert largest_error(want, got) < (1e-5 if precision == "exact" else 0.02)
    if precision == "half":
        dense = lowered(model, tmp_path / "dense", on, plan.model_copy(update={"palettes": {}}))
        for name, array in run(dense, on).items():
            np.testing.assert_array_equal(array, got[name])


def test_an_old_target_takes_one_codebook_for_a_weight_whatever_was_clustered(tmp_path: Path) -> None:
    """Groups share few enough values to be said by one codebook up to 256; beyond it stays dense."""
    few = shared(16, 8)
    plan = planned(few, runtime("half", "iOS17"))
    assert {p.axis for p in plan.palettes.values()} == {None}
    assert {n: p.values for n, p in plan.palettes.items()} == {
        n: len(np.unique(weights_of(few, n).astype(np.float16))) for n in SHAPES
    }
    artifact = lowered(few, tmp_path, runtime("half", "iOS17"))
    assert differences(plan, CoreML().read_plan(artifact)) == []
    many = shared(64, 8)
    assert "w" not in planned(many, runtime("half", "iOS17")).palettes


def test_what_a_target_cannot_store_is_refused_by_name(tmp_path: Path) -> None:
    model = shared(16, 8)
    new = planned(model, runtime("exact", "iOS18"))
    with pytest.raises(UnsupportedError, match="weight 'w': a palette for each 8 channels needs iOS 18"):
        lowered(model, tmp_path, runtime("exact", "iOS17"), new)
    three = shared(8)
    with pytest.raises(UnsupportedError, match="weight 'w': a palette of 3 bits needs iOS 18"):
        lowered(three, tmp_path, runtime("exact", "iOS17"), planned(three, runtime("exact", "iOS18")))
    forms = PaletteForms(bits=(5,), groups="none")
    five = shared(30)
    plan = new.model_copy(update={"palettes": palettes_of(five, forms)})
    with pytest.raises(UnsupportedError, match="a palette of 5 bits; Core ML has 1, 2, 3, 4, 6, 8"):
        lowered(five, tmp_path, runtime("exact", "iOS18"), plan)


@pytest.mark.parametrize(("precision", "target"), [("half", "iOS16"), ("exact", "iOS18")])
def test_zeros_are_left_out_where_that_is_smaller(precision: str, target: str, tmp_path: Path) -> None:
    on, arrays = runtime(precision, target), drawn(SHAPES)
    thin = {name: without(array, 0.6) for name, array in arrays.items()}
    model = with_weights(NET, thin)
    artifact, dense = lowered(model, tmp_path, on), lowered(with_weights(NET, arrays), tmp_path / "d", on)
    assert set(kinds(artifact).values()) == {"constexpr_sparse_to_dense"}
    assert set(kinds(dense).values()) == {"const"}
    width = 2 if precision == "half" else 4
    expected = PLAIN * (0.4 * width + 1 / 8)
    assert expected <= artifact.weight_bytes < expected + 2048 < 0.6 * dense.weight_bytes
    for name, array in held(artifact).items():
        np.testing.assert_array_equal(array, thin[name].astype(array.dtype))
    for name, array in held(dense).items():
        np.testing.assert_array_equal(array, arrays[name].astype(array.dtype))
    assert largest_error(reference(model, FEEDS), run(artifact, on)) < (1e-5 if width == 4 else 0.02)


@pytest.mark.parametrize(("share", "kind"), [(0.05, "const"), (0.3, "constexpr_sparse_to_dense")])
def test_the_mask_has_to_be_paid_for(share: float, kind: str, tmp_path: Path) -> None:
    """Of float16 a bit for each number is a sixteenth, and a tenth has to be won."""
    model = with_weights(NET, {name: without(array, share) for name, array in drawn(SHAPES).items()})
    assert set(kinds(lowered(model, tmp_path, runtime("half"))).values()) == {kind}


def quantized(
    arrays: dict[str, np.ndarray], kinds_: dict[str, tuple[str, int | None]], zero: int = 0
) -> tuple[ir.Model, dict[str, TensorPlan]]:
    """NET with some weights as integers: by name their type, and how many rows make a block."""
    model = with_weights(NET, arrays)
    tensors, codes = {}, {}
    for name, (kind, group) in kinds_.items():
        array, most = arrays[name], 7 if kind.endswith("int4") else 127
        largest = np.abs(array).reshape(len(array), -1).max(axis=1)
        scale = np.maximum(largest, 1e-3) / most
        if group:
            scale = np.maximum(np.abs(array).reshape(-1, group, array.shape[1]).max(axis=1), 1e-3) / most
        flat = tuple(float(s) for s in scale.astype(np.float16).astype(np.float32).ravel())
        given = QuantParams.model_validate(
            {"type": kind, "scale": flat, "zero_point": (zero,) * len(flat), "axis": 0, "group": group}
        )
        codes[name] = quantize_array(array, given)
        tensors[name] = TensorPlan(**given.model_dump(), origin="weight", digest=data_digest(codes[name]))
    return insert(model, tensors, codes), tensors


@pytest.mark.parametrize("zero", [0, 3])
def test_integers_leave_their_zeros_out_too(zero: int, tmp_path: Path) -> None:
    on = runtime("half", "iOS18")
    thin = {name: without(array, 0.7) for name, array in drawn(SHAPES).items()}
    model, tensors = quantized(thin, {"w": ("int8", None), "t": ("int4", 16), "u": ("int8", None)}, zero)
    plan = planned(model, on, tensors)
    artifact = lowered(model, tmp_path, on)
    with open_package(artifact.main.parent) as package:
        made = [o.type for o in package.function()[0].block.operations if o.type.startswith("constexpr")]
    assert made.count("constexpr_sparse_blockwise_shift_scale") == 3
    assert made.count("constexpr_sparse_to_dense") == 5, "two of them floats"
    assert differences(plan, CoreML().read_plan(artifact)) == []
    assert largest_error(reference(model, FEEDS), run(artifact, on)) < 0.02
    whole = lowered(quantized(drawn(SHAPES), {"w": ("int8", None)}, zero)[0], tmp_path / "whole", on)
    left = {"w": 8, "u": 8, "t": 4, "v": 16, "e": 16}
    expected = sum(SIZE[name] * (0.3 * bits + 1) / 8 for name, bits in left.items())
    assert expected < artifact.weight_bytes < expected + 4096 < whole.weight_bytes


@pytest.mark.parametrize("zero", [0, 3])
def test_integers_that_share_few_values_are_looked_up(zero: int, tmp_path: Path) -> None:
    """As clustered weights become by a scale for each channel: still INT8, in four bits each. The codebook is
    scaled, since the other order is one that coremltools turns round for releases before iOS 26."""
    on, clustered = runtime("half", "iOS18"), shared(16, 8)
    arrays = {name: weights_of(clustered, name) for name in SHAPES}
    model, tensors = quantized(arrays, {"w": ("int8", None), "u": ("int8", None)}, zero)
    plan = planned(model, on, tensors)
    artifact = lowered(model, tmp_path, on)
    with open_package(artifact.main.parent) as package:
        made = [o.type for o in package.function()[0].block.operations if o.type.startswith("constexpr")]
    assert made.count("constexpr_blockwise_shift_scale") == 2
    assert made.count("constexpr_lut_to_dense") == 1 + len(plan.palettes), "u's are too large"
    assert differences(plan, CoreML().read_plan(artifact)) == []
    assert largest_error(reference(model, FEEDS), run(artifact, on)) < 0.02
    old = lowered(model, tmp_path / "old", runtime("half", "iOS17"))
    with open_package(old.main.parent) as package:
        kinds_ = {o.type for o in package.function()[0].block.operations}
    assert "constexpr_affine_dequantize" in kinds_
    books = sum((2 << p.bits) * SHAPES[n][p.axis] // p.size for n, p in plan.palettes.items())
    indices = sum(SIZE[n] * p.bits // 8 for n, p in plan.palettes.items())
    expected = SIZE["w"] / 2 + 48 * 16 + SIZE["u"] + 2 * (48 + 24) + books + indices
    assert expected <= artifact.weight_bytes < expected + 2048


def test_few_values_in_blocks_have_no_codebook(tmp_path: Path) -> None:
    on = runtime("half", "iOS18")
    coarse = {name: np.rint(array * 20) for name, array in drawn(SHAPES).items()}
    model, tensors = quantized({**drawn(SHAPES), "t": coarse["t"].clip(-1, 1)}, {"t": ("int8", 16)}, 0)
    plan = planned(model, on, tensors)
    artifact = lowered(model, tmp_path, on)
    assert differences(plan, CoreML().read_plan(artifact)) == []
    assert largest_error(reference(model, FEEDS), run(artifact, on)) < 0.02


def test_every_form_in_one_package(tmp_path: Path) -> None:
    on, arrays = runtime("half", "iOS18"), drawn(SHAPES)
    arrays |= {"v": weights_of(shared(16), "v"), "e": without(arrays["e"], 0.5)}
    model, tensors = quantized(arrays, {"w": ("int8", None), "t": ("int4", 16)})
    plan = planned(model, on, tensors)
    artifact = lowered(model, tmp_path, on)
    back = CoreML().read_plan(artifact)
    assert differences(plan, back) == []
    assert back.tensors.keys() == {"w", "t"}
    assert back.palettes.keys() == {"v"}
    assert kinds(artifact) == {
        "v": "constexpr_lut_to_dense", "u": "const", "e": "constexpr_sparse_to_dense",
    }  # fmt: skip
    assert largest_error(reference(model, FEEDS), run(artifact, on)) < 0.02
    assert all(constant(v) is not None for v in model.graph.initializers.values())


def test_a_changed_package_carries_other_palettes_and_integers(tmp_path: Path) -> None:
    on = runtime("half", "iOS18")
    arrays = drawn(SHAPES) | {"v": weights_of(shared(16), "v")}
    model, tensors = quantized(arrays, {"w": ("int8", None)})
    plan = planned(model, on, tensors)
    artifact = lowered(model, tmp_path, on)
    file = next(tmp_path.rglob("weight.bin"))
    sound = file.read_bytes()

    def said(place: int, change: int) -> list[str]:
        content = bytearray(sound)
        content[place] ^= change
        file.write_bytes(content)
        return differences(plan, CoreML().read_plan(artifact))

    book = np.unique(arrays["v"].astype(np.float16).view(np.uint16)).view(np.float16)
    assert said(sound.index(book.tobytes()), 1) == ["v: other values than the plan's"]
    codes = quantize_array(arrays["w"], tensors["w"]).astype(np.int8).tobytes()
    assert said(sound.index(codes) + 7, 4) == ["w: integer data differ"]
    scale = np.array(tensors["w"].scale, np.float16).tobytes()
    assert said(sound.index(scale), 1)[0].startswith("w: scale")
    with pytest.raises(BackendError, match="parameters that mean nothing"):
        said(sound.index(scale) + 1, 0x80)
