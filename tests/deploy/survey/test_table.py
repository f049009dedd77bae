"""What an overlay says of classes of kernels, against figures worked out by hand."""

from __future__ import annotations

import datetime

import pytest

from deploy.spec.overlay import Cost, Failure, KernelClass, Machine, Overlay, RuntimeCosts
from deploy.spec.tensors import Precision
from deploy.survey.table import ClassRow, class_rows, most_unsteady

PAIR: tuple[Precision, Precision] = ("float", "int8")


def cost(
    precision: Precision, ms: float, macs: int = 0, bytes: int = 0, *, op: KernelClass = "conv",
    shape: str = "s", spread: float = 0.01,
) -> Cost:  # fmt: skip
    return Cost(op=op, precision=precision, macs=macs, bytes=bytes, ms=ms, spread=spread, shape=shape)


def runtime(*costs: Cost, failures: tuple[Failure, ...] = (), name: str = "ort") -> RuntimeCosts:
    return RuntimeCosts(name=name, version="1", threads=1, cost=costs, failures=failures)


def only(*costs: Cost, failures: tuple[Failure, ...] = ()) -> ClassRow:
    (row,) = class_rows(runtime(*costs, failures=failures))
    return row


def test_speeds_are_those_of_the_largest_size() -> None:
    row = only(
        cost("float", 1, 10**6, shape="small"),
        cost("float", 2, 10**8, shape="large"),
        cost("int8", 0.5, 10**8, shape="large"),
    )
    assert row.unit == "GOP/s"
    assert row.speeds == {"float": pytest.approx(100), "int8": pytest.approx(400)}
    assert row.gains == {"int8": 4}
    assert (row.points, row.failed) == (3, 0)


def test_what_multiplies_nothing_is_told_in_bytes_and_gains_by_time() -> None:
    row = only(
        cost("float", 1, bytes=4 * 10**6, op="elementwise"), cost("int8", 0.5, bytes=10**6, op="elementwise")
    )
    assert row.unit == "GB/s"
    assert row.speeds == {"float": pytest.approx(4), "int8": pytest.approx(2)}
    assert row.gains == {"int8": 2}


def test_what_has_no_size_is_told_in_milliseconds() -> None:
    row = only(cost("float", 0.004, bytes=64, op="overhead"))
    assert (row.unit, row.speeds, row.gains, row.int8) == ("ms", {"float": 0.004}, {}, "")


def test_a_time_of_nothing_divides_nothing() -> None:
    row = only(cost("float", 0, 10**6), cost("int8", 0, 10**6))
    assert row.speeds == {"float": 0, "int8": 0} and row.gains == {} and row.int8 == ""


def test_shapes_that_only_one_has_are_not_compared() -> None:
    row = only(cost("float", 1, 10**6, shape="a"), cost("int8", 1, 10**7, shape="b"))
    assert row.gains == {} and row.int8 == ""


def test_where_float32_was_not_measured_another_float_stands_for_it() -> None:
    row = only(cost("bf16", 1, 10**6), cost("int8", 0.5, 10**6), cost("fp8", 0.25, 10**6))
    assert row.gains == {"int8": 2, "fp8": 4} and row.int8 == "pays"


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(1, 0.5), (2, 1)], "pays"),
        ([(1, 1.5), (1, 2)], "slower"),
        ([(1, 0.99), (1, 1.02)], "no difference"),
        ([(1, 0.5), (1, 1)], "pays at 1 of 2 sizes"),
        ([(1, 0.5), (1, 2), (1, 1)], "pays at 1 of 3 sizes, slower at 1"),
        ([(1, 2), (1, 1)], "slower at 1 of 2 sizes"),
    ],
)
def test_the_verdict_on_int8_counts_sizes(pairs: list[tuple[float, float]], said: str) -> None:
    costs = [
        cost(precision, ms, 10**6, shape=str(i))
        for i, pair in enumerate(pairs)
        for precision, ms in zip(PAIR, pair, strict=True)
    ]
    assert only(*costs).int8 == said


def test_what_lies_within_the_spread_is_no_difference() -> None:
    assert only(cost("float", 1, 10**6, spread=0.5), cost("int8", 0.8, 10**6, spread=0.3)).int8 == (
        "no difference"
    )


def test_what_failed_is_counted_and_said() -> None:
    failure = Failure(op="norm", precision="int8", shape="768", reason="no kernel")
    row = only(cost("float", 1, bytes=100, op="norm"), failures=(failure,))
    assert (row.points, row.failed, row.int8) == (1, 1, "could not be measured")
    assert only(cost("float", 1, bytes=100, op="norm")).int8 == "float only"
    assert only(cost("float", 1, bytes=100, op="concat")).int8 == "", "it joins what it gets"
    row = only(failures=(failure,))
    assert (row.points, row.speeds, row.unit) == (0, {}, "ms")


def test_classes_come_in_the_order_of_the_survey() -> None:
    ops: tuple[KernelClass, ...] = ("stem", "conv", "stem")
    rows = class_rows(runtime(*(cost("float", 1, 1, op=op) for op in ops)))
    assert [row.op for row in rows] == ["stem", "conv"]


def test_the_most_unsteady_classes_come_with_an_interval() -> None:
    overlay = Overlay(
        profile="x86-vnni",
        machine=Machine(cpu="Some CPU", arch="x86_64", features=(), cores=1),
        date=datetime.date(2026, 11, 21),
        command="deploy profile",
        seconds=1,
        noise=0.3,
        runtime=(
            runtime(cost("float", 1, 1, spread=0.1), cost("float", 2, 1, spread=0.3), cost("int8", 1, 1)),
            runtime(cost("int8", 10, 1, spread=0.4, shape="worst"), name="openvino"),
        ),
    )
    found = most_unsteady(overlay, 2)
    assert [(f.runtime, f.precision, f.spread) for f in found] == [
        ("openvino", "int8", 0.4),
        ("ort", "float", pytest.approx(0.2)),
    ]
    assert [(f.worst.shape, f.worst.ms) for f in found] == [("worst", 10), ("s", 2)]
    assert [f.interval for f in found] == [(8, 12), pytest.approx((1.7, 2.3))]
