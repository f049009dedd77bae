"""deploy targets: all of them, or one with its sources."""

from __future__ import annotations

import json
from collections.abc import Callable

import onnx_ir as ir
import pytest

from deploy.adapter.profiles import all_profiles, load_profile, profile_names
from deploy.cli.targets import stand_in
from deploy.errors import ToolchainError
from deploy.measure.host import host
from deploy.spec.profile import Figure
from deploy.stages.target import find_target

Deploy = Callable[..., tuple[int, str, str]]


def test_every_target_is_listed(deploy: Deploy) -> None:
    code, out, err = deploy("targets")
    assert (code, err) == (0, "")
    for profile in all_profiles():
        assert profile.name in out and profile.title in out
    listed = json.loads(deploy("targets", "--json")[1])["targets"]
    assert [target["name"] for target in listed] == profile_names()
    assert all(target["runtimes"] for target in listed)


@pytest.mark.parametrize("name", profile_names())
def test_all_facts_of_one_with_their_sources(deploy: Deploy, name: str) -> None:
    code, out, err = deploy("targets", name)
    assert (code, err) == (0, "")
    profile = load_profile(name)
    facts = {**profile.precision, **profile.memory, **profile.hardware}
    for key, fact in facts.items():
        assert key in out
        if isinstance(fact, Figure):
            assert fact.source in out
    for runtime in profile.runtime:
        assert runtime.source in out
        for unit in runtime.unit.values():
            assert all(rule.source in out for rule in unit.rule.values())
    assert all(note in out for note in profile.notes)
    found = json.loads(deploy("targets", name, "--json")[1])
    assert found.pop("host") in ("builds", "measures", "lacks")
    assert found == profile.model_dump(mode="json", by_alias=True)


def test_an_alias_will_do(deploy: Deploy) -> None:
    assert deploy("targets", "jetson")[1].startswith("jetson-orin-nano  ")


@pytest.mark.parametrize("name", profile_names())
def test_what_is_said_of_this_machine_is_what_a_build_does(name: str) -> None:
    if name == "x86-cpu" and host().arch != "x86_64":
        pytest.skip("stands for no such machine")
    if stand_in(load_profile(name)) == "lacks":
        empty = ir.Model(ir.Graph((), (), nodes=(), opset_imports={"": 21}), ir_version=10)
        with pytest.raises(ToolchainError):
            for route in find_target(name).routes:  # none is there, or each refuses the device
                route.backend.check(empty, route.runtime)
        return
    assert (stand_in(load_profile(name)) == "measures") == find_target(name).stands_here()


def test_a_runtime_without_a_backend_is_marked(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.adapter.discover.backend_names", lambda: ["ort"])
    out = deploy("targets")[1]
    assert "(tflite), ort" in out and "(coreml), ort" in out and "in brackets" in out
    assert stand_in(load_profile("pixel8")) == "builds"
    assert stand_in(load_profile("microcontroller")) == "lacks"
    shown = deploy("targets", "microcontroller")[1]
    assert "cannot build" in shown and "Softmax 0.00390625 from -128" in shown
