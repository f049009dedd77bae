"""The page: one file, whole, escaped, with everything in it, and the same in a browser's parser."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deploy.bundle.read import Bundle, load_bundle
from deploy.bundle.report.content import Report, report
from deploy.bundle.report.explained import Whys
from deploy.bundle.report.markdown import markdown
from deploy.bundle.report.page import PAGE, html, strips, write_page
from deploy.errors import UsageError
from deploy.pipeline import build

VOID = {"meta", "br", "wbr", "link", "img"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def content(full: Bundle) -> Report:
    return report(full)


@pytest.fixture(scope="module")
def page(content: Report) -> Page:
    return Page(html(content))


def test_it_needs_nothing_from_anywhere(content: Report, page: Page):
    assert not page.tags.keys() & {"script", "img", "link", "iframe", "object", "embed", "form", "video"}
    assert all(value.startswith("#") for _, name, value in page.attributes if name in ("href", "src"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    style = html(content).split("<style>")[1].split("</style>")[0]
    assert "@import" not in style and "http" not in style
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", style))


def test_every_word_of_the_content_is_there(content: Report, page: Page):
    said = re.sub(r"\s+", " ", page.text.replace("\u00a0", " "))
    for text in (
        content.title,
        content.target,
        *content.reasons,
        *(part for row in content.rows for part in (row.name, row.before, row.after, row.change)),
        *(fact.value for fact in content.context),
        *(row.id for row in content.blocks.rows),
        *(row.name for row in content.classes),
        *(f"{fact.name}{fact.value}" for group in content.hardware.groups for fact in group.facts),
        *(command.code for command in content.origin.commands),
        *(file.sha256 for file in content.origin.files),
        content.origin.digest,
    ):
        assert text in said, text
    code = page.text
    assert all(snippet.code.rstrip() in code for snippet in content.running.snippets)


def test_tables_have_headers_and_places_have_names(page: Page):
    scopes = [value for tag, name, value in page.attributes if tag == "th" and name == "scope"]
    assert len(scopes) == page.tags["th"]
    assert set(scopes) <= {"col", "row", "rowgroup"}
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert set(links) <= set(ids)
    labels = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert set(labels) <= set(ids)
    assert ("html", "lang", "en") in page.attributes
    assert page.tags["h1"] == page.tags["main"] == 1


def test_what_is_long_is_folded(page: Page):
    assert page.tags["details"] == 3, "blocks and classes beyond twenty, and those of an accelerator"


def test_nothing_is_shown_of_what_is_not_there(built: Bundle):
    found = Page(
        html(replace(report(built), attempts=(), classes=(), hazards=(), notes=(), whys=Whys((), ())))
    )
    assert "None was seen" in found.text
    assert "What was tried" not in found.text and "Classes" not in found.text
    assert found.tags["details"] == 0


def test_blocks_without_noise_and_times_stand_as_the_graph_has_them(built: Bundle):
    whole = report(built)
    assert whole.blocks.judged and not whole.blocks.timed
    assert "All blocks, the noisiest first" in Page(html(whole)).text
    rows = tuple(replace(row, noise="") for row in whole.blocks.in_order)
    bare = replace(whole, blocks=replace(whole.blocks, rows=rows, in_order=rows))
    text = Page(html(bare)).text
    assert "All blocks, in the order of the graph" in text and "Signal/noise" not in text
    assert "signal/noise" not in markdown(bare) and "signal/noise" in markdown(whole)


def test_a_name_cannot_become_markup(hostile: Bundle, page: Page):
    found = Page(html(report(hostile)))
    assert "script" not in found.tags
    assert {**found.tags, "wbr": 0} == {**page.tags, "wbr": 0}
    assert {(tag, name) for tag, name, _ in found.attributes} == {(t, n) for t, n, _ in page.attributes}


def test_strips_hold_each_build_on_one_scale(content: Report):
    found = strips(content)
    assert list(found) == ["float", "artifact"]
    for name, total in (("float", 9.0), ("artifact", 4.65)):
        _, at, width = found[name][-1]
        assert at + width == pytest.approx(1000 * total / 9.0, abs=0.5)


def test_a_build_leaves_its_page(built: Bundle, bundle_copy: Path):
    text = (built.folder / PAGE).read_text()
    assert text.startswith("<!doctype html>")
    assert str(built.folder.parent) not in text
    assert built.digest in text
    assert PAGE not in built.manifest.files
    (bundle_copy / PAGE).unlink()
    write_page(load_bundle(bundle_copy))
    assert (bundle_copy / PAGE).read_text() == text


def test_a_build_without_its_page_is_a_build_and_says_so(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(bundle: Bundle) -> None:
        raise UsageError("the disk is full")

    monkeypatch.setattr("deploy.stages.assemble.write_page", fail)
    bundle = build(
        network, target="x86-avx2", precision="float", measure=False, out=tmp_path / "dist",
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert not (bundle.folder / PAGE).exists()
    assert "no report.html: the disk is full" in caplog.text
