"""Units in a profile: they come back as they were written, and refuse what they do not know."""

from __future__ import annotations

import datetime

import onnx
import pytest
from pydantic import ValidationError

from deploy.adapter.profiles import all_profiles, load_profile, merge
from deploy.errors import UsageError
from deploy.graph.rules import RULES
from deploy.spec.document import parse, parse_toml, render
from deploy.spec.profile import Profile
from deploy.spec.residency import BlockResidency, Residency, RuleFound
from deploy.spec.unit import ComputeUnit, Condition

TODAY = datetime.date(2026, 11, 21)
TEXT = """
schema = 1
name = "board"
title = "A board"

[[runtime]]
name = "ort"
onnx_opset = 21
source = "s"
date = 2026-11-21

[runtime.unit.accelerator]
otherwise = "the CPU"
runs = ["Conv", "Relu"]
source = "its manual"
date = 2026-11-21

[runtime.unit.accelerator.rule.wide-kernels]
operations = ["Conv"]
when = { kernel_above = [7, 5], attributes = { auto_pad = ["SAME_UPPER"], group = [1] } }
effect = "leaves"
words = "kernels go up to 7 by 5"
said = "vendor"
remedies = ["unroll-recurrent"]
source = "its manual"
date = 2026-11-21
"""
UNITS = [
    pytest.param(unit, id=f"{profile.name}-{runtime.name}-{name}")
    for profile in all_profiles()
    for runtime in profile.runtime
    for name, unit in runtime.unit.items()
]


def test_a_unit_comes_back_from_toml_and_json() -> None:
    profile = parse_toml(Profile, TEXT, origin="board.toml")
    unit = profile.runtime[0].unit["accelerator"]
    assert unit.rule["wide-kernels"].when.kernel_above == (7, 5)
    assert unit.rule["wide-kernels"].when.attributes == {"auto_pad": ("SAME_UPPER",), "group": (1,)}
    assert parse(Profile, render(profile), origin="board.json") == profile


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kernel_above", "kernel_over", "unknown key 'runtime.0.unit.accelerator.rule.wide-kernels.when"),
        ('effect = "leaves"', 'effect = "goes"', "effect"),
        ('said = "vendor"', 'said = "a friend"', "said"),
        ('["unroll-recurrent"]', '["unroll-loops"]', "remedies"),
        ("rule.wide-kernels", 'rule."Wide kernels"', "rule"),
        ('otherwise = "the CPU"', "", "otherwise"),
    ],
)
def test_what_is_not_known_is_refused_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"board\.toml:\d+: ") as refused:
        parse_toml(Profile, TEXT.replace(old, new), origin="board.toml")
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("kernel_above", "kernels_above", "kernel_above"),
        ("words =", "word =", "words"),
        ("otherwise", "otherwize", "otherwise"),
        ("onnx_opset", "opset", "onnx_opset"),
        ("runs", "zzz", None),
    ],
)
def test_a_misspelt_key_is_told_with_those_it_is_like(old: str, new: str, meant: str | None) -> None:
    with pytest.raises(UsageError, match="unknown key") as refused:
        parse_toml(Profile, TEXT.replace(old, new), origin="board.toml")
    assert ("did you mean" in refused.value.hint) is (meant is not None)
    assert meant is None or f"'{meant}'" in refused.value.hint


@pytest.mark.parametrize(
    "given", [{"axes": (-1,)}, {"axes": (0,), "size_above": 3}, {"border": True}, {"kernel_above": (0,)}]
)
def test_conditions_that_say_nothing_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Condition.model_validate(given)


def test_a_profile_adds_rules_to_those_that_it_inherits() -> None:
    rules = {"leaves": {"rule": {"old": "leaves"}, "runs": ["Conv"]}, "slower": {"rule": {"new": "slower"}}}
    old, own = ({"runtime": [{"name": "a", "unit": {"u": rules[key]}}]} for key in ("leaves", "slower"))
    merged = {"rule": {"old": "leaves", "new": "slower"}, "runs": ["Conv"]}
    assert merge(old, own) == {"runtime": [{"name": "a", "unit": {"u": merged}}]}
    newer, older = (load_profile(name).runtime_named("coreml").unit for name in ("iphone15", "mac-m2"))
    assert set(newer["Neural Engine"].rule) < set(older["Neural Engine"].rule)


@pytest.mark.parametrize("unit", UNITS)
def test_our_units_speak_of_operations_and_rewritings_that_exist(unit: ComputeUnit) -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    named = [*unit.runs, *(op for rule in unit.rule.values() for op in rule.operations)]
    assert set(named) <= known
    assert len(unit.runs) == len(set(unit.runs))
    for rule in unit.rule.values():
        assert set(rule.remedies) <= set(RULES)
        assert not rule.words.endswith(".")
        assert "https://" in rule.source


def test_a_residency_comes_back_as_it_was_written() -> None:
    rule = RuleFound(name="a", effect="leaves", words="w", said="vendor", source="s", date=TODAY)
    found = Residency(
        unit="u",
        otherwise="CPU",
        blocks={"stays": 3, "leaves": 1},
        macs={"stays": 30, "leaves": 10},
        crossings=2,
        apart=(BlockResidency(id="b", kind="Gather", state="leaves", macs=10, rules=("a",)),),
        rules=(rule,),
    )
    assert parse(Residency, render(found), origin="x") == found
    assert found.share == 0.75
    assert found.model_copy(update={"macs": {}}).share is None
