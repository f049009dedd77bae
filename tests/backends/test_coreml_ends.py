"""What a Core ML package takes and gives beside tensors of fixed sizes: images, classes, free sizes, states.

Against ONNX Runtime on the graph, fed by hand, and against what coremltools reads in the package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Remembers
from deploy.errors import BackendError, DataError, UnsupportedError
from deploy.execute.compare import largest_error
from deploy.graph.interface import Form, adapt_inputs
from deploy.graph.qdq import insert
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact, Description
from deploy.spec.ends import Ends
from deploy.spec.plan import Plan, TensorPlan, differences
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Normalisation, TensorSpec

pytest.importorskip("coremltools")
from small_graphs import drawn, reference, with_weights

from backends.coreml import CoreML
from backends.coreml.child import ForeignRunner
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import sdk

HALF = load_profile("iphone15").runtime_named("coreml")
PLAN = Plan(graph_sha256="", target="", runtime="coreml")
RNG = np.random.default_rng(5)
NUMBERS = Normalisation(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

PICTURES = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,C,8,6] x) => (float[1,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = MatMul(f, t)
}"""


def runtime(*, half: bool = False, target: str = "iOS17", **asked: object) -> Runtime:
    options = {**HALF.options, "minimum_deployment_target": target}
    around = "float16" if half else "float32"
    return HALF.model_copy(update={"options": options, "around": around, "asked": Ends.model_validate(asked)})


def lowered(model: ir.Model, folder: Path, chosen: Runtime) -> Artifact:
    return CoreML().lower(model, PLAN, chosen, folder, SILENT)


def run(artifact: Artifact, feeds: dict[str, np.ndarray], chosen: Runtime) -> dict[str, np.ndarray]:
    with CoreML().open(artifact, CoreML().options(chosen, 1)) as runner:
        return runner.run(feeds)


def told(artifact: Artifact, spec: TensorSpec | None = None, **more: object) -> Description:
    inputs = artifact.inputs if spec is None else (spec,)
    return Description(name="net", text="", version="1", inputs=inputs, outputs=artifact.outputs, **more)


