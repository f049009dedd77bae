"""Every upgrade against ONNX Runtime on the graph as given; the list of changes against the schemas."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from deploy.errors import UnsupportedError
from deploy.frontend.opset import OPSET, upgrade
from deploy.frontend.opset_upgrades import UPGRADES

RNG = np.random.default_rng(0)


def parse(opset: int, signature: str, body: str) -> ir.Model:
    """``signature`` is ``(inputs) => (outputs) <constants>``; ONNX text, domain and versions left out."""
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["": {opset}]> g {signature} {{ {body} }}')


def execute(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


def assert_same(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    for want, got in zip(execute(before, feeds), execute(after, feeds), strict=True):
        assert want.dtype == got.dtype and want.shape == got.shape
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def check_upgrade(opset: int, signature: str, body: str, **feeds: np.ndarray) -> ir.Model:
    model = parse(opset, signature, body)
    upgraded = upgrade(model)
    onnx.checker.check_model(ir.to_proto(upgraded), full_check=True)
    assert_same(model, upgraded, feeds)
    assert [v.name for v in upgraded.graph.outputs] == [v.name for v in model.graph.outputs]
    return upgraded


X4 = random(2, 4, 6, 5)
BATCH_NORM = """<float[4] s = {1,2,3,4}, float[4] b = {0,1,0,-1}, float[4] m = {0.1,0.2,0.3,0.4},
    float[4] v = {1,2,1,0.5}>"""
IMAGE = "(float[n,4,h,w] x) => (float[N,C,H,W] y)"
MATRIX = "(float[n,m] x) => (float[N,M] y)"
ANY4 = "(float[2,4,6,5] x) => (y)"


@pytest.mark.parametrize(
    ("opset", "signature", "body"),
    [
        # attributes that became inputs
        (7, IMAGE, "y = Slice <axes=[1,3], starts=[1,-3], ends=[3,100]> (x)"),
        (9, IMAGE, "y = Slice <starts=[0,1], ends=[2,-1]> (x)"),
        (7, IMAGE, "y = Pad <pads=[0,0,1,2,0,0,3,1], value=1.5> (x)"),
        (10, IMAGE, "y = Pad <pads=[0,0,1,2,0,0,3,1]> (x)"),
        (10, IMAGE, 'y = Pad <mode="reflect", pads=[0,0,1,2,0,0,3,1]> (x)'),
        (7, IMAGE, 'y = Pad <mode="edge", pads=[0,0,-1,2,0,0,3,-1]> (x)'),
        (7, IMAGE, "y = Clip <min=-0.5, max=0.25> (x)"),
        (10, IMAGE, "y = Clip <max=0.25> (x)"),
        (10, IMAGE, "y = Clip (x)"),
        (9, ANY4, "a = Unsqueeze <axes=[0,5]> (x)  b = Squeeze <axes=[0]> (a)  y = Squeeze (b)"),
        (11, ANY4, "y = Unsqueeze <axes=[-1,1]> (x)"),
        (7, "(float[2,4,6,5] x) => (a, b)", "a, b = Split <axis=1, split=[1,3]> (x)"),
        (11, "(float[2,4,6,5] x) => (a, b, c)", "a, b, c = Split <axis=2> (x)"),
        (13, "(float[2,4,6,5] x) => (a, b, c)", "a, b, c = Split <axis=-2> (x)"),
        (7, "(float[2,4,6,5] x) => (y, int64[2,4,6,2] i)", "y, i = TopK <k=2> (x)"),
        (10, "(float[2,4,6,5] x) => (y, int64[2,4,2,5] i) <int64[1] k = {2}>",
         "y, i = TopK <axis=2> (x, k)"),
        (7, ANY4, "y = Dropout <ratio=0.3> (x)"),
        (10, ANY4, "y = Dropout (x)"),
        (11, ANY4, "y, mask = Dropout (x)"),
        # reductions
        *[(v, ANY4, f"y = {op} <axes=[{a}], keepdims={k}> (x)")
          for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceL1")
          for v, a, k in ((7, "1,3", 0), (11, "-1", 1), (13, "2,3", 1)) if (op, v) != ("ReduceSum", 13)],
        (7, ANY4, "y = ReduceMin (x)"),
        (13, ANY4, "y = ReduceLogSumExp <keepdims=0> (x)"),
        (12, ANY4, "y = ReduceSum <keepdims=0> (x)"),
        (9, ANY4, "a = Abs(x) y = ReduceLogSum <axes=[1]> (a)"),
        (9, ANY4, "y = ReduceProd <axes=[1]> (x)"),
        # softmax and friends flattened
        *[(v, ANY4, f"y = {op} <axis={a}> (x)")
          for op in ("Softmax", "LogSoftmax", "Hardmax")
          for v, a in ((7, 0), (9, 1), (11, 2), (12, 3), (11, -1), (12, -2))],
        (10, IMAGE, "y = Softmax (x)"),
        (7, MATRIX, "y = LogSoftmax (x)"),
        # normalisation
        (7, IMAGE + BATCH_NORM,
         "y = BatchNormalization <epsilon=0.01, spatial=1, momentum=0.5> (x, s, b, m, v)"),
        (9, IMAGE + BATCH_NORM,
         "y = BatchNormalization (x, s, b, m, v)"),
        (18, IMAGE + "<float[2] s = {1,2}, float[2] b = {0.5,-1}>",
         "y = GroupNormalization <num_groups=2, epsilon=0.01> (x, s, b)"),
        (20, "(float[2,4,6,5] x) => (float[2,4,6,5] y) <float[2] r = {1,2}, float[2] b = {0.5,-1}>",
         "s = Abs (r) y = GroupNormalization <num_groups=2> (x, s, b)"),
        (18, "(float[n,c,h,w] x) => (float[n,c,h,w] y) <float[2] s = {1,2}, float[2] b = {0.5,-1}>",
         "y = GroupNormalization <num_groups=2> (x, s, b)"),
        # unchanged in form: their meaning must not have moved
        (7, IMAGE, "y = MaxPool <kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]> (x)"),
        (7, IMAGE, 'y = MaxPool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_LOWER"> (x)'),
        (10, IMAGE, "y = MaxPool <kernel_shape=[3,2], strides=[2,2], ceil_mode=1, dilations=[2,1]> (x)"),
        (7, IMAGE, "y = AveragePool <kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]> (x)"),
        (7, IMAGE, "y = AveragePool <kernel_shape=[3,2], pads=[1,0,1,1], count_include_pad=1> (x)"),
        (10, IMAGE, "y = AveragePool <kernel_shape=[3,2], strides=[2,2], ceil_mode=1, pads=[1,1,1,1]> (x)"),
        (11, IMAGE, """y = AveragePool <kernel_shape=[3,2], strides=[2,2], ceil_mode=1, pads=[1,1,1,1],
            count_include_pad=1> (x)"""),
        (7, IMAGE, 'y = AveragePool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (x)'),
        (7, IMAGE, "y = LpPool <kernel_shape=[3,2], strides=[2,1], p=2> (x)"),
        (7, IMAGE, "y = DepthToSpace <blocksize=2> (x)"),
        (7, IMAGE, "y = LRN <size=3> (x)"),
        (7, ANY4, "y = Flatten <axis=2> (x)"),
        (7, "(float[2,4,6,5] x) => (y) <int64[3] s = {0,-1,5}>", "y = Reshape (x, s)"),
        (7, "(float[2,4,6,5] x) => (y)", "y = ArgMax <axis=3> (x)"),
        (7, "(float[2,4,6,5] x) => (y) <float[4,1,1] s = {0.1,0.2,0.3,0.4}>", "y = PRelu (x, s)"),
        (7, ANY4, "y = Cast <to=6> (x)"),
        (7, ANY4, "y = Upsample <scales=[1.,1.,2.,3.]> (x)"),
        (8, ANY4, "a = Mean(x, x) b = Max(a, x) y = Sum(b, x, x)"),
    ],
)  # fmt: skip
def test_upgrade_keeps_the_meaning(opset: int, signature: str, body: str) -> None:
    x = X4[:, :, 0, 0] if signature == MATRIX else X4
    check_upgrade(opset, signature, body, x=x)


SIGNATURE = "(float[2,4,6,5] x) => (float[a,b,c,d] y)"
SCALES = [[1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 0.6, 0.5], [1.0, 1.0, 0.6, 2.0], [1.0, 1.0, 1.7, 1.3]]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("form", "scales"),
    [
        (form, scales)
        for form in ("Upsample-7", "Upsample-9", "Resize-10", "computed")
        for scales in SCALES
        if min(scales) >= 1 or not form.startswith("Upsample")  # which only enlarges
    ],
)
def test_old_resizing(mode: str, form: str, scales: list[float]) -> None:
    text = ", ".join(map(str, scales))
    if form == "Upsample-7":
        check_upgrade(
            7,
            "(float[2,4,6,5] x) => (float[a,b,c,d] y)",
            f'y = Upsample <mode="{mode}", scales=[{text}]> (x)',
            x=X4,
        )
    elif form == "computed":
        signature = f"{SIGNATURE} <float[4] s = {{{text}}}, float[4] one = {{1, 1, 1, 1}}>"
        check_upgrade(10, signature, f't = Mul(s, one) y = Resize <mode="{mode}"> (x, t)', x=X4)
    else:
        op, opset = form.split("-")
        signature = f"(float[2,4,6,5] x) => (float[a,b,c,d] y) <float[4] s = {{{text}}}>"
        check_upgrade(int(opset), signature, f'y = {op} <mode="{mode}"> (x, s)', x=X4)


@pytest.mark.parametrize(
    "attributes",
    [
        'mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"',
        'mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn"',
        'mode="nearest", nearest_mode="ceil"',
        'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
        'mode="cubic", coordinate_transformation_mode="align_corners", cubic_coeff_a=-0.5',
        'mode="linear", coordinate_transformation_mode="asymmetric", exclude_outside=0',
    ],
)
@pytest.mark.parametrize("scales", SCALES[:2])
def test_resize_11(attributes: str, scales: list[float]) -> None:
    text = ", ".join(map(str, scales))
    signature = f"(float[2,4,6,5] x) => (float[a,b,c,d] y) <float[4] s = {{{text}}}, float[0] roi = {{}}>"
    check_upgrade(11, signature, f"y = Resize <{attributes}> (x, roi, s)", x=X4)


def test_resize_11_to_sizes() -> None:
    signature = "(float[2,4,6,5] x) => (float[a,b,c,d] y) <float[0] e = {}, int64[4] sizes = {2,4,9,7}>"
    upgraded = check_upgrade(11, signature, 'y = Resize <mode="linear"> (x, e, e, sizes)', x=X4)
    (resize,) = upgraded.graph
    assert resize.inputs[1] is None and resize.inputs[2] is None


def test_roi_align_16() -> None:
    check_upgrade(
        10,
        "(float[1,4,6,5] x, float[2,4] rois, int64[2] which) => (float[2,4,3,2] y)",
        "y = RoiAlign <output_height=3, output_width=2, sampling_ratio=2> (x, rois, which)",
        x=X4[:1],
        rois=np.array([[0, 0, 4, 4], [1, 2, 4.5, 5]], np.float32),
        which=np.zeros(2, np.int64),
    )


@pytest.mark.parametrize("mode", ["", 'mode="bicubic",', 'mode="nearest",'])
def test_grid_sample_20(mode: str) -> None:
    grid = np.tanh(random(2, 3, 4, 2))
    body = f"y = GridSample <{mode} align_corners=1> (x, grid)"
    check_upgrade(16, "(float[2,4,6,5] x, float[2,3,4,2] grid) => (float[2,4,3,4] y)", body, x=X4, grid=grid)


def test_scatter_11() -> None:
    signature = "(float[3,3] x, int64[2,3] i, float[2,3] u) => (float[3,3] y)"
    index = np.array([[1, 0, 2], [0, 2, 1]], np.int64)
    upgraded = check_upgrade(9, signature, "y = Scatter (x, i, u)", x=random(3, 3), i=index, u=random(2, 3))
    assert [node.op_type for node in upgraded.graph] == ["ScatterElements"]


@pytest.mark.parametrize("axis", ["axis=1,", "", "axis=2,"])
def test_dft_20(axis: str) -> None:
    body = f"y = DFT <{axis} onesided=0> (x)"
    check_upgrade(17, "(float[2,4,6,1] x) => (float[2,4,6,2] y)", body, x=X4[..., :1])


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_transposed_convolution_means_the_same(auto_pad: str) -> None:
    body = f'y = ConvTranspose <auto_pad="{auto_pad}", strides=[2,3], output_shape=[13,15]> (x, w)'
    signature = "(float[2,4,6,5] x, float[4,3,3,3] w) => (float[2,3,a,b] y)"
    check_upgrade(7, signature, body, x=X4, w=random(4, 3, 3, 3))


def test_recurrent_and_gemm() -> None:
    signature = """(float[5,2,3] x, float[1,16,3] w, float[1,16,4] r, float[1,32] b, float[7] c, float[4,7] g)
        => (float[10,7] y, float[1,2,4] h)"""
    body = """_, h = LSTM <hidden_size=4> (x, w, r, b)
        o, k = LSTM <hidden_size=4, direction="reverse"> (x, w, r, b)
        s = Squeeze <axes=[1]> (o)  f = Reshape (s, shape)  y = Gemm <alpha=0.5, beta=2.0> (f, g, c)"""
    signature += " <int64[2] shape = {10, 4}>"
    weights = {"w": random(1, 16, 3), "r": random(1, 16, 4), "b": random(1, 32)}
    check_upgrade(7, signature, body, x=random(5, 2, 3), **weights, c=random(7), g=random(4, 7))


@pytest.mark.parametrize(("kind", "name"), [(np.float16, "float16"), (np.float64, "double")])
def test_constants_take_the_type_of_the_data(kind: type, name: str) -> None:
    signature = f"({name}[2,3] x) => ({name}[3,4] y)"
    check_upgrade(
        10, signature, "a = Abs (x) y = Pad <pads=[0,1,1,0], value=2.0> (a)", x=random(2, 3, dtype=kind)
    )
    upgraded = upgrade(parse(10, f"({name}[2] x) => ({name}[2] y)", "y = Clip <min=0.25, max=0.75> (x)"))
    (got,) = execute(upgraded, {"x": np.array([0, 0.5], kind)})  # ONNX Runtime has no Clip-6 but for float32
    np.testing.assert_array_equal(got, np.array([0.25, 0.5], kind))


def test_per_element_batch_norm() -> None:
    """BatchNormalization-7 with spatial=0 in closed form: ONNX Runtime has no kernel for it."""
    shapes = "float[4,6,5] s, float[4,6,5] b, float[4,6,5] m, float[4,6,5] v"
    body = "y = BatchNormalization <spatial=0, epsilon=0.5> (x, s, b, m, v)"
    upgraded = upgrade(parse(7, f"(float[2,4,6,5] x, {shapes}) => (float[2,4,6,5] y)", body))
    s, b, m = (random(4, 6, 5) for _ in range(3))
    v = np.abs(random(4, 6, 5))
    (got,) = execute(upgraded, {"x": X4, "s": s, "b": b, "m": m, "v": v})
    np.testing.assert_allclose(got, (X4 - m) / np.sqrt(v + 0.5) * s + b, rtol=1e-5, atol=1e-5)


def test_scan_over_a_batch() -> None:
    """Scan-8: a running sum along the second axis, backwards for the second input."""
    body = """last, sums = Scan <num_scan_inputs = 2, directions = [0, 1],
        body = step (float[3] state, float[3] u, float[3] v) => (float[3] next, float[3] out) {
            t = Add (state, u)  next = Add (t, v)  out = Clip <min=-1.0> (next) }> ( , start, a, b)"""
    signature = "(float[2,3] start, float[2,5,3] a, float[2,5,3] b) => (float[2,3] last, float[2,5,3] sums)"
    feeds = {"start": random(2, 3), "a": random(2, 5, 3), "b": random(2, 5, 3)}
    upgraded = check_upgrade(8, signature, body, **feeds)
    steps = feeds["a"] + feeds["b"][:, ::-1]
    (last, _) = execute(upgraded, feeds)
    np.testing.assert_allclose(last, feeds["start"] + steps.sum(1), rtol=1e-5, atol=1e-5)


def test_bodies_are_upgraded_too() -> None:
    body = """y = If (c) <
        then_branch = yes () => (float[2,3] p) { p = Clip <min=0.0> (x) },
        else_branch = no () => (float[2,3] q) { q = Softmax <axis=0> (x) }>"""
    for c in (True, False):
        check_upgrade(9, "(bool c, float[2,3] x) => (float[2,3] y)", body, c=np.array(c), x=random(2, 3))
    loop = """s, z = Loop (n, , x) <
        body = step (int64 i, bool go, float[2,3] v) => (bool on, float[2,3] w, float[2] t) {
        on = Identity (go)  w = Softmax (v)  t = ReduceMax <axes=[1], keepdims=0> (w) }>"""
    upgraded = check_upgrade(
        9, "(int64 n, float[2,3] x) => (float[2,3] s, float[k,2] z)", loop, n=np.array(3), x=random(2, 3)
    )
    names = [node.name for node in ir.traversal.RecursiveGraphIterator(upgraded.graph)]
    assert len(names) == len(set(names)) and all(names)


def test_what_has_a_meaning_in_training_alone_is_refused_all_at_once() -> None:
    body = """a, m = Dropout (x)  b, p, q, r, t = BatchNormalization (a, s, s, s, s)  y = Identity (b)"""
    signature = "(float[2,3] x, float[3] s) => (float[2,3] y, float[2,3] m, float[3] p)"
    with pytest.raises(UnsupportedError, match=r"2 operations .*Dropout.*mask.*BatchNormalization.*training"):
        upgrade(parse(9, signature, body))


def test_batch_norm_that_lists_training_outputs_is_in_training_even_if_nobody_reads_them() -> None:
    model = parse(
        9,
        "(float[2,3] x, float[3] s) => (float[2,3] y)",
        "y, p, q, r, t = BatchNormalization (x, s, s, s, s)",
    )
    feeds = {"x": random(2, 3), "s": np.ones(3, np.float32)}
    inference = (feeds["x"] - 1) / np.sqrt(1 + 1e-5) + 1
    assert not np.allclose(execute(model, feeds)[0], inference)  # ONNX Runtime agrees
    with pytest.raises(UnsupportedError, match="training mode"):
        upgrade(model)


# ---------------------------------------------------------------------- completeness of the table

# Changes of form from 7 to 21 that need no rewrite: what is new is optional and means, when absent, the old.
NEEDS_NOTHING = {
    **dict.fromkeys(
        [
            *(("ArgMax", 12), ("ArgMin", 12), ("AveragePool", 10), ("AveragePool", 19), ("Cast", 19)),
            *(("CastLike", 19), ("DepthToSpace", 11), ("DequantizeLinear", 13), ("DequantizeLinear", 21)),
            *(("GRU", 14), ("GatherND", 12), ("LSTM", 14), ("LpPool", 18), ("MaxPool", 10)),
            *(("QuantizeLinear", 13), ("QuantizeLinear", 19), ("QuantizeLinear", 21), ("RNN", 14)),
            *(("Reshape", 14), ("Resize", 18), ("ScatterElements", 16), ("ScatterND", 16), ("Shape", 15)),
            ("TopK", 11),
        ],
        "new attribute whose default is the old behaviour",
    ),
    ("Constant", 11): "constants are initializers by then",
    ("Constant", 12): "constants are initializers by then",
    ("Gemm", 11): "C became optional",
    ("MaxPool", 8): "optional second output",
    ("OptionalHasElement", 18): "input became optional",
    ("Pad", 18): "optional axes",
}


def form(schema: onnx.defs.OpSchema) -> object:
    """What a node of that operation looks like: names of parts, which are optional, defaults."""
    inputs = [(i.name, i.option) for i in schema.inputs]
    attributes = {name: (a.type, a.required, str(a.default_value)) for name, a in schema.attributes.items()}
    return inputs, len(schema.outputs), attributes, schema.deprecated


def test_every_change_of_form_has_a_rule_or_a_reason() -> None:
    history: dict[str, dict[int, onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, {})[schema.since_version] = schema
    changed = set()
    for op, versions in history.items():
        known = sorted(v for v in versions if v <= OPSET)
        for before, after in itertools.pairwise(known):
            if after > 7 and form(versions[before]) != form(versions[after]):
                changed.add((op, after))
    meaning_alone = {("Dropout", 10)}
    assert changed | meaning_alone == UPGRADES.keys() | NEEDS_NOTHING.keys()
    assert not UPGRADES.keys() & NEEDS_NOTHING.keys()
