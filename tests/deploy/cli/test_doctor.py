"""deploy doctor: what this machine has, and exit code 6 where something needed is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.adapter.discover import backend_names
from deploy.adapter.protocol import Availability
from deploy.errors import ToolchainError

Deploy = Callable[..., tuple[int, str, str]]


class Absent:
    """A backend whose runtime is not installed."""

    def available(self) -> Availability:
        return Availability("some runtime", None, "pip install some-runtime")


def test_this_machine_can_build(deploy: Deploy, here: Path) -> None:
    code, out, err = deploy("doctor")
    assert (code, err) == (0, "")
    assert out.startswith("✓ ready to build\n")
    for name in backend_names():
        assert f"backend {name}" in out
    assert "extra images" in out and "extra micro" in out
    found = json.loads(deploy("doctor", "--json")[1])
    assert found["ok"] and found["machine"]["cores"].isdecimal()
    assert str(here / "cache") in next(c["found"] for c in found["checks"] if c["name"] == "cache")


def test_no_runtime_at_all(deploy: Deploy, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.adapter.discover.find_backend", lambda name: Absent())
    code, out, _ = deploy("doctor")
    assert code == 6
    assert out.startswith("✗") and "pip install some-runtime" in out
    assert json.loads(deploy("doctor", "--json")[1])["ok"] is False


def test_one_broken_backend_of_several_is_told_but_not_fatal(
    deploy: Deploy, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Present:
        def available(self) -> Availability:
            return Availability("some runtime", "1.0")

    def find(name: str) -> Present:
        if name == "tensorrt":
            raise ToolchainError("backend 'tensorrt' cannot be loaded: gone", hint="reinstall it")
        return Present()

    monkeypatch.setattr("deploy.adapter.discover.find_backend", find)
    code, out, _ = deploy("doctor")
    assert code == 0 and "reinstall it" in out


def test_whether_energy_can_be_counted(deploy: Deploy, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a folder that stands for the machine's own."""
    monkeypatch.setattr("deploy.measure.energy.ROOT", here / "sys")

    def found() -> dict[str, object]:
        code, out, _ = deploy("doctor", "--json")
        assert code == 0, "a build needs none"
        return next(check for check in json.loads(out)["checks"] if check["name"] == "energy")

    assert "no --objective energy" in str(found()["found"]) and "modprobe" in str(found()["remedy"])
    zone = here / "sys" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for file, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "9")):
        (zone / file).write_text(text)
    assert (found()["found"], found()["remedy"]) == ("counted by package-0", "")


def test_a_cache_that_cannot_be_written(deploy: Deploy, here: Path) -> None:
    (here / "file").write_text("")
    code, out, _ = deploy("doctor", "--cache", here / "file")
    assert code == 0
    assert "cannot be written" in out and "DEPLOY_CACHE" in out