def pictures(channels: int, layout: str) -> ir.Model:
    text = PICTURES.replace("C", str(channels), 1)
    model = with_weights(text, drawn({"w": (8, channels, 3, 3), "t": (8, 4)}))
    numbers = NUMBERS if channels == 3 else Normalisation(scale=1 / 128, mean=(1.0,))
    return infer(adapt_inputs(model, {"x": Form(numbers, "uint8", layout, "NCHW")}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("channels", "layout", "half"),
    [(3, "NHWC", False), (3, "NHWC", True), (3, "NCHW", False), (1, "NHWC", False)],
)
def test_pixels_enter_as_an_image(tmp_path: Path, channels: int, layout: str, half: bool) -> None:
    model, chosen = pictures(channels, layout), runtime(half=half)
    shape = (1, 8, 6, channels) if layout == "NHWC" else (1, channels, 8, 6)
    pixels = {"x": RNG.integers(0, 256, shape, np.uint8)}
    artifact = lowered(model, tmp_path, chosen)
    allowed = 1e-2 if half else 1e-5
    assert largest_error(reference(model, pixels), run(artifact, pixels, chosen)) < allowed
    (feature,) = sdk().utils.load_spec(str(artifact.main.parent)).description.input
    kind = feature.type.imageType
    assert (kind.height, kind.width) == (8, 6)
    assert kind.colorSpace == (kind.ColorSpace.RGB if channels == 3 else kind.ColorSpace.GRAYSCALE)
    kinds = _operations(artifact)
    assert "transpose" not in kinds, "a package has channels first, whatever the graph is fed"


def _operations(artifact: Artifact) -> list[str]:
    function = sdk().utils.load_spec(str(artifact.main.parent)).mlProgram.functions["main"]
    return [operation.type for operation in function.block_specializations[function.opset].operations]


def test_colours_in_another_order(tmp_path: Path) -> None:
    """A picture in RGB gives what the graph gives for its colours turned."""
    model, chosen = pictures(3, "NHWC"), runtime()
    artifact = lowered(model, tmp_path, chosen)
    spec = artifact.inputs[0].model_copy(update={"colours": "BGR"})
    CoreML().describe(artifact, told(artifact, spec))
    pixels = RNG.integers(0, 256, (1, 8, 6, 3), np.uint8)
    want = reference(model, {"x": pixels})
    assert largest_error(want, run(artifact, {"x": pixels}, chosen)) < 1e-5
    with CoreMLRunner(artifact.main.parent, CoreMLOptions()) as picture:
        got = picture.run({"x": np.ascontiguousarray(pixels[..., ::-1])})
    assert largest_error(want, got) < 1e-5
    (feature,) = sdk().utils.load_spec(str(artifact.main.parent)).description.input
    assert feature.type.imageType.colorSpace == feature.type.imageType.ColorSpace.BGR


@pytest.mark.parametrize("side", [-3, 2**40])
def test_an_image_of_sizes_that_none_has(tmp_path: Path, side: int) -> None:
    artifact = lowered(pictures(3, "NHWC"), tmp_path, runtime())
    file = next(artifact.main.parent.rglob("*.mlmodel"))
    spec = sdk().utils.load_spec(str(file))
    spec.description.input[0].type.imageType.width = side
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(BackendError, match=f"'x' is an image of {side} x 8 pixels"):
        CoreMLRunner(artifact.main.parent, CoreMLOptions())


def test_pixels_that_are_no_image_are_refused(tmp_path: Path) -> None:
    for shape, perhaps in (("1,8,8", "uint8[1, 8, 8]"), ("2,3,8,8", "uint8[2, 3, 8, 8]")):
        text = f'<ir_version: 10, opset_import: ["" : 21]> g (uint8[{shape}] x) => (float[{shape}] y)'
        model = with_weights(text + " { y = Cast<to=1>(x) }", {})
        with pytest.raises(UnsupportedError) as refused:
            lowered(model, tmp_path, runtime())
        assert perhaps in refused.value.message and "one at a time" in refused.value.message


STEPS = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,3] x, float[1,4] h, float[n,4] unused) => (float[1,2] y, float[1,4] next, float[n,4] same) {
    both = Concat<axis=1>(x, h)
    a = MatMul(both, w)
    next = Tanh(a)
    y = MatMul(next, v)
    same = Identity(unused)
}"""


def streaming() -> ir.Model:
    return with_weights(STEPS, drawn({"w": (7, 4), "v": (4, 2)}))


KEEPING = runtime(target="iOS18", states={"h": "next"})


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return lowered(streaming(), tmp_path_factory.mktemp("stateful"), KEEPING)


def test_a_state_stays_in_the_package(stateful: Artifact) -> None:
    """Several calls in a row, against ONNX Runtime whose state is fed back by hand."""
    model, chosen, artifact = streaming(), KEEPING, stateful
    spec = sdk().utils.load_spec(str(artifact.main.parent)).description
    assert [one.name for one in spec.input] == ["x", "unused"] and [one.name for one in spec.state] == ["h"]
    assert [one.name for one in spec.output] == ["y", "same"]
    other = {"unused": np.ones((1, 4), np.float32)}
    runs = [artifact, artifact.model_copy(update={"foreign": True})]
    for opened in runs:
        with CoreML().open(opened, CoreML().options(chosen, 1)) as runner:
            assert isinstance(runner, Remembers) and runner.states == {"h": "next"}
            for _ in range(2):
                state = np.zeros((1, 4), np.float32)
                for _ in range(4):
                    x = RNG.normal(size=(1, 3)).astype(np.float32)
                    want = reference(model, {"x": x, "h": state, **other})
                    got = runner.step({"x": x, **other})
                    assert largest_error(want, got) < 2e-3
                    assert np.abs(want["y"]).max() > 0.01
                    state = want["next"]
                    apart = runner.run({"x": x, "h": state, **other})  # does not touch what is kept
                    assert largest_error(reference(model, {"x": x, "h": state, **other}), apart) < 2e-3
                runner.reset()


def test_a_state_that_float16_does_not_hold_is_infinite(stateful: Artifact) -> None:
    """Without a word of NumPy's on the way there."""
    feeds = {name: np.ones((1, size), np.float32) for name, size in (("x", 3), ("unused", 4))}
    with CoreML().open(stateful, CoreML().options(KEEPING, 1)) as runner:
        large = runner.run({**feeds, "h": np.full((1, 4), 1e6, np.float32)})
        endless = runner.run({**feeds, "h": np.full((1, 4), np.inf, np.float32)})
    for name, want in endless.items():
        np.testing.assert_array_equal(large[name], want)


