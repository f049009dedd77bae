"""What a graph takes is the sum of what its kernels take."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph.blocks import partition
from deploy.graph.shapes import infer
from deploy.predict.curve import Estimate
from deploy.predict.kernels import Kernel, UnknownSizeError
from deploy.predict.latency import Costs, Part, Prediction, predict
from deploy.spec.overlay import Cost, KernelClass, RuntimeCosts
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import Figure, Runtime
from deploy.spec.tensors import Precision

PER_MAC: dict[KernelClass, float] = {"pointwise": 1e-6, "gemm": 3e-6}
"""Of the float kernels below; INT8 takes a quarter of it, what has no MACs 1e-5 for each byte."""
RUNTIME = Runtime.model_validate({
    "name": "ort", "onnx_opset": 21, "fuses": ("Conv+Relu",), "source": "made up", "date": "2026-11-21",
    "quant": {
        "activation": "uint8", "compute": ("Conv", "Gemm"), "forward": ("Flatten",), "source": "made up",
        "date": "2026-11-21",
    },
})  # fmt: skip


def cost(
    op: KernelClass, precision: Precision, macs: int, moved: int, ms: float, spread: float = 0.0
) -> Cost:
    return Cost(op=op, precision=precision, macs=macs, bytes=moved, ms=ms, spread=spread)


def points() -> tuple[Cost, ...]:
    """Exact laws: pointwise and gemm by MACs, all else by bytes, a graph 0.5 ms and 2e-5 for each byte."""
    found = []
    for k in range(8, 25, 4):
        size = 1 << k
        for op, each in PER_MAC.items():
            found.append(cost(op, "float", size, 1 << (k % 5 + 8), each * size))
            found.append(cost(op, "int8", size, 1 << (k % 5 + 8), each / 4 * size))
        found += [cost(op, "float", 0, size, 1e-5 * size) for op in ("activation", "softmax")]
        found.append(cost("convert", "int8", 0, size, 1e-5 * size))
        found += [cost("entry", p, 0, size, 2e-5 * size) for p in ("float", "int8")]
    found += [cost("overhead", p, 0, 64, 0.5) for p in ("float", "int8")]
    return tuple(found)


COSTS = Costs(points())

NETWORK = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 8, 4, 4] x) => (float[n, 10] y) {
    [conv1] a = Conv (x, w1)
    [relu] b = Relu (a)
    [conv2] c = Conv (b, w2)
    [flat] d = Flatten (c)
    [dense] e = Gemm (d, w3)
    [soft] y = Softmax (e)
}"""


def network() -> ir.Model:
    model = ir.from_onnx_text(NETWORK)
    by_name = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in {"w1": (16, 8, 1, 1), "w2": (8, 16, 1, 1), "w3": (128, 10)}.items():
        by_name[name].const_value = ir.tensor(np.zeros(shape, np.float32), name=name)
        by_name[name].dtype, by_name[name].shape = ir.DataType.FLOAT, ir.Shape(shape)
        model.graph.register_initializer(by_name[name])
    return infer(model)


MACS = 16 * 16 * 8, 8 * 16 * 16, 128 * 10
"""Of the two convolutions and the product."""
ENDS = 4 * (128 + 10)
"""Bytes that go in and out."""


def quantized(*names: str) -> dict[str, TensorPlan]:
    activation = TensorPlan(type="int8", scale=(1.0,), zero_point=(0,), origin="calibration")
    weight = activation.model_copy(update={"origin": "weight"})
    return {name: weight if name[0] == "w" else activation for name in names}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_float_graph_is_the_sum_of_its_kernels(batch: int) -> None:
    found = predict(network(), {}, RUNTIME, COSTS, batch)
    products = batch * (1e-6 * (MACS[0] + MACS[1]) + 3e-6 * MACS[2])
    softmax = 1e-5 * batch * 4 * 20
    assert found.fixed == pytest.approx(0.5 + 2e-5 * ENDS * batch, rel=1e-4)
    assert found.ms == pytest.approx(products + softmax + 0.5 + 2e-5 * ENDS * batch, rel=1e-4)
    assert [part.kernel.nodes for part in found.parts] == [
        ("conv1", "relu"),
        ("conv2",),
        ("dense",),
        ("soft",),
    ]
    assert not any(part.stand_in for part in found.parts)


def test_integers_and_their_changes_of_form_are_added_up() -> None:
    """The second convolution alone in INT8: its input changes form, and what a view shows of it."""
    tensors = quantized("b", "c", "w2")
    found = predict(network(), tensors, RUNTIME, COSTS)
    products = 1e-6 * MACS[0] + 0.25e-6 * MACS[1] + 3e-6 * MACS[2]
    changes = 1e-5 * 5 * (256 + 128)
    assert found.ms == pytest.approx(products + changes + 1e-5 * 80 + 0.5 + 2e-5 * ENDS, rel=1e-4)
    assert found.by_class()["convert"] == pytest.approx(changes, rel=1e-4)


