"""The prepared graphs compute what the file computes, whatever the file does with its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploy.bundle.verify import verify_bundle
from deploy.errors import DeployError, ModelError, UnsupportedError, UsageError
from deploy.execute.reference import open_graph
from deploy.frontend.onnx_file import Source, digest, read
from deploy.graph.rewrite import Prove, Rewrite, Rewritten
from deploy.graph.summary import tensor_specs
from deploy.pipeline import build
from deploy.spec.project import InputSection, IoSection
from deploy.spec.tensors import Normalisation
from deploy.stages import prepare as module
from deploy.stages.prepare import Prepared, load, prepare

GENERATOR = np.random.default_rng(0)
W = GENERATOR.standard_normal((16, 8)).astype(np.float32)
X = GENERATOR.standard_normal((4, 16)).astype(np.float32)


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Prepared]:
    def run(
        path: Path | Source,
        shapes: Mapping[str, Sequence[int]] | None = None,
        sections: Mapping[str, InputSection] | None = None,
        io: IoSection = IoSection(),
    ) -> Prepared:
        folder = tmp_path / "prepared"
        folder.mkdir(exist_ok=True)
        source = read(path) if isinstance(path, Path) else path
        prepare(source, folder, shapes=shapes or {}, sections=sections or {}, io=io, seed=0, threads=1)
        return load(folder)

    return run


def as_given(path: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def assert_same(found: Prepared, path: Path, feeds: Mapping[str, np.ndarray]) -> None:
    want = as_given(path, feeds)
    for graph in (found.clean, found.fused):
        with open_graph(graph) as runner:
            got = runner.run(feeds)
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)


def test_both_graphs_compute_what_the_file_computes(
    prepared: Callable[..., Prepared], network: Path, images: dict[str, np.ndarray]
) -> None:
    found = prepared(network)
    assert_same(found, network, images)
    source = found.facts.source
    assert source.name == "network"
    assert source.bytes == network.stat().st_size
    assert source.opset == 17
    weights = 8 * 3 * 9 + 8 + 8 * 8 * 9 + 8 + 4 * 8 + 4
    assert (source.parameters, source.weight_bytes) == (weights, 4 * weights)
    assert source.macs == 64 * 8 * 27 + 64 * 8 * 72 + 32
    assert found.facts.notes == ()
    assert found.facts.clean_sha256 == digest(found.clean)
    assert found.facts.fused_sha256 == digest(found.fused)


def test_preparing_twice_gives_the_same_bytes(prepared: Callable[..., Prepared], network: Path) -> None:
    def files() -> list[bytes]:
        return [p.read_bytes() for p in sorted(prepared(network).folder.iterdir())]

    assert files() == files()


def test_batch_norm_stays_in_the_one_and_is_folded_in_the_other(
    prepared: Callable[..., Prepared], example: Path
) -> None:
    found = prepared(example / "digits.onnx")
    assert sum(n.op_type == "BatchNormalization" for n in found.clean.graph) == 9
    assert not any(n.op_type == "BatchNormalization" for n in found.fused.graph)
    with np.load(example / "eval.npz") as data:
        assert_same(found, example / "digits.onnx", {"x": data["x"][:8]})


def test_a_free_batch_stays_free_and_a_pinned_one_is_pinned(
    prepared: Callable[..., Prepared], network: Path
) -> None:
    (free,) = tensor_specs(prepared(network).fused.graph.inputs)
    assert free.shape == ("n", 3, 8, 8)
    (pinned,) = tensor_specs(prepared(network, shapes={"x": (2, 3, 8, 8)}).fused.graph.inputs)
    assert pinned.shape == (2, 3, 8, 8)


MIXING = """g (float[n, 16] x) => (float[n, 8] y) {
    mean = ReduceMean <axes = [0], keepdims = 1> (x)
    centred = Sub (x, mean)
    y = MatMul (centred, w)
}"""
ONE_ROW = "g (float[n, 16] x) => (float[n, 8] y) { row = Reshape (x, shape)  y = MatMul (row, w) }"
FLATTENED = "g (float[n, 16] x) => (float[1, m] y) { a = MatMul (x, w)  y = Reshape (a, flat) }"


@pytest.mark.parametrize(
    ("text", "arrays", "note"),
    [
        (MIXING, {}, "influence each other"),
        (ONE_ROW, {"shape": np.array([1, 16])}, "one sample at a time"),
        (FLATTENED, {"flat": np.array([1, -1])}, "influence each other"),
    ],
    ids=["the mean over the batch", "reshaped to one row", "flattened"],
)
def test_a_batch_that_cannot_be_computed_together_is_pinned_to_one(
    prepared: Callable[..., Prepared],
    save: Callable[..., Path],
    tmp_path: Path,
    text: str,
    arrays: Mapping[str, np.ndarray],
    note: str,
) -> None:
    path = save(tmp_path / "m.onnx", text, {"w": W, **arrays})
    found = prepared(path)
    (x,) = tensor_specs(found.fused.graph.inputs)
    assert x.shape == (1, 16)
    assert len(found.facts.notes) == 1
    assert note in found.facts.notes[0]
    assert_same(found, path, {"x": X[:1]})


SCALED = """g (float[n, 16] x, {kind} s) => (float[n, 8] y, {kind} t) {{
    a = Mul (x, s)
    y = MatMul (a, w)
    t = Neg (s)
}}"""


@pytest.mark.parametrize(
    ("kind", "value"), [("float", np.float32(2)), ("float[16]", X[0]), ("float[1, 16]", X[:1])]
)
def test_inputs_without_a_batch_do_not_pin_that_of_the_others(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path, kind: str, value: np.ndarray
) -> None:
    path = save(tmp_path / "m.onnx", SCALED.format(kind=kind), {"w": W})
    found = prepared(path)
    assert found.facts.notes == ()
    assert tensor_specs(found.fused.graph.inputs)[0].shape[0] == "n"
    assert_same(found, path, {"x": X, "s": np.asarray(value)})


def test_a_folded_normalisation_takes_raw_data(
    prepared: Callable[..., Prepared], network: Path, images: dict[str, np.ndarray]
) -> None:
    normalisation = Normalisation(scale=0.5, mean=(1.0, 0.0, -1.0), std=(2.0, 1.0, 0.5), folded=True)
    found = prepared(network, sections={"x": InputSection(normalisation=normalisation)})
    assert found.facts.folded_inputs == ("x",)
    mean, std = (np.reshape(v, (1, 3, 1, 1)).astype(np.float32) for v in ((1, 0, -1), (2, 1, 0.5)))
    want = as_given(network, {"x": (images["x"] * np.float32(0.5) - mean) / std})["y"]
    with open_graph(found.fused) as runner:
        np.testing.assert_allclose(runner.run(images)["y"], want, rtol=1e-4, atol=1e-5)


def test_an_upgrade_that_changes_results_is_an_error(
    prepared: Callable[..., Prepared], network: Path
) -> None:
    source = read(network)
    next(node for node in source.model.graph if node.op_type == "Relu").op_type = "Neg"
    with pytest.raises(ModelError, match="operator set 17 brought to 21 computes something else"):
        prepared(source)


def test_a_model_that_runs_with_no_size_is_an_error(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    """The inner dimension has to be 16, which the input leaves free, and nobody tries 17."""
    text = "g (float[n, k] x) => (float[n, 8] y) { y = MatMul (x, w) }"
    path = save(tmp_path / "m.onnx", text, {"w": np.zeros((17, 8), np.float32)})
    with pytest.raises(DeployError) as caught:
        prepared(path)
    assert caught.value.exit_code == 3
    assert "--shape x=" in caught.value.hint
    assert prepared(path, shapes={"x": (2, 17)}).facts.source.parameters == 136


def test_rolled_back_steps_are_noted(
    prepared: Callable[..., Prepared], network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(model: ir.Model, prove: Prove) -> Rewritten:
        return Rewritten(model, (Rewrite("a step", 9, 8, 70, 60, kept=False, why="it is wrong"),))

    monkeypatch.setattr(module, "fuse", refused)
    notes = prepared(network).facts.notes
    assert notes == ("step 'a step' was rolled back: it is wrong",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("g (string[n] s) => (int64[1] y) { y = Shape (s) }", ["input 's'", "STRING"]),
        ("g (bfloat16[n] x) => (float[n] y) { y = Cast <to = 1> (x) }", ["input 'x'", "BFLOAT16"]),
        ("g (float8e5m2[n] x) => (float[n] y) { y = Cast <to = 1> (x) }", ["input 'x'", "FLOAT8"]),
        ("g (float[n, 4] x) => (seq(float[n, 1]) y) { y = SplitToSequence (x) }", ["output 'y'", "Sequence"]),
    ],
)
def test_what_no_array_of_numbers_can_be_is_refused(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path, text: str, said: list[str]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        prepared(save(tmp_path / "m.onnx", text, {}))
    assert all(word in caught.value.message for word in said)


def test_a_model_without_inputs_is_refused(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="has no inputs"):
        prepared(save(tmp_path / "m.onnx", "g () => (float[2] y) { y = Relu (c) }", {"c": np.ones(2, "f4")}))


def test_all_nodes_that_cannot_be_run_are_listed(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (double[n, 3, 8, 8] x) => (double[n, 4, 6, 6] y) {
        [one] a = Conv (x, v)  [act] b = Relu (a)  [two] c = Conv (b, w)  [pad] y = Pad (c, p)
    }"""
    v, w = GENERATOR.standard_normal((4, 3, 3, 3)), GENERATOR.standard_normal((4, 4, 1, 1))
    path = save(tmp_path / "m.onnx", text, {"v": v, "w": w, "p": np.zeros(8, np.int64)})
    with pytest.raises(UnsupportedError, match="2 of 4 nodes") as caught:
        prepared(path)
    assert "Conv 'one'" in caught.value.message
    assert "Conv 'two'" in caught.value.message
    assert "float32" in caught.value.hint