def test_states_that_core_ml_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="a state needs iOS 18") as caught:
        lowered(streaming(), tmp_path, runtime(states={"h": "next"}))
    assert "cannot express 1 nodes" in caught.value.message, "what reads it, and nothing behind that"
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,2] s) => (float[m,2] next, float[n,2] y) {
        next = Concat<axis=0>(s, s)
        y = Identity(s)
    }"""
    with pytest.raises(UnsupportedError, match=r"state 's' of \[1, 2\] becomes \[2, 2\]"):
        lowered(with_weights(text, {}), tmp_path, runtime(target="iOS18", states={"s": "next"}))
    text = """<ir_version: 10, opset_import: ["" : 21]> g (int32[2] k) => (int32[2] next, int32[2] y) {
        next = Add(k, one)
        y = Identity(next)
    }"""
    model = with_weights(text, {"one": np.ones(2, np.int32)})
    with pytest.raises(UnsupportedError, match="a state of int32: Core ML keeps float16"):
        lowered(model, tmp_path, runtime(target="iOS18", states={"k": "next"}))


def test_a_state_that_is_too_large_is_one_error(stateful: Artifact, tmp_path: Path) -> None:
    """Of a package from anywhere: what it keeps is made in the child, with limits."""
    folder = Path(shutil.copytree(stateful.folder, tmp_path / "copy"))
    file = next(folder.rglob("*.mlmodel"))
    spec = sdk().utils.load_spec(str(file))
    (state,) = (one for one in spec.mlProgram.functions["main"].inputs if one.name == "h")
    for dimension in state.type.stateType.wrappedType.tensorType.dimensions:
        dimension.constant.size = 2**18
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(BackendError, match=r"it takes more than 2\.0 GiB"):
        ForeignRunner(file.parents[2], CoreMLOptions())


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("states", {}, "other states"),
        ("states", {"other": ["h", "next"]}, "other states"),
        ("states", {"h": "next"}, "was not written by deploy"),
        ("images", 5, "was not written by deploy"),
        ("ends", {"x": "x"}, "other inputs"),
        ("ends", {"x": "x", "unused": "unused"}, "other outputs"),
        ("scored", "x", "other classes"),
    ],
)
def test_notes_that_are_not_those_of_the_bundle(
    stateful: Artifact, tmp_path: Path, key: str, value: object, told: str
) -> None:
    """Beside the program of a bundle from anywhere: never a traceback."""
    folder = Path(shutil.copytree(stateful.folder, tmp_path / "copy"))
    artifact = stateful.model_copy(update={"folder": folder})
    file = next(folder.rglob("*.mlmodel"))
    spec = sdk().utils.load_spec(str(file))
    entries = spec.description.metadata.userDefined
    entries["deploy"] = json.dumps({**json.loads(entries["deploy"]), key: value})
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(BackendError, match=told):
        CoreML().open(artifact, CoreMLOptions())


SIZED = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n,3,h,w] x) => (float[n,8] y, float[n,8,h,w] z) {
    z = Conv<pads=[1,1,1,1]>(x, k)
    p = GlobalAveragePool(z)
    y = Flatten(p)
}"""


@pytest.mark.parametrize(
    ("sizes", "taken", "refused"),
    [
        (("1..3", 3, "4..6..8", "4..9"), ((1, 3, 6, 4), (3, 3, 8, 9)), ((1, 3, 9, 4), (4, 3, 4, 4))),
        (((1, 3, 6, 6), (1, 3, 8, 4)), ((1, 3, 6, 6), (1, 3, 8, 4)), ((1, 3, 6, 4), (2, 3, 6, 6))),
        ((2, 3, 5, 7), ((2, 3, 5, 7),), ((1, 3, 5, 7),)),
    ],
)
def test_sizes_that_were_asked_for(
    tmp_path: Path, sizes: object, taken: tuple[tuple[int, ...], ...], refused: tuple[tuple[int, ...], ...]
) -> None:
    model, chosen = with_weights(SIZED, drawn({"k": (8, 3, 3, 3)})), runtime(sizes={"x": sizes})
    artifact = lowered(model, tmp_path, chosen)
    for shape in taken:
        feeds = {"x": RNG.normal(size=shape).astype(np.float32)}
        assert largest_error(reference(model, feeds), run(artifact, feeds, chosen)) < 1e-5
    for shape in refused:
        with pytest.raises(DataError):
            run(artifact, {"x": np.zeros(shape, np.float32)}, chosen)
    (feature,) = sdk().utils.load_spec(str(artifact.main.parent)).description.input
    assert tuple(feature.type.multiArrayType.shape) == taken[0], "the usual one"


