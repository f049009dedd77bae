"""What several plans have in common, and what is counted of an operation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from deploy.adapter.profiles import load_profile
from deploy.bundle.deep import DeepCheck, TensorCheck, alike, bundles_in, compare_plans, computed_in
from deploy.bundle.operations import Deviation
from deploy.bundle.read import Bundle
from deploy.errors import UsageError
from deploy.spec.manifest import Lock
from deploy.spec.plan import BlockPlan, Plan, TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.project import PrecisionRequest
from deploy.spec.tensors import Precision, QuantType


def tensor(kind: QuantType, scale: float, zero: int) -> TensorPlan:
    return TensorPlan(type=kind, scale=(scale,), zero_point=(zero,), origin="calibration")


def found(**tensors: TensorPlan) -> DeepCheck:
    checks = tuple(TensorCheck(name, one, one, ()) for name, one in tensors.items())
    return DeepCheck(cast(Bundle, SimpleNamespace()), "ort", checks, ())


def test_the_same_steps_between_the_same_bounds_are_the_same() -> None:
    """[-12.8, 12.7] in steps of 0.1 is -128..127 about 0, or 0..255 about 128."""
    one = found(
        a=tensor("uint8", 0.1, 128),
        b=tensor("uint8", 0.1, 128),
        c=tensor("int8", 0.1, 0),
        d=tensor("int8", 1, 0),
    )
    other = found(a=tensor("int8", 0.1, 0), b=tensor("int8", 0.1, 1), c=tensor("int8", 0.1 * (1 + 2**-11), 0))
    assert alike([one, other]) == (2, ["b"])
    assert alike([one]) == (0, [])


def test_plans_are_compared_tensor_by_tensor() -> None:
    decided = Plan(
        graph_sha256="", target="", runtime="", tensors={"a": tensor("int8", 1, 0), "b": tensor("int8", 1, 0)}
    )
    read = decided.model_copy(update={"tensors": {"a": tensor("int8", 2, 3), "c": tensor("int8", 1, 0)}})
    checks = {check.name: check.wrong for check in compare_plans(decided, read)}
    assert [line.partition(" ")[0] for line in checks["a"]] == ["zero", "scale"]
    assert checks["b"] == ("in the plan but not in the artifact",)
    assert checks["c"] == ("in the artifact but not in the plan",)
    assert all(not check.wrong for check in compare_plans(decided, decided))


def test_an_operation_on_more_samples_adds_up() -> None:
    one = Deviation("n", "v", 1, 0.0, counts=(9, 1, 0), expected=5, got=6)
    other = Deviation("n", "v", 3, 0.0, counts=(8, 1, 1), expected=2, got=5)
    both = one.joined(other)
    assert both == other.joined(one)
    assert (both.steps, both.counts, both.expected, both.got, both.wrong) == (3, (17, 2, 1), 2, 5, True)
    assert not one.wrong
    assert not replace(both, most=3).wrong  # of what computes in bfloat16 more is allowed


IPHONE = load_profile("iphone15").runtime_named("coreml")
SERVER = load_profile("x86-vnni").runtime_named("ort")


@pytest.mark.parametrize(
    ("runtime", "asked", "blocks", "around"),
    [
        (IPHONE, "auto", ("int8", "fp16"), "float16"),
        (IPHONE, "float", ("float", "float"), "float32"),
        (IPHONE, "int8", ("int8",), "float16"),
        (IPHONE, "fp16", ("fp16",), "float16"),
        (SERVER, "fp16", ("fp16", "float"), "float32"),
        (SERVER, "fp16", ("fp16",), "float32"),
        (SERVER, "int8", ("int8", "bf16"), "bfloat16"),
        (SERVER, "w8", ("w8", "float"), "float32"),
        (IPHONE.model_copy(update={"around": "float32"}), "auto", ("int8", "fp16"), "float16"),
    ],
)
def test_what_floats_were_computed_in_is_the_bundles(
    runtime: Runtime, asked: PrecisionRequest, blocks: tuple[Precision, ...], around: str
) -> None:
    plans = tuple(BlockPlan(id=str(i), nodes=(str(i),), precision=one) for i, one in enumerate(blocks))
    plan = Plan(graph_sha256="", target="", runtime="", tensors={}, blocks=plans)
    lock = Lock(
        source_sha256="", runtime="", calibration_sha256=None, profile_sha256="", seed=0, choices=(),
        float_blocks=(), precision=asked,
    )  # fmt: skip
    assert computed_in(runtime, plan, lock).around == around


def test_bundles_of_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a", "none"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="there is none in it"):
        bundles_in(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name / "manifest.json").write_text("{}")
    assert bundles_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert bundles_in(tmp_path / "a") == [tmp_path / "a"]
