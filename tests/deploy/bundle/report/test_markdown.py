"""The Markdown reads as the content does in an independent renderer, and no name becomes markup."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from deploy.bundle.read import Bundle
from deploy.bundle.report.content import cleaned, report
from deploy.bundle.report.markdown import bar, escaped, markdown


def tokens(text: str) -> list[Token]:
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        found += [token, *(token.children or ())]
    return found


def shown(text: str) -> str:
    return "\n".join(
        t.content for t in tokens(text) if t.type in ("text", "text_special", "code_inline", "fence")
    )


def test_everything_is_in_it(full: Bundle):
    content = report(full)
    text = shown(markdown(content))
    for word in (
        content.title, *content.reasons, *(r.after for r in content.rows),
        *(a.name for a in content.attempts),
        *(row.id for row in content.blocks.rows), *(row.name for row in content.classes), *content.notes,
        *(f.value for g in content.hardware.groups for f in g.facts), content.origin.digest,
        *(c.code for c in content.origin.commands), *(s.code.rstrip() for s in content.running.snippets),
    ):  # fmt: skip
        assert all(part in text for part in word.split("_")), word


def test_a_name_cannot_become_markup(hostile: Bundle, full: Bundle):
    found = tokens(markdown(report(hostile)))
    html = [token.content.strip() for token in found if token.type in ("html_block", "html_inline")]
    assert {line.partition("\n")[0] for line in html} <= {"<details>", "</details>"}
    assert not any("script" in line for line in html)
    assert not any(token.type in ("link_open", "image") for token in found)
    headings = sum(token.type == "heading_open" for token in found)
    assert headings == sum(token.type == "heading_open" for token in tokens(markdown(report(full))))


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_an_escaped_text_reads_as_it_is(text: str):
    """In a cell of a table, where reports put nearly all of them."""
    word = cleaned(text).strip()
    table = f"| a |\n|---|\n| x{escaped(word)}x |\n"
    children = [token for token in tokens(table) if token.type not in ("inline",) and token.content]
    assert "".join(t.content for t in children if t.type in ("text", "text_special")).endswith(f"x{word}x")
    assert not [t for t in tokens(table) if t.type in ("html_inline", "link_open", "em_open", "code_inline")]


@pytest.mark.parametrize(
    "text", ["# a", "- a", "+ a", "= a", "1. a", "12) a", "> a", "| a |", "```", "---", "a_b*c*"]
)
def test_nothing_starts_a_block(text: str):
    found = tokens(escaped(text))
    assert [token.type for token in found if token.type.endswith("_open")] == ["paragraph_open"]
    assert "".join(t.content for t in found if t.type in ("text", "text_special")) == text


def test_bars_are_as_long_as_they_take(full: Bundle):
    rows = {row.id: row for row in report(full).blocks.rows}
    assert bar(rows["b29"], 0.3) == "█" * 24
    assert bar(rows["b14"], 0.3) == "█" * 12 + "░" * 12
    assert bar(rows["b14"], 0.0) == ""
