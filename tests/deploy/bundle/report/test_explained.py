"""The table of why: columns, signs, notes; in all three renderers, and harmless."""

from __future__ import annotations

from dataclasses import replace

from deploy.bundle.read import Bundle
from deploy.bundle.report.content import cleaned, explained_by, report
from deploy.bundle.report.explained import HEADER, whys
from deploy.bundle.report.markdown import markdown
from deploy.bundle.report.page import html
from deploy.spec.explanation import Explained, Explanation
from deploy.spec.measurement import BlockTime

CONV = Explanation(
    id="conv1", precision="int8", float_ms=0.2, integer_ms=0.1, changes_ms=0.01, instead_ms=0.12,
    sqnr_db=31.5, noise=0.25, points=0.0123, reason="INT8 convolution is 2 times float here",
)  # fmt: skip
TAIL = Explanation(id="tail", precision="float", instead_ms=-0.004, reason="the <budget>\x1b")
FOUND = Explained(basis="measured here, 2026-11-21", predicted_ms=0.4, blocks=(CONV, TAIL))


def with_explanations(bundle: Bundle) -> Bundle:
    return replace(bundle, measurements=bundle.measurements.model_copy(update={"explained": FOUND}))


def test_figures_with_their_signs_and_units() -> None:
    times = [BlockTime(id="conv1", float_ms=0.25, ms=0.125), BlockTime(id="tail", ms=0.5)]
    found = whys(FOUND, times, "fraction")
    assert found.rows[0].cells == (
        "conv1", "int8", "0.2000", "0.1000", "0.0100", "+0.1200", "0.2500 → 0.1250", "25.0 %", "1.23 points",
        "INT8 convolution is 2 times float here",
    )  # fmt: skip
    assert found.rows[1].cells[2:9] == ("", "", "", "−0.0040", "0.5000", "", "")
    assert found.kept == tuple(range(len(HEADER)))
    assert "measured here, 2026-11-21; the whole artifact 0.400 ms" in found.notes[0]


def test_columns_that_say_nothing_are_left_out() -> None:
    blocks = (CONV.model_copy(update={"float_ms": None, "integer_ms": None, "changes_ms": None}),)
    found = whys(Explained(why_not="nothing was measured", blocks=blocks), (), "")
    assert [HEADER[i] for i in found.kept] == ["block", "chosen", "instead ms", "noise", "points", "why"]
    assert found.notes[0] == "no milliseconds by the costs of kernels: nothing was measured"
    assert not any("profiled" in note for note in found.notes)


def test_where_no_figure_is_known_there_is_no_table(built: Bundle) -> None:
    alone = Explained(blocks=(Explanation(id="a", precision="float", reason="float build"),))
    assert not whys(alone, (), "").known
    bare = replace(built, measurements=built.measurements.model_copy(update={"explained": alone}))
    assert "Why each block" not in html(report(bare)) and "## Why" not in markdown(report(bare))


def test_the_page_and_markdown_have_it_and_it_is_harmless(built: Bundle) -> None:
    content = report(with_explanations(built))
    page, text = html(content), markdown(content)
    assert "Why each block is computed as it is" in page and "&lt;budget&gt;\\x1b" in page
    assert "## Why" in text and r"the \<budget\>\\x1b" in text
    assert "<budget>" not in page + text.replace(r"\<budget\>", "")


def test_a_real_build_has_noise_and_reasons_in_every_block(built: Bundle) -> None:
    """Nothing was measured of its machine, so no milliseconds are made up."""
    rows = cleaned(explained_by(built)).rows
    assert all(row.noise and not row.float_ms for row in rows if row.precision == "int8")
    assert built.measurements.explained.basis == "" and built.measurements.explained.why_not