def test_a_file_that_is_too_new_to_be_compared_with_is_refused(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    path = save(tmp_path / "m.onnx", "g (float[n, 4] x) => (float[n, 4] y) { y = Relu (x) }", {})
    proto = onnx.load(path)
    proto.ir_version = 99
    onnx.save(proto, path)
    with pytest.raises(UnsupportedError, match="IR version: 99"):
        prepared(path)


def test_integers_that_only_work_as_ones_are_proved_with_ones(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = "g (int64[n, 4] x, int64[n, 4] d) => (int64[n, 4] y) { a = Identity (x)  y = Div (a, d) }"
    path = save(tmp_path / "m.onnx", text, {})
    found = prepared(path)
    assert len(found.fused.graph) == 1
    feeds = {"x": np.arange(8).reshape(2, 4), "d": np.full((2, 4), 3)}
    assert_same(found, path, feeds)


def test_batch_norm_in_training_mode_is_named(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        [norm] y, m, v = BatchNormalization <training_mode = 1> (x, scale, bias, mean, var)
    }"""
    arrays = {name: GENERATOR.random(4).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    found = prepared(save(tmp_path / "m.onnx", text, arrays))
    assert "norm" in found.facts.notes[0]
    assert "model.eval()" in found.facts.notes[0]


def test_a_float16_model_of_an_older_operator_set_is_taken(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float16[n, 16] x) => (float16[n, 8] y) {
        a = MatMul (x, w)  b = Softmax <axis = 1> (a)  c = Mul (b, b)  y = Sqrt (c)
    }"""
    path = save(tmp_path / "m.onnx", text, {"w": W.astype(np.float16)}, opset=9)
    found = prepared(path)
    feeds = {"x": X.astype(np.float16)}
    with open_graph(found.fused) as runner:
        got = runner.run(feeds)
    np.testing.assert_allclose(got["y"], as_given(path, feeds)["y"], rtol=5e-3, atol=5e-3)


def test_time_major_sequences_with_their_lengths_are_left_as_they_are(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float[5, n, 4] x, int32[n] lengths) => (float[5, 1, n, 3] y) {
        y = GRU <hidden_size = 3> (x, w, r, , lengths)
    }"""
    arrays = {
        "w": GENERATOR.standard_normal((1, 9, 4)).astype(np.float32),
        "r": GENERATOR.standard_normal((1, 9, 3)).astype(np.float32),
    }
    path = save(tmp_path / "m.onnx", text, arrays)
    found = prepared(path)
    assert found.facts.notes == ()
    x = GENERATOR.standard_normal((5, 3, 4)).astype(np.float32)
    assert_same(found, path, {"x": x, "lengths": np.int32([1, 5, 3])})


def test_the_trial_inputs_are_of_a_size_that_works(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float[n, 1, h, w] x) => (float[n, 3] y) {
        a = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (x)  b = Reshape (a, shape)  y = MatMul (b, m)
    }"""
    arrays = {"shape": np.int64([-1, 64]), "m": GENERATOR.standard_normal((64, 3)).astype(np.float32)}
    path = save(tmp_path / "m.onnx", text, arrays)
    assert prepared(path).trial["x"].shape == (2, 1, 64, 64)
    bundle = build(path, target="x86-avx2", measure=False, out=tmp_path / "out", cache=tmp_path / "cache")
    assert bundle.manifest.verification.passed
    noisy = build(
        path,
        target="x86-avx2",
        random_calibration=True,
        precision="int8",
        measure=False,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    assert noisy.manifest.precision.get("int8")


def test_sizes_that_were_given_are_those_that_are_tried(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = "g (float[n, 1, h, w] x) => (float[n, 1, h, w] y) { y = Relu (x) }"
    path = save(tmp_path / "m.onnx", text, {})
    sizes = IoSection.model_validate({"sizes": {"x": ["1..4", 1, "16..24..40", 12]}})
    assert prepared(path, io=sizes).trial["x"].shape == (1, 1, 24, 12)
    wrong = IoSection.model_validate({"sizes": {"x": [1, 2, 16, 16]}})
    with pytest.raises(UsageError, match="axis 1 is 1 in the model, not 2"):
        prepared(path, io=wrong)


def test_a_scalar_beside_the_batch_is_built_and_verified(save: Callable[..., Path], tmp_path: Path) -> None:
    text = """g (float alpha, float[n, 16] x, bool wide) => (float[n, 8] y) {
        a = Mul (x, alpha)  b = MatMul (a, w)  c = Neg (b)  y = Where (wide, b, c)
    }"""
    path = save(tmp_path / "m.onnx", text, {"w": W})
    out = tmp_path / "out"
    bundle = build(path, target="x86-avx2", measure=False, out=out, cache=tmp_path / "cache")
    assert verify_bundle(bundle.folder).passed


def test_hazards_are_kept_once_a_kind_with_their_nodes_warnings_first(
    prepared: Callable[..., Prepared], save: Callable[..., Path], tmp_path: Path
) -> None:
    text = """g (float[n,16] x, float[n,16] z) => (float[n,16] y, int64[n,2] i) {
        [first] a = Softmax (x)
        [second] b = Softmax (z)
        y = Add (a, b)
        [best] v, i = TopK (y, k)
    }"""
    path = save(tmp_path / "m.onnx", text, {"k": np.array([2])})
    found = {(h.severity, h.kind): h.nodes for h in prepared(path).facts.hazards}
    assert found["note", "softmax"] == ("first", "second")
    assert next(iter(found)) == ("warning", "selection")