@pytest.mark.parametrize(
    ("sizes", "said"), [({}, 1), ({"x": ("1..4", 3, 5, 7)}, 0), ({"x": (1, 3, 5, 7)}, 0)]
)
def test_a_batch_that_is_fixed_is_told_where_nobody_asked_for_it(
    tmp_path: Path, sizes: object, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(type(SILENT), "note", lambda _, text: notes.append(text))
    lowered(with_weights(SIZED, drawn({"k": (8, 3, 3, 3)})), tmp_path, runtime(sizes=sizes))
    assert len([text for text in notes if "the batch is fixed at 1" in text]) == said


def test_images_of_several_sizes(tmp_path: Path) -> None:
    text = PICTURES.replace("C,8,6", "3,h,w")
    model = with_weights(text, drawn({"w": (8, 3, 3, 3), "t": (8, 4)}))
    model = infer(adapt_inputs(model, {"x": Form(NUMBERS, "uint8", "NHWC", "NCHW")}))
    for sizes in ((1, "8..16", "6..20", 3), ((1, 8, 6, 3), (1, 16, 20, 3))):
        chosen = runtime(sizes={"x": sizes})
        artifact = lowered(model, tmp_path / str(len(sizes)), chosen)
        for height, width in ((8, 6), (16, 20)):
            pixels = {"x": RNG.integers(0, 256, (1, height, width, 3), np.uint8)}
            assert largest_error(reference(model, pixels), run(artifact, pixels, chosen)) < 1e-5
        with pytest.raises(DataError):
            run(artifact, {"x": np.zeros((1, 5, 6, 3), np.uint8)}, chosen)


PAIR = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,w] before, float[1,w] x) => (float[1,w] y) { y = Add(before, x) }"""


def test_inputs_that_share_a_size(tmp_path: Path) -> None:
    model = with_weights(PAIR, {})
    chosen = runtime(sizes={"x": (1, "4..6")})
    artifact = lowered(model, tmp_path / "range", chosen)
    for width, fits in ((4, True), (6, True), (7, False)):
        feeds = {name: RNG.normal(size=(1, width)).astype(np.float32) for name in ("before", "x")}
        if fits:
            assert largest_error(reference(model, feeds), run(artifact, feeds, chosen)) < 1e-6
        else:
            with pytest.raises(DataError) as caught:
                run(artifact, feeds, chosen)
            assert "takes 4 to 6" in caught.value.hint
    both = {"before": ((1, 4), (1, 6)), "x": ((1, 4), (1, 6))}
    with pytest.raises(UnsupportedError, match="a list of shapes for more than one input needs iOS 18"):
        lowered(model, tmp_path / "old", runtime(sizes=both))
    chosen = runtime(target="iOS18", sizes=both)
    artifact = lowered(model, tmp_path / "new", chosen)
    feeds = {name: RNG.normal(size=(1, 6)).astype(np.float32) for name in ("before", "x")}
    assert largest_error(reference(model, feeds), run(artifact, feeds, chosen)) < 1e-6


CLASSES = ("cat", "dog", "übel", "fox")


@pytest.mark.parametrize(("end", "half"), [("Identity", True), ("Softmax", False), ("LogSoftmax", False)])
def test_a_classifier_names_the_likeliest_class(tmp_path: Path, end: str, half: bool) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[n,3] x) => (float[n,5] other, float[n,4] classLabel) {{
        other = MatMul(x, u)
        a = MatMul(x, w)
        classLabel = {end}(a)
    }}"""
    model = with_weights(text, drawn({"w": (3, 4), "u": (3, 5)}))
    chosen = runtime(half=half, classes=CLASSES)
    artifact = lowered(model, tmp_path, chosen)
    CoreML().describe(artifact, told(artifact, classes=CLASSES))
    spec = sdk().utils.load_spec(str(artifact.main.parent)).description
    names = spec.predictedFeatureName, spec.predictedProbabilitiesName
    for _ in range(3):
        feeds = {"x": RNG.normal(size=(1, 3)).astype(np.float32)}
        want = reference(model, feeds)
        assert largest_error(want, run(artifact, feeds, chosen)) < (1e-2 if half else 1e-5)
        scores = want["classLabel"][0].astype(np.float64)
        chances = scores if end == "Softmax" else np.exp(scores) / np.exp(scores).sum()
        with CoreMLRunner(artifact.main.parent, CoreMLOptions()) as runner:
            found = runner.run(feeds)
        assert found[names[0]].item() == CLASSES[int(scores.argmax())]
        np.testing.assert_allclose(found[names[1]], chances, atol=5e-3 if half else 1e-6)


