"""Every unit is what it says: a graph that runs, with as many kernels of its class as repetitions."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from deploy.adapter.profiles import load_profile
from deploy.graph.cost import macs
from deploy.graph.shapes import static_shape
from deploy.predict.kernels import kernels
from deploy.spec.overlay import KernelClass
from deploy.survey.unit import KEPT_FLOAT, Unit, chain
from deploy.survey.units import separated, units

UNITS = units()
RULES = load_profile("x86-vnni").runtime_named("ort")


def label(unit: Unit) -> str:
    return f"{unit.op} {unit.shape}"


def classes(model: ir.Model) -> Counter[KernelClass]:
    return Counter(kernel.op for kernel in kernels(model, {}, RULES))


def run(model: ir.Model, shape: tuple[int | str, ...]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    raw = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    given = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    (result,) = session.run(None, {"x": given})
    return np.asarray(result)


def test_each_unit_has_a_name_of_its_own() -> None:
    """By which a survey that was killed knows what it has measured."""
    names = [label(unit) for unit in UNITS]
    assert len(set(names)) == len(names)


def test_every_class_is_measured_and_the_short_survey_has_the_common_ones() -> None:
    measured = {unit.op for unit in UNITS} | {op for unit in UNITS for op in unit.also}
    assert measured == set(get_args(KernelClass)) - {"entry"}, "that comes of convolutions and products"
    quick = units(quick=True)
    assert 20 <= len(quick) <= len(UNITS) / 2
    assert {unit.op for unit in quick} == {unit.op for unit in UNITS} - {"grouped"}
    assert all(unit.quick for unit in quick)


@pytest.mark.parametrize("unit", UNITS, ids=label)
def test_as_many_kernels_as_repetitions(unit: Unit) -> None:
    counts = [classes(chain(unit.input, unit.extend, repeats)) for repeats in (1, 2, 4)]
    op: KernelClass = {"convert": "pointwise", "overhead": "activation"}.get(unit.op, unit.op)  # type: ignore[assignment]
    each = counts[0][op]
    assert each in (1, 2)
    assert [count[op] for count in counts] == [each, 2 * each, 4 * each]
    assert all(also in counts[0] for also in unit.also)


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit.without is not None], ids=label)
def test_what_a_unit_is_compared_with_lacks_its_kernel_alone(unit: Unit) -> None:
    assert unit.without is not None
    whole, less = (classes(chain(unit.input, extend, 4)) for extend in (unit.extend, unit.without))
    if unit.op == "convert":
        assert whole == less, "as floats they are the same"
        return
    expected = {unit.op: 3 if unit.op == "reduce" else 4}  # one mean is there, that all share
    assert dict(whole - less) == expected and not less - whole


@pytest.mark.parametrize("unit", UNITS, ids=label)
def test_a_unit_runs_and_keeps_its_numbers_in_bounds(unit: Unit) -> None:
    """A chain that overflowed or died out would be timed on denormals, infinities or zeros."""
    model = chain(unit.input, unit.extend, 2)
    result = run(model, unit.input)
    assert result.shape == static_shape(model.graph.outputs[0])
    assert np.isfinite(result).all()
    assert 1e-4 < np.abs(result).max() < 1e4


def test_long_chains_neither_overflow_nor_die() -> None:
    """Of convolutions and products, in which each step multiplies anew."""
    for unit in units(quick=True):
        small = (macs(chain(unit.input, unit.extend, 1)) or 0) < 2e6
        if unit.op in ("conv", "pointwise", "gemm", "stem") and small:
            result = run(chain(unit.input, unit.extend, 34), unit.input)
            assert 1e-6 < np.abs(result).max() < 1e8, label(unit)


def test_two_units_alike_are_the_same_graph() -> None:
    unit = UNITS[-1]
    first, second = (ir.serde.serialize_model(chain(unit.input, unit.extend, 3)) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_a_separated_unit_is_followed_by_what_nothing_merges_with() -> None:
    unit = next(unit for unit in UNITS if unit.op == "transcendental")
    apart = separated(unit)
    assert apart.without is not None
    whole, less = (chain(apart.input, extend, 3) for extend in (apart.extend, apart.without))
    assert classes(whole) == {"transcendental": 3, "pool": 3} and classes(less) == {"pool": 3}
    assert [node.op_type for node in whole.graph][1::2] == ["MaxPool"] * 3


def test_every_second_convolution_of_a_change_of_form_stays_float() -> None:
    unit = next(unit for unit in UNITS if unit.op == "convert")
    convolutions = [n for n in chain(unit.input, unit.extend, 3).graph if n.op_type == "Conv"]
    assert [(n.name or "").startswith(KEPT_FLOAT) for n in convolutions] == [False, True] * 3
