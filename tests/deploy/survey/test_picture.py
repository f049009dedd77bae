"""The picture of an overlay: written, the same each time, and of everything that has a size."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest

from deploy.errors import ToolchainError, UsageError
from deploy.spec.overlay import Cost, KernelClass, Machine, Overlay, RuntimeCosts
from deploy.survey.picture import save_picture

CLASSES: tuple[KernelClass, ...] = ("conv", "stem", "norm", "convert", "entry")


def overlay(*classes: KernelClass, ms: float = 0.1, cpu: str = "Some CPU") -> Overlay:
    return Overlay(
        profile="x86-vnni",
        machine=Machine(cpu=cpu, arch="x86_64", features=(), cores=1),
        date=datetime.date(2026, 11, 21),
        command="deploy profile",
        seconds=1,
        noise=0.01,
        runtime=tuple(
            RuntimeCosts(
                name=name,
                version="1",
                threads=1,
                cost=tuple(
                    Cost(op=op, precision=precision, macs=size, bytes=4 * size, ms=ms * size, spread=0)
                    for op in classes
                    for precision in ("float", "int8", "fp8")
                    for size in (10, 10, 100)
                ),
            )
            for name in ("ort", "openvino")
        ),
    )


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_kinds_of_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    save_picture(overlay("conv", "softmax", "overhead"), path)
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")


def test_equal_overlays_give_equal_pictures_of_each_class(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        save_picture(overlay(*CLASSES, cpu="A $CPU$ of 3 $"), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("given", [overlay(), overlay("overhead")], ids=["none", "no size"])
def test_an_overlay_without_points_has_no_picture(tmp_path: Path, given: Overlay) -> None:
    with pytest.raises(UsageError, match="no points to draw"):
        save_picture(given, tmp_path / "p.png")


def test_points_that_took_no_time_are_left_out(tmp_path: Path) -> None:
    save_picture(overlay("conv", ms=0), tmp_path / "p.png")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no kind of picture is called '\.gif'") as caught:
        save_picture(overlay("conv"), tmp_path / "p.gif")
    assert ".png" in caught.value.hint


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        save_picture(overlay("conv"), tmp_path / "absent" / "p.png")


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolchainError, match="matplotlib is not installed") as caught:
        save_picture(overlay("conv"), tmp_path / "p.png")
    assert "deploy-compiler[plots]" in caught.value.hint