@pytest.mark.parametrize(
    "tensors", [{}, quantized("b", "c", "w2"), quantized("x", "b", "w1", "w2", "c", "d", "w3")]
)
def test_blocks_add_up_to_all_but_what_is_fixed(tensors: dict[str, TensorPlan]) -> None:
    model = network()
    found = predict(model, tensors, RUNTIME, COSTS)
    by_block = found.by_block(partition(model))
    assert list(by_block) == [block.id for block in partition(model)]
    assert sum(by_block.values()) == pytest.approx(found.ms - found.fixed)
    assert sum(found.by_class().values()) == pytest.approx(found.ms - found.fixed)


def test_a_change_of_form_counts_for_the_block_that_reads_it() -> None:
    model = network()
    plain = predict(model, {}, RUNTIME, COSTS).by_block(partition(model))
    mixed = predict(model, quantized("b", "c", "w2"), RUNTIME, COSTS).by_block(partition(model))
    assert mixed["conv1"] == pytest.approx(plain["conv1"])
    assert mixed["conv2"] == pytest.approx(0.25 * plain["conv2"] + 1e-5 * 5 * 256, rel=1e-4)
    assert mixed["dense"] == pytest.approx(plain["dense"] + 1e-5 * 5 * 128, rel=1e-4)


def part(op: KernelClass, ms: float, deviation: float) -> Part:
    return Part(Kernel(op, "float", ("n",), 1, 1), Estimate(ms, deviation, 0.0))


def test_kernels_of_one_class_err_together_and_classes_apart() -> None:
    """Beside what all kernels of a network have in common; nine of ten are 1.645 deviations."""

    def expected(ms: float, *errors: float) -> tuple[float, float]:
        factor = math.exp(1.645 * math.sqrt(0.1**2 + sum(error**2 for error in errors)))
        return ms / factor, ms * factor

    alone = Prediction((part("conv", 2.0, 0.3),), 0.0)
    assert alone.interval == pytest.approx(expected(2.0, 0.3))
    together = Prediction((part("conv", 1.0, 0.3), part("conv", 1.0, 0.3)), 0.0)
    assert together.interval == pytest.approx(alone.interval)
    apart = Prediction((part("conv", 1.0, 0.3), part("gemm", 1.0, 0.3)), 0.0)
    assert apart.interval == pytest.approx(expected(2.0, 0.15, 0.15))
    fixed = Prediction((part("conv", 2.0, 0.3),), 2.0)
    assert fixed.interval == pytest.approx(expected(4.0, 0.15)), "what is fixed adds nothing to it"


def test_a_graph_that_takes_nothing() -> None:
    assert Prediction((), 0.0).interval == (0.0, 0.0) and Prediction((), 0.0).ms == 0
    assert Prediction((part("conv", 0.0, 0.7),), 0.0).interval == (0.0, 0.0)


@pytest.mark.parametrize(
    ("op", "precision", "by", "expected"),
    [
        ("stem", "float", [("conv", "float"), ("elementwise", "float")], ("conv", "float")),
        ("pointwise", "int8", [("conv", "int8"), ("pointwise", "float")], ("conv", "int8")),
        ("pointwise", "int8", [("gemm", "int8"), ("conv", "int8")], ("gemm", "int8")),
        ("softmax", "int8", [("softmax", "float"), ("conv", "int8")], ("softmax", "float")),
        ("norm", "bf16", [("norm", "fp16"), ("norm", "int8")], ("norm", "fp16")),
        ("conv", "float", [("conv", "bf16"), ("pointwise", "float")], ("pointwise", "float")),
        ("convert", "int8", [("elementwise", "float")], ("elementwise", "float")),
    ],
)
def test_what_was_not_measured_is_taken_from_the_most_alike_and_less_sure(
    op: KernelClass,
    precision: Precision,
    by: list[tuple[KernelClass, Precision]],
    expected: tuple[KernelClass, Precision],
) -> None:
    """Another class in the same precision before the same class in another."""
    known = [
        cost(*key, 0, 1 << k, (index + 1) * 1e-6 * 2**k) for index, key in enumerate(by) for k in (10, 14, 18)
    ]
    found = Costs(tuple(known)).kernel(Kernel(op, precision, ("n",), 0, 1 << 14))
    assert found.stand_in
    assert found.estimate.ms == pytest.approx((by.index(expected) + 1) * 1e-6 * 2**14, rel=1e-3)
    low, high = found.estimate.interval()
    assert high / low > 9, "a factor of three either way"


def test_its_own_points_go_before_all_stand_ins() -> None:
    known = [cost("softmax", "int8", 0, 1 << 20, 7.0), cost("softmax", "float", 0, 1 << 10, 1.0)]
    found = Costs(tuple(known)).kernel(Kernel("softmax", "int8", (), 0, 1 << 20))
    assert found.estimate.ms == pytest.approx(7) and not found.stand_in


@pytest.mark.parametrize("known", [[], ["overhead", "entry"], ["transpose"]])
def test_nothing_alike_is_an_error(known: list[KernelClass]) -> None:
    costs = Costs(tuple(cost(op, "float", 0, 64, 1.0) for op in known))
    with pytest.raises(LookupError, match="nothing like pointwise in float was measured"):
        predict(network(), {}, RUNTIME, costs)


