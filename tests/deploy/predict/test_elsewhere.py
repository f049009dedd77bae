"""Devices that were not measured, against arithmetic by hand and laws that are known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from deploy.adapter.profiles import load_profile
from deploy.predict.elsewhere import Roof, Sheet, Transferred, roof_of, roof_seen
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Costs
from deploy.spec.overlay import Cost, KernelClass
from deploy.spec.profile import Profile
from deploy.spec.tensors import Precision


def profile(facts: Mapping[str, float | bool | str], **memory: float) -> Profile:
    def figures(found: Mapping[str, float | bool | str]) -> dict[str, object]:
        return {
            name: value if value == "unknown" else {"value": value, "source": "made up", "date": "2026-11-21"}
            for name, value in found.items()
        }

    runtime = {"name": "ort", "onnx_opset": 21, "source": "made up", "date": "2026-11-21"}
    return Profile.model_validate({
        "name": "made-up", "title": "made up", "hardware": figures(facts), "memory": figures(memory),
        "runtime": [runtime],
    })  # fmt: skip


def kernel(op: KernelClass, precision: Precision, macs: int, moved: int) -> Kernel:
    return Kernel(op, precision, ("n",), macs, moved)


def cost(op: KernelClass, precision: Precision, macs: int, moved: int, ms: float) -> Cost:
    return Cost(op=op, precision=precision, macs=macs, bytes=moved, ms=ms, spread=0.0)


# Data sheets.


@pytest.mark.parametrize(
    ("facts", "precision", "per_ms"),
    [
        ({"int8_dense": 100}, "int8", 50e9),  # 100e12 operations a second are 50e12 MACs, 50e9 a millisecond
        ({"int8_sparse": 200}, "int8", 50e9),  # sparse figures count what is not computed
        ({"int8_dense": 90, "int8_sparse": 200}, "int8", 45e9),
        ({"int8_dense": "unknown", "int8_sparse": 200}, "int8", 50e9),
        ({"fp16_dense": 40}, "fp16", 20e9),
        ({"fp16_dense": 40}, "bf16", 20e9),
        ({"fp16_dense": 40, "bf16_dense": 30}, "bf16", 15e9),
        ({"fp8_dense": 8}, "fp8", 4e9),
        ({"fp32_peak": 5.3}, "float", 2.65e9),
        ({"clock": 2.5, "fp32_macs_per_cycle": 16}, "float", 2.5e6 * 16 * 4),
        ({"clock": 2.5, "int8_macs_per_cycle": 128}, "int8", 2.5e6 * 128 * 4),
        ({"clock": "unknown", "int8_macs_per_cycle": 128}, "int8", None),
        ({"int8_dense": True}, "int8", None),
        ({"int8_dense": "many"}, "int8", None),
        ({}, "float", None),
    ],
)
def test_peaks_are_those_of_the_data_sheet(
    facts: dict[str, float | bool | str], precision: Precision, per_ms: float | None
) -> None:
    """With four threads, which only a figure for one core is multiplied by."""
    found = roof_of(profile(facts), threads=4).macs.get(precision)
    assert found == (None if per_ms is None else pytest.approx(per_ms))


def test_bandwidth_is_bytes_a_millisecond() -> None:
    assert roof_of(profile({}, bandwidth=51.2)).bytes == pytest.approx(51.2e6)
    assert roof_of(profile({})).bytes is None


def test_a_real_data_sheet() -> None:
    """A100: 624 TOPS in INT8, 312 TFLOPS in FP16, 2,039 GB/s. A product of 8192 x 8192 x 8192 in INT8 takes
    2 * 8192^3 / 624e12 s = 1.762 ms, the addition of 1e9 numbers in FP16 6e9 / 2039e9 s = 2.943 ms."""
    sheet = Sheet(roof_of(load_profile("nvidia-a100")))
    product = sheet.kernel(kernel("gemm", "int8", 8192**3, 3 * 8192**2))
    assert product.estimate.ms == pytest.approx(1.762, rel=1e-3)
    assert sheet.kernel(kernel("gemm", "fp16", 8192**3, 6 * 8192**2)).estimate.ms == pytest.approx(
        3.524, rel=1e-3
    )
    addition = sheet.kernel(kernel("elementwise", "fp16", 0, 6 * 10**9))
    assert addition.estimate.ms == pytest.approx(2.943, rel=1e-3)
    assert product.stand_in and product.estimate.nearest == math.inf
    assert sheet.fixed(1000, "fp16") == 0
    assert "data sheet" in sheet.basis and "least" in sheet.basis


def test_the_roof_is_the_higher_of_both() -> None:
    """A kernel of few products for each byte takes as long as its bytes, depthwise ones as their products."""
    sheet = Sheet(Roof({"float": 1e9}, 1e6))
    assert sheet.kernel(kernel("conv", "float", 10**9, 10)).estimate.ms == pytest.approx(1)
    assert sheet.kernel(kernel("conv", "float", 10, 10**7)).estimate.ms == pytest.approx(10)
    assert sheet.kernel(kernel("depthwise", "float", 3 * 10**9, 10**6)).estimate.ms == pytest.approx(3)


@pytest.mark.parametrize(
    ("roof", "at"),
    [
        (Roof({}, 1e6), kernel("conv", "float", 10, 10)),
        (Roof({"fp16": 1e9}, 1e6), kernel("gemm", "int8", 10, 10)),
    ],
)
def test_what_no_data_sheet_says_is_an_error(roof: Roof, at: Kernel) -> None:
    with pytest.raises(LookupError, match=f"how fast {at.op} in {at.precision} is"):
        Sheet(roof).kernel(at)


def test_without_a_bandwidth_products_are_all_that_counts_and_that_is_said() -> None:
    sheet = Sheet(Roof({"float": 1e9}, None))
    assert sheet.kernel(kernel("conv", "float", 10**9, 10**9)).estimate.ms == 1
    assert sheet.kernel(kernel("elementwise", "float", 0, 10)).estimate.ms == 0
    assert sheet.kernel(kernel("convert", "int8", 0, 10)).estimate.ms == 0
    assert sheet.basis == "the data sheet's multiply-accumulates alone, the least that is possible"
    assert Sheet(Roof({}, 1e6)).basis == "the data sheet's roofline, the least that is possible"


# Transfer.

CLASSES: tuple[KernelClass, ...] = ("conv", "pointwise", "gemm", "elementwise", "depthwise", "softmax")


def machine(factor: float = 1.0, classes: tuple[KernelClass, ...] = CLASSES) -> tuple[Cost, ...]:
    """A device that reaches 1e9 MACs and 1e7 bytes a millisecond, that times faster than another."""
    found = []
    for op in classes:
        for k in range(10, 27, 4):
            by_products = op in ("conv", "pointwise", "gemm")
            ms = (2**k / 1e9 if by_products else 2**k / 1e7) / factor
            macs, moved = (2**k, 2**12) if by_products else (0, 2**k)
            found += [cost(op, precision, macs, moved, ms) for precision in ("float", "int8")]
    return (*found, *(cost("overhead", p, 0, 64, 0.1 / factor) for p in ("float", "int8")))


def roofs(factor: float) -> tuple[Roof, Roof]:
    here = Roof({"float": 1e9, "int8": 1e9}, 1e7)
    return here, Roof({p: factor * peak for p, peak in here.macs.items()}, factor * 1e7)


SOME = (kernel("conv", "float", 1 << 20, 1 << 12), kernel("gemm", "int8", 1 << 15, 1 << 12),
        kernel("elementwise", "float", 0, 1 << 20), kernel("softmax", "int8", 0, 1 << 13))  # fmt: skip


@pytest.mark.parametrize("at", SOME, ids=lambda k: k.op)
def test_a_device_twice_as_fast_by_its_peaks_takes_half(at: Kernel) -> None:
    source = Costs(machine())
    found = Transferred(source, roofs=roofs(2.0)).kernel(at)
    assert found.estimate.ms == pytest.approx(source.kernel(at).estimate.ms / 2)
    assert found.stand_in and found.estimate.deviation > source.kernel(at).estimate.deviation


@pytest.mark.parametrize("own", [(), machine(2.0, ("conv", "elementwise"))])
def test_what_is_exactly_twice_as_fast_is_predicted_exactly(own: tuple[Cost, ...]) -> None:
    """Whether its own points confirm the data sheet or there are none."""
    truth = Costs(machine(2.0))
    found = Transferred(Costs(machine()), own, roofs(2.0))
    for at in SOME:
        assert found.kernel(at).estimate.ms == pytest.approx(truth.kernel(at).estimate.ms, rel=1e-6)


def test_without_peaks_its_own_points_find_the_factor() -> None:
    truth = Costs(machine(2.0))
    found = Transferred(Costs(machine()), machine(2.0, ("conv", "elementwise")))
    for at in SOME:
        assert found.kernel(at).estimate.ms == pytest.approx(truth.kernel(at).estimate.ms, rel=0.03)


def test_few_points_are_held_back() -> None:
    """One that says eight times faster is half believed, the more there are the more; and the surer it is."""
    at = kernel("gemm", "float", 1 << 20, 1 << 12)
    plain = Costs(machine()).kernel(at).estimate.ms
    own = machine(8.0, ("conv",))[:-2]
    found = [Transferred(Costs(machine()), own[:count]).kernel(at).estimate for count in (1, 2, 5, 10)]
    factors = [plain / estimate.ms for estimate in found]
    assert 1 < factors[0] < 8 and factors == sorted(factors) and factors[-1] > 7
    deviations = [estimate.deviation for estimate in found]
    assert deviations == sorted(deviations, reverse=True)


def test_own_points_win() -> None:
    """A class measured on the device itself is read off there, whatever others and the peaks say."""
    own = (cost("conv", "float", 1 << 20, 1 << 12, 123.0),)
    found = Transferred(Costs(machine()), own, roofs(2.0))
    conv = found.kernel(kernel("conv", "float", 1 << 20, 1 << 12))
    assert conv.estimate.ms == pytest.approx(123.0) and not conv.stand_in
    assert found.kernel(kernel("conv", "int8", 1 << 20, 1 << 12)).stand_in, (
        "in another precision they are not"
    )


def test_points_of_a_class_say_more_of_it_than_of_others() -> None:
    own = (*machine(4.0, ("conv",))[0:10:2], *machine(1.0, ("elementwise",))[0:10:2])
    found = Transferred(Costs(machine()), own)
    plain = Costs(machine())
    conv, gemm = (kernel(op, "int8", 1 << 20, 1 << 12) for op in ("conv", "gemm"))
    gains = [plain.kernel(k).estimate.ms / found.kernel(k).estimate.ms for k in (conv, gemm)]
    assert gains[0] > 3 > gains[1] > 1


@pytest.mark.parametrize("unknown", [None, (Roof({}, None), Roof({}, None)), (roofs(2.0)[0], Roof({}, None))])
def test_unknown_peaks_scale_by_nothing_and_say_so(unknown: tuple[Roof, Roof] | None) -> None:
    found = Transferred(Costs(machine()), roofs=unknown)
    for at in SOME:
        lent = Costs(machine()).kernel(at)
        assert found.kernel(at).estimate.ms == pytest.approx(lent.estimate.ms)
        assert found.kernel(at).estimate.deviation >= 0.7 and found.kernel(at).stand_in
    assert "not known" in found.basis
    assert Transferred(Costs(machine()), roofs=roofs(2.0)).basis == "scaled from another machine"


def test_one_peak_of_two_scales_what_it_rules() -> None:
    there, here = roofs(4.0)
    found = Transferred(Costs(machine()), roofs=(there, Roof(here.macs, None)))
    plain = Costs(machine())
    gains = [plain.kernel(at).estimate.ms / found.kernel(at).estimate.ms for at in SOME]
    assert gains == pytest.approx([4, 4, 1, 1])


def test_what_a_graph_takes_is_lent_unless_it_was_measured() -> None:
    assert Transferred(Costs(machine())).fixed(0, "float") == pytest.approx(0.1)
    own = (cost("overhead", "float", 0, 64, 0.03),)
    assert Transferred(Costs(machine()), own).fixed(0, "float") == pytest.approx(0.03)


def test_nothing_to_lend_is_an_error() -> None:
    with pytest.raises(LookupError):
        Transferred(Costs(()), (cost("conv", "float", 1, 1, 1.0),)).kernel(kernel("norm", "float", 0, 1))


def test_points_that_nothing_is_lent_for_and_points_of_no_time_do_not_count() -> None:
    own = (
        cost("norm", "float", 0, 1024, 5.0),
        cost("gemm", "float", 1024, 1024, 0.0),
        cost("entry", "float", 0, 1, 9.0),
    )
    source = Costs(machine(1.0, ("conv",)))
    at = kernel("conv", "float", 1 << 20, 1 << 12)
    assert Transferred(source, own).kernel(at).estimate.ms == pytest.approx(source.kernel(at).estimate.ms)


# What was reached.


def test_the_best_that_was_reached() -> None:
    """1e9 MACs and 1e7 bytes a millisecond, with a lucky point among a hundred that is not believed."""
    points = [cost("conv", "float", 10**6, 10, 1e-3)] * 60 + [
        cost("elementwise", "float", 0, 10**4, 1e-3)
    ] * 60
    lucky = [cost("conv", "float", 10**6, 10, 1e-6), cost("move", "float", 0, 10**4, 1e-6)]
    slow = [cost("gemm", "float", 10**6, 10, 1.0), cost("concat", "float", 0, 10**4, 1.0)]
    nothing = [cost(op, "float", 100, 100, 0.0) for op in ("conv", "move")]  # all was taken off
    found = roof_seen([*points, *lucky, *slow, *nothing])
    assert found.macs == {"float": pytest.approx(1e9)} and found.bytes == pytest.approx(1e7)


def test_nothing_was_reached() -> None:
    assert roof_seen([]) == Roof({}, None)
