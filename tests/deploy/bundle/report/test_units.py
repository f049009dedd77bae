"""What a report says of an accelerator: the sums, the worst first, each rule with who says it."""

from __future__ import annotations

import pytest

from deploy.bundle.read import Bundle
from deploy.bundle.report.content import report
from deploy.bundle.report.markdown import markdown
from deploy.bundle.report.page import html
from deploy.bundle.report.summary import context
from deploy.bundle.report.units import staying, units
from deploy.cli.units import show_units
from deploy.spec.residency import Residency


def test_the_sums_are_told(full: Bundle) -> None:
    (unit,) = report(full).units
    assert unit.title == "On the engine"
    assert unit.sentences == (
        "predicted by the profile's rules, not measured",
        "of the MACs over 99.9 % stay, under 0.1 % leave",
        "of 30 blocks 28 stay, 1 is unknown, 1 leaves",
        "2 values would cross to or from CPU",
    )


def test_the_facts_of_a_bundle_have_it_in_a_few_words(full: Bundle, built: Bundle) -> None:
    told = {fact.name: fact.value for fact in context(full)}
    assert told["on the engine"] == "over 99.9 % of the MACs, predicted by the profile's rules"
    assert not any(fact.name.startswith("on the ") for fact in context(built))
    nothing = Residency(unit="u", otherwise="o", blocks={"stays": 2, "leaves": 1}, macs={})
    assert staying(nothing) == "2 of 3 blocks, predicted by the profile's rules"


def test_the_worst_blocks_come_first(full: Bundle) -> None:
    (unit,) = report(full).units
    assert [row.cells for row in unit.rows] == [
        ("b2", "GRU", "leaves", "1", "rleaves"),
        ("b1", "Odd", "unknown", "", "nothing is known of Odd"),
        ("b0", "k", "stays, slower", "", "rslower"),
    ]
    assert [row.kept for row in unit.rows] == [False, False, True]


def test_rules_say_who_said_so_and_what_helps(full: Bundle) -> None:
    (unit,) = report(full).units
    assert unit.rules[0].cells == (
        "rleaves",
        "leaves",
        "words; unroll-recurrent helps",
        "the vendor",
        "source, 2026-11-21",
    )


def test_every_renderer_has_the_section(full: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    content = report(full)
    show_units(full.manifest.residency)
    for text in (markdown(content), html(content), capsys.readouterr().out):
        assert "On the engine" in text
        assert "words; unroll-recurrent helps" in text.replace("\n", " ") or "unroll\\-recurrent" in text
        assert "nothing is known of Odd" in text
    assert "On the" not in markdown(content.__class__(**{**vars(content), "units": ()}))


def test_a_model_that_stays_as_a_whole_needs_one_look() -> None:
    (unit,) = units([Residency(unit="u", otherwise="o", blocks={"stays": 1}, macs={"stays": 3})])
    assert unit.sentences[1:] == ("of the MACs 100.0 % stay", "of 1 block 1 stays")
    assert not unit.rows and not unit.rules
    (idle,) = units([Residency(unit="u", otherwise="o", blocks={}, macs={}, uncounted=1)])
    assert idle.sentences[1:] == ("of 0 blocks 0 stay", "the MACs of 1 node are not known")
