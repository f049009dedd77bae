"""Saturation against hand-made vectors, what real kernels without VNNI gave, and the runtime here."""

import numpy as np
import pytest

from deploy.execute.reference import open_graph
from deploy.graph.blocks import partition
from deploy.graph.qdq import dequantize_array, quantize_array
from deploy.measure.host import host
from deploy.quantize.assign import assign
from deploy.quantize.place import find_chains, observed_values, place
from deploy.quantize.ranges import Histogram
from deploy.quantize.saturation import (
    Saturation,
    can_saturate,
    count,
    emulate,
    pair_sums,
    saturated_product,
    worst,
)

FULL = np.full((1, 2), 255, np.uint8)


@pytest.mark.parametrize(
    ("codes", "weights", "wanted"),
    [
        ([255, 255], [127, 127], 32767),  # 64770
        ([255, 255], [-127, -127], -32768),
        ([255, 255], [127, -127], 0),  # the two cancel before they are too large
        ([255, 1], [127, 127], 32512),  # 32512 fits
        ([255, 3], [127, 127], 32766),
        ([255, 4], [127, 127], 32767),  # 32893
        ([255, 255, 255, 255], [127, 127, -127, -127], -1),  # each pair on its own
        ([255, 255, 255], [127, 1, 127], 255 * 128 + 255 * 127),
        ([255, 255, 255], [127, 127, 127], 32767 + 255 * 127),  # the odd one is alone
    ],
)
def test_pairs_by_hand(codes, weights, wanted):
    product = saturated_product(np.array([codes], np.uint8), np.array([weights], np.int8).T)
    assert product.tolist() == [[wanted]]


def test_seven_bits_never_leave_16_bits():
    assert [can_saturate(limit) for limit in (127, 65, 64, 63)] == [True, True, False, False]
    extremes = np.array([-64, 64], np.int8)
    sums = pair_sums(FULL, np.array([[a, b] for a in extremes for b in extremes], np.int8).T)
    assert np.abs(sums).max() == 2 * 255 * 64 < 2**15


def test_two_hundred_products_against_python_integers():
    rng = np.random.default_rng(0)
    codes, weights = rng.integers(0, 256, (8, 51), np.uint8), rng.integers(-128, 128, (51, 4), np.int8)
    for row, found in zip(codes.tolist(), saturated_product(codes, weights).tolist(), strict=True):
        for column, value in zip(weights.T.tolist(), found, strict=True):
            products = [a * b for a, b in zip(row, column, strict=True)] + [0]
            pairs = [products[i] + products[i + 1] for i in range(0, 51, 2)]
            assert value == sum(min(max(pair, -32768), 32767) for pair in pairs)


def test_a_product_as_a_real_kernel_gave_it():
    """MatMulInteger of ONNX Runtime 1.31.1 with VNNI and AVX-512 hidden; that without VNNI gave the same."""
    rng = np.random.default_rng(7)
    codes, weights = (
        rng.integers(150, 256, (3, 7), dtype=np.uint8),
        rng.integers(-127, 128, (7, 4), dtype=np.int8),
    )
    recorded = [[-17029, -57866, 43859, -7537], [-12448, -56061, 44232, 6500], [-10836, -53159, 45212, -2045]]
    assert saturated_product(codes, weights).tolist() == recorded
    assert (codes.astype(int) @ weights.astype(int)).tolist() != recorded


