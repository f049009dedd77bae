"""Takes documents of the repository's root into the site, so that each has one source.

Links in them are written for the root; here they lead to the site's page, or become plain text where what
they name is not a page. Pictures in docs/images are taken in as well.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
INCLUDED = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Path in the repository -> page of the site."""

_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"\((?:\.\./)+images/")
_ROOT_LINK = re.compile(rf"\((?:\.\./)+({'|'.join(map(re.escape, INCLUDED))})([#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, page in INCLUDED.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=for_site(text, path)))
    for picture in sorted((ROOT / "docs" / "images").glob("*.*")):
        files.append(File.generated(config, f"images/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page names pictures and the root's documents by where they lie in the repository; not so the site."""
    del config, files
    up = "../" * page.file.src_uri.count("/")
    markdown = _ROOT_LINK.sub(lambda link: f"({up}{INCLUDED[link[1]]}{link[2]}", markdown)
    return _IMAGE.sub(f"({up}images/", markdown)


def for_site(text: str, path: str) -> str:
    """``text`` of the repository's file ``path`` with its links as the site wants them."""

    def replaced(match: re.Match[str]) -> str:
        mark, label, link, anchor = match.groups()
        inside = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if inside in INCLUDED:
            return f"[{label}]({INCLUDED[inside]}{anchor or ''})"
        if inside.startswith("docs/pages/"):
            return f"[{label}]({inside.removeprefix('docs/pages/')}{anchor or ''})"
        if inside.startswith("docs/images/"):
            return f"{mark}[{label}]({inside.removeprefix('docs/')})"
        return label if "`" in label else f"`{label}`"

    return _LINK.sub(replaced, text)
