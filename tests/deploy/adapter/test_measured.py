"""The measured machines that come with the package: each can be read, says with what it was taken, and where
it was taken is nobody's business."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deploy.adapter.overlays import TOO_NOISY, measured_machines, named_overlay, read_overlay
from deploy.adapter.profiles import load_profile
from deploy.spec.document import render

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "profiles" / "measured").glob("*.json"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_there_are_some_and_all_are_found() -> None:
    assert FILES
    found = measured_machines()
    assert sorted(o.machine.cpu for o in found) == sorted(read_overlay(p).machine.cpu for p in FILES)


@each
def test_an_overlay_says_with_which_versions_when_and_how(path: Path) -> None:
    overlay = read_overlay(path)
    assert overlay.runtime and overlay.command.startswith("deploy profile")
    for runtime in overlay.runtime:
        assert re.match(r"\d+\.\d+", runtime.version), runtime.name
        assert runtime.cost and all(cost.ms > 0 for cost in runtime.cost)
    assert overlay.noise < TOO_NOISY and not overlay.quick
    assert re.fullmatch(r"[a-z0-9-]+", path.stem) and render(overlay) == path.read_text(encoding="utf-8")


@each
def test_its_runtimes_are_those_of_its_profile(path: Path) -> None:
    overlay = read_overlay(path)
    profile = load_profile(overlay.profile)
    for runtime in overlay.runtime:
        rules = profile.runtime_named(runtime.name)
        assert runtime.settings == rules.options, "a changed setting makes its points another's"
        assert {cost.precision for cost in runtime.cost} <= {
            "float",
            rules.float_precision,
            "int8",
            "fp16",
            "bf16",
            "fp8",
        }


@each
def test_it_names_a_processor_and_no_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users|mnt)\b|@|\bhost(name)?\b|\b\d+\.\d+\.\d+\.\d+\b", text)


@each
def test_one_asks_for_it_by_name(path: Path, tmp_path: Path) -> None:
    overlay = read_overlay(path)
    name = overlay.machine.device or overlay.machine.cpu
    assert named_overlay(name, tmp_path).overlay.machine == overlay.machine


def test_a_wheel_holds_them() -> None:
    """Beside the profiles, where an installed package looks for them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"profiles": "deploy/_profiles"}
