"""Takes the pictures in docs/images anew: reports of bundles at phone and desktop width, light and dark.

    python docs/screenshots.py digits=examples/digits/dist/x86-cpu r18=dist/x86-cpu

Each name makes ``<name>-desktop.png`` and ``<name>-phone.png``. Needs Chromium and Pillow.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle.read import load_bundle
from deploy.bundle.report.content import report
from deploy.bundle.report.page import html

if TYPE_CHECKING:
    from PIL import Image

IMAGES = Path(__file__).with_name("images")
DESKTOP, PHONE = (1100, 1500), (390, 844)
PHONES = 4
"""Screens of a phone, one below the other on the page, that stand side by side in its picture."""
GAP = 30
COLOURS = 96
"""Few enough for a small file; the page has hardly more."""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for word in sys.argv[1:]:
        name, _, folder = word.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            page = Path(scratch) / "report.html"
            page.write_text(html(report(load_bundle(folder))), encoding="utf-8")
            save(shot(page, DESKTOP), IMAGES / f"{name}-desktop.png")
            save(shot(page, DESKTOP, dark=True), IMAGES / f"{name}-desktop-dark.png")
            width, height = PHONE
            save(side_by_side(shot(page, (width, PHONES * height))), IMAGES / f"{name}-phone.png")


def shot(page: Path, size: tuple[int, int], *, dark: bool = False) -> Image.Image:
    """The top of a page in a window of ``size``."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is needed: apt install chromium")
    picture = page.with_suffix(".png")
    words = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}",
        *(["--force-dark-mode"] if dark else []), page.as_uri(),
    ]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as found:
        return found.convert("RGB")


def side_by_side(column: Image.Image) -> Image.Image:
    """A tall picture cut into screens of a phone, from left to right."""
    from PIL import Image

    width, height = PHONE
    whole = Image.new("RGB", (PHONES * width + (PHONES - 1) * GAP, height), (200, 200, 196))
    for i in range(PHONES):
        whole.paste(column.crop((0, i * height, width, (i + 1) * height)), (i * (width + GAP), 0))
    return whole


def save(picture: Image.Image, path: Path) -> None:
    from PIL import Image

    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    sys.stdout.write(f"{path.name}: {path.stat().st_size // 1000} kB\n")


if __name__ == "__main__":
    main()