def test_nothing_stands_in_for_activations_of_16_bits() -> None:
    """LiteRT's kernels for them take up to a hundred times as long as its float ones."""
    known = Costs((cost("conv", "float", 1, 1, 1.0), cost("conv", "int8", 1, 1, 1.0)))
    with pytest.raises(LookupError, match="nothing like conv in w8a16 was measured"):
        known.kernel(Kernel("conv", "w8a16", (), 1, 1))


def test_integers_never_stand_in_for_floats() -> None:
    with pytest.raises(LookupError):
        Costs((cost("conv", "int8", 1, 1, 1.0),)).kernel(Kernel("conv", "float", (), 1, 1))


def test_points_of_no_time_are_left_out() -> None:
    measured = RuntimeCosts(
        name="ort",
        version="1",
        threads=1,
        cost=(cost("conv", "float", 8, 8, 0.0), cost("gemm", "float", 8, 8, 1.0)),
    )
    assert [point.op for point in Costs.of(measured).points] == ["gemm"]


def test_what_a_graph_takes_at_least_stands_in_across_floats() -> None:
    """Where a runtime computes floats in bfloat16, its INT8 graphs begin as those do."""
    costs = Costs((cost("overhead", "bf16", 0, 64, 0.25), cost("entry", "bf16", 0, 1000, 1.0)))
    assert costs.overhead("int8") == pytest.approx(0.25)
    assert costs.fixed(1000, "int8") == pytest.approx(1.25)
    assert Costs(()).fixed(1000, "float") == 0


def test_a_free_size_is_an_error_that_names_the_node() -> None:
    model = network()
    model.graph.inputs[0].shape = ir.Shape(["n", 8, "h", 4])
    with pytest.raises(UnknownSizeError) as caught:
        predict(infer(model), {}, RUNTIME, COSTS)
    assert caught.value.node == "conv1"


def test_a_heavy_activation_in_passing_takes_what_it_takes_beyond_moving_its_data() -> None:
    heavy = [cost("transcendental", "float", 0, 1 << k, 7e-5 * (1 << k)) for k in range(8, 25, 4)]
    costs, size = Costs((*points(), *heavy)), 1 << 12
    alone = Kernel("transcendental", "float", ("t",), 0, size)
    for precision in ("float", "int8"):
        plain = Kernel("gemm", precision, ("a",), size, size)
        both = replace(plain, along=(alone, alone))
        took = costs.kernel(both).estimate.ms - costs.kernel(plain).estimate.ms
        assert took == pytest.approx(2 * (7e-5 - 1e-5) * size, rel=1e-3)
    assert COSTS.kernel(both) == replace(COSTS.kernel(plain), kernel=both), (
        "where it was not measured, nothing"
    )


def test_an_activation_that_is_lighter_than_its_data_saves_nothing() -> None:
    light = [cost("hard", "float", 0, 1 << k, 0.5e-5 * (1 << k)) for k in range(8, 25, 4)]
    costs = Costs((*points(), *light))
    plain = Kernel("gemm", "float", ("a",), 1 << 12, 1 << 12)
    both = replace(plain, along=(Kernel("hard", "float", ("h",), 0, 1 << 12),))
    assert costs.kernel(both).estimate == costs.kernel(plain).estimate


def test_products_of_one_row_wait_for_weights_that_leave_the_cache() -> None:
    """Against bytes over rates: 40 steps of 64 by 64 are 660 kB in floats, 170 kB in integers. Two rows hide
    it, and so does a survey whose chain of such weights was larger than the cache itself."""

    def network(rows: int, count: int, size: int) -> ir.Model:
        nodes = "\n".join(f"[m{i}] v{i + 1} = Gemm (v{i}, w{i})" for i in range(count))
        model = ir.from_onnx_text(
            f"""<ir_version: 10, opset_import: ["" : 21]>
            g (float[{rows}, {size}] v0) => (float[{rows}, {size}] v{count}) {{ {nodes} }}"""
        )
        for i in range(count):
            tensor = ir.tensor(np.ones((size, size), np.float32), name=f"w{i}")
            value = model.graph.node(i).inputs[1]
            assert value is not None
            value.const_value = tensor
            model.graph.register_initializer(value)
        return infer(model)

    facts = {
        name: Figure(value=value, source="made up", date=date(2026, 11, 22))
        for name, value in (("l2", 600.0), ("read_l2", 50.0), ("read_l3", 10.0))
    }
    cached = Costs.of(RuntimeCosts(name="ort", version="1", threads=1, cost=points()), facts)

    def waits(model: ir.Model) -> float:
        return predict(model, {}, RUNTIME, cached).ms - predict(model, {}, RUNTIME, COSTS).ms

    late = 40 * 64 * 64 * 4 * (1 / 10 - 1 / 50) / 1e6
    assert waits(network(1, 40, 64)) == pytest.approx(late)
    assert waits(network(1, 20, 64)) == 0
    assert waits(network(2, 40, 64)) == 0
    assert waits(network(1, 40, 96)) == 0
    assert Costs.of(RuntimeCosts(name="ort", version="1", threads=1, cost=points())).cache is None