def test_the_runtime_here_computes_as_its_processor_can():
    """Exact where the CPU has 8-bit dot products, as emulated where it has none."""
    ort, helper = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx.helper")
    rng = np.random.default_rng(1)
    codes, weights = (
        rng.integers(0, 256, (5, 64), dtype=np.uint8),
        rng.integers(-127, 128, (64, 8), dtype=np.int8),
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("a", 2, [5, 64])],
        [helper.make_tensor_value_info("y", 6, [5, 8])],
        [helper.make_tensor("b", 3, [64, 8], weights.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": codes})
    exact = codes.astype(np.int32) @ weights.astype(np.int32)
    features = host().features
    if host().arch == "x86_64" and not features & {"avx512_vnni", "avx_vnni"} and "avx2" in features:
        assert (found == saturated_product(codes, weights)).all()
    else:
        assert (found == exact).all()


def test_share_and_error_in_closed_form():
    # Of two rows one saturates: 64770 becomes 32767 where (255 - 5) * 127 * 2 = 63500 is right.
    codes, weights = np.array([[255, 255], [5, 5]], np.uint8), np.array([[127], [127]], np.int8)
    found = count(codes, weights, 5, np.array([0.5]))
    assert (found.pairs, found.saturated) == (2, 1)
    assert found.share == 0.5
    assert found.error == pytest.approx((64770 - 32767) / 63500)
    assert Saturation().error == 0.0


OPENVINO = [-171523, -104790, -64522, 60330, -3659, 16295, -157850, -59391]
"""A convolution in OpenVINO 2026.4.1 with ONEDNN_MAX_CPU_ISA=AVX2, and with AVX512_CORE."""
ORT = [0, 0, 0, 225, 102, 171, 0, 59]
"""QLinearConv of ONNX Runtime 1.31.1 with VNNI hidden: result / 512 + 128, rounded and cut to uint8."""


def test_convolutions_as_real_kernels_gave_them():
    rng = np.random.default_rng(8)
    codes = rng.integers(150, 256, (1, 5, 3, 3), dtype=np.uint8)
    weights = rng.integers(-127, 128, (8, 5, 3, 3), dtype=np.int8)
    running = saturated_product(
        codes[0].transpose(1, 2, 0).reshape(1, -1), weights.transpose(0, 2, 3, 1).reshape(8, -1).T
    )
    assert np.clip(np.rint(running / 512) + 128, 0, 255).astype(int).ravel().tolist() == ORT
    filled = np.pad(codes, ((0, 0), (0, 3), (0, 0), (0, 0)))[0].transpose(1, 2, 0).reshape(1, -1)
    kernel = np.pad(weights, ((0, 0), (0, 3), (0, 0), (0, 0))).transpose(0, 2, 3, 1).reshape(8, -1).T
    assert saturated_product(filled, kernel).ravel().tolist() == OPENVINO


CASES = {
    "plain": ("Conv <kernel_shape = [3, 3]>", (4, 3, 3, 3), "n, 3, 5, 5"),
    "strided, padded": (
        "Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>", (4, 3, 3, 3), "n, 3, 5, 5"
    ),
    "same upper": (
        'Conv <kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER">', (4, 3, 2, 2), "n, 3, 5, 5"
    ),
    "same lower": (
        'Conv <kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_LOWER">', (4, 3, 2, 2), "n, 3, 5, 5"
    ),
    "dilated": ("Conv <kernel_shape = [3, 3], dilations = [2, 2]>", (4, 3, 3, 3), "n, 3, 6, 6"),
    "grouped": ("Conv <kernel_shape = [3, 3], group = 2>", (4, 3, 3, 3), "n, 6, 5, 5"),
    "signal": ("Conv <kernel_shape = [3]>", (4, 3, 3), "n, 3, 7"),
    "product": ("MatMul", (9, 4), "n, 6, 9"),
    "dense": ("Gemm <transB = 1>", (4, 9), "n, 9"),
}  # fmt: skip


@pytest.mark.parametrize("pairs", ["running", "by-four"])
@pytest.mark.parametrize("case", CASES)
def test_layers_are_unrolled_as_the_graph_computes_them(case, pairs, graph, unsigned):
    """Without saturation the power of what is emulated is that of the layer itself, in float64 by hand."""
    operation, shape, size = CASES[case]
    model = graph(f"g (float[{size}] x) => (y) {{ y = {operation} (x, w) }}", {"w": shape})
    rules = unsigned.quant.model_copy(update={"weight_bits": 8, "pairs": pairs})
    runtime = unsigned.model_copy(update={"quant": rules})
    dims = [int(d) for d in size.split(", ")[1:]]
    feeds = np.random.default_rng(0).uniform(-1, 2, (2, *dims)).astype(np.float32)
    found, values = emulated(model, runtime, feeds)
    (layer,) = found.values()
    want = ir_run(model, {"x": values})
    assert layer.power == pytest.approx(float(np.square(want, dtype=np.float64).sum()), rel=0.05)
    assert layer.saturated == 0


def emulated(model, runtime, feeds):
    """What is found, and the values that the input's codes stand for."""
    blocks = partition(model)
    chains = find_chains(model, blocks, runtime)
    histogram = Histogram()
    histogram.add(np.array([feeds.min(), feeds.max() * 8], np.float32), feeds.min(), feeds.max() * 8)
    histograms = dict.fromkeys(observed_values(model, chains, runtime), histogram)
    placement = place(model, blocks, {b.id: "int8" for b in blocks}, chains, runtime)
    assignment = assign(model, placement, histograms, runtime.quant, "minmax")

    def run(names):
        yield dict.fromkeys(names, feeds)

    params = assignment.tensors["x"]
    return emulate(placement, assignment, runtime.quant, run), dequantize_array(
        quantize_array(feeds, params), params
    )


def ir_run(model, feeds):
    with open_graph(model, optimised=False) as session:
        return session.run(feeds)["y"]


def test_depthwise_layers_widen_first_and_are_left_out(graph, unsigned):
    text = "g (float[n, 4, 5, 5] x) => (y) { y = Conv <kernel_shape = [3, 3], group = 4> (x, w) }"
    runtime = unsigned.model_copy(update={"quant": unsigned.quant.model_copy(update={"pairs": "running"})})
    feeds = np.ones((1, 4, 5, 5), np.float32)
    assert emulated(graph(text, {"w": (4, 1, 3, 3)}), runtime, feeds)[0] == {}
    assert len(emulated(graph(text, {"w": (8, 1, 3, 3)}), runtime, feeds)[0]) == 1


def test_a_vector_of_weights_is_left_out(graph, unsigned):
    model = graph("g (float[n, 9] x) => (y) { y = MatMul (x, w) }", {"w": np.ones(9, np.float32)})
    assert emulated(model, unsigned, np.ones((2, 9), np.float32))[0] == {}


def test_an_exact_runtime_has_nothing_to_emulate(graph, unsigned):
    model = graph("g (float[n, 9] x) => (y) { y = MatMul (x, w) }", {"w": (9, 4)})
    ((_, found),) = worst(emulated(model, unsigned, np.ones((2, 9), np.float32))[0])
    assert found.pairs == 0


def test_all_full_codes_saturate(graph, unsigned):
    """Ones times ones: codes of 255 and 127, so every pair leaves 16 bits and half the result is lost."""
    model = graph("g (float[n, 8] x) => (y) { y = MatMul (x, w) }", {"w": np.ones((8, 4), np.float32)})
    rules = unsigned.quant.model_copy(update={"weight_bits": 8, "pairs": "running"})
    runtime = unsigned.model_copy(update={"quant": rules})
    histogram = Histogram()
    histogram.add(np.array([0, 1], np.float32), 0.0, 1.0)
    blocks = partition(model)
    chains = find_chains(model, blocks, runtime)
    placement = place(model, blocks, {b.id: "int8" for b in blocks}, chains, runtime)
    histograms = dict.fromkeys(observed_values(model, chains, runtime), histogram)
    for bits, share, error in ((8, 1.0, 1 - 32767 / 64770), (7, 0.0, 0.0)):
        narrow = rules.model_copy(update={"weight_bits": bits})
        assignment = assign(model, placement, histograms, narrow, "minmax")
        (found,) = emulate(
            placement, assignment, narrow, lambda _: iter([{"x": np.ones((2, 8), np.float32)}])
        ).values()
        assert (found.share, found.error) == (share, pytest.approx(error))