def test_a_classifier_needs_an_output_of_so_many_classes(tmp_path: Path) -> None:
    model = pictures(3, "NHWC")
    with pytest.raises(UnsupportedError, match="none has one sample's scores of 3 classes"):
        lowered(model, tmp_path, runtime(classes=("a", "b", "c")))


def test_a_classifier_may_give_a_number_besides(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,3] x) => (float sum, float[1,4] y) {
        y = MatMul(x, w)
        sum = ReduceSum<keepdims=0>(y)
    }"""
    chosen = runtime(classes=CLASSES)
    model = infer(with_weights(text, drawn({"w": (3, 4)})))
    feeds = {"x": RNG.normal(size=(1, 3)).astype(np.float32)}
    assert largest_error(reference(model, feeds), run(lowered(model, tmp_path, chosen), feeds, chosen)) < 1e-5


def test_an_image_is_rounded_before_it_is_turned(tmp_path: Path) -> None:
    """A pair stands where the graph has channels last; the package has them first, and carries the plan."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (uint8[1,8,6,3] x) => (float[1,8,8,6] y) {
        f = Cast<to=1>(x)
        t = Transpose<perm=[0,3,1,2]>(f)
        y = Conv<pads=[1,1,1,1]>(t, w)
    }"""
    model = with_weights(text, drawn({"w": (8, 3, 3, 3)}))
    params = {
        name: TensorPlan(type="int8", scale=(2.0,), zero_point=(-64,), origin="calibration")
        for name in ("f", "t")
    }
    rounded, chosen = insert(model, params, {}), runtime()
    artifact = lowered(rounded, tmp_path, chosen)
    pixels = {"x": RNG.integers(0, 256, (1, 8, 6, 3), np.uint8)}
    assert largest_error(reference(rounded, pixels), run(artifact, pixels, chosen)) < 1e-5
    kinds = _operations(artifact)
    assert "transpose" not in kinds and kinds.count("quantize") == 2
    assert differences(PLAN.model_copy(update={"tensors": params}), CoreML().read_plan(artifact)) == []


def test_an_image_that_cannot_be_rounded_so_is_refused_by_node() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (uint8[1,8,6,3] x) => (float[1,8,6,3] y) <float s = {0.1}, int16 z = {0}> {
        [cast] f = Cast<to=1>(x)
        [down] q = QuantizeLinear(f, s, z)
        [up] y = DequantizeLinear(q, s, z)
    }"""
    verdicts = CoreML().check(infer(ir.from_onnx_text(text)), runtime())
    assert [verdict.support for verdict in verdicts] == ["supported", "unsupported", "unsupported"]
    assert "quantized to int16" in verdicts[1].reason


def test_a_package_does_not_say_when_it_was_written(tmp_path: Path) -> None:
    artifact = lowered(pictures(1, "NCHW"), tmp_path, runtime())
    said = sdk().utils.load_spec(str(artifact.main.parent)).description.metadata.userDefined
    assert not [name for name in said if "date" in name]


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_parts_of_a_package_that_takes_an_image(tmp_path: Path, layout: str) -> None:
    """Each alone makes what ONNX Runtime makes; pixels are fed where both have them in one order."""
    model, chosen = pictures(3, layout), runtime()
    artifact = lowered(model, tmp_path, chosen)
    shape = (1, 8, 6, 3) if layout == "NHWC" else (1, 3, 8, 6)
    pixels = {"x": RNG.integers(0, 256, shape, np.uint8)}
    names = [value.name or "" for node in model.graph for value in node.outputs]
    values = {**pixels, **reference(model, pixels, names)}
    found = list(CoreML().parts(artifact, CoreML().options(chosen, 1), values))
    assert {"y", "r"} <= {part.result for part in found}
    assert any("x" in part.reads for part in found) == (layout == "NCHW")
    for part in found:
        got = {part.result: part.run({name: values[name] for name in part.reads})}
        assert largest_error({part.result: values[part.result]}, got) < 1e-5
