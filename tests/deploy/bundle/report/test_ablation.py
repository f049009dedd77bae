"""The ablation table says what each step took away, and what was undone."""

from __future__ import annotations

from deploy.bundle.read import Bundle
from deploy.bundle.report.ablation import ablation
from deploy.bundle.report.content import report
from deploy.bundle.report.markdown import markdown
from deploy.bundle.report.page import html
from deploy.spec.ablation import Ablation


def found(full: Bundle) -> Ablation:
    assert full.measurements.compression is not None
    return full.measurements.compression


def test_steps_are_told_against_what_they_began_with(full: Bundle) -> None:
    before, undone, kept = ablation(found(full)).rows
    assert before.name == "before" and before.macs == "9.00 k"
    assert (undone.name, undone.kept) == ("1 prune: macs = 0.5", False)
    assert undone.outcome.startswith("undone: ") and undone.latency == ""
    assert (kept.macs, kept.parameters, kept.size) == ("6.75 k (−25 %)", "750 (−25 %)", "3.00 kB (−25 %)")
    assert (kept.score, kept.drop, kept.latency) == ("89.00 %", "−1.00 points", "3.00 ms")
    assert kept.outcome.startswith("softened to 50% of the goal; ")


def test_what_it_rests_on_is_said(full: Bundle) -> None:
    legend = ablation(found(full), ("no 2:4",)).legend
    assert legend[0].endswith("on 100 validation samples")
    assert legend[-2:] == ("classes that lost most: c −10.00 points", "no 2:4")


def test_a_build_without_a_recipe_says_nothing() -> None:
    table = ablation(None)
    assert not table.rows and not table.legend


def test_it_stands_in_page_and_text(full: Bundle) -> None:
    text = markdown(report(full))
    assert "## Compression" in text and "1 prune: macs = 0.25" in text
    page = html(report(full))
    assert 'id="compression"' in page and "1 prune: macs = 0.25" in page


def test_what_lasts_holds_no_times(full: Bundle) -> None:
    lasting = found(full).lasting
    (record,) = lasting.steps
    assert (record.softened, record.seconds, record.figures.latency_ms) == (1, 0, None)
    assert (record.told, record.allowed, record.places) == ("", None, ()), "the budget may be another one"
    assert lasting.before.latency_ms is None and not lasting.basis
