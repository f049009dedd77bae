"""Where costs are from: this machine, another of its kind, one like it, a data sheet; and that it is said."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from backends.ort import OnnxRuntime
from deploy.adapter.overlays import save
from deploy.adapter.profiles import load_profile
from deploy.predict.kernels import Kernel
from deploy.spec.overlay import Cost, Machine, Overlay, RuntimeCosts
from deploy.spec.profile import Figure, Profile
from deploy.stages.costs import Foresight, Known, costs_of
from deploy.stages.target import Route, Target

DAY = datetime.date(2026, 11, 21)
HERE = Machine(cpu="This CPU", arch="x86_64", features=("avx2", "fma"), cores=8)
OTHER = HERE.model_copy(update={"cpu": "Other CPU"})
VERSION = OnnxRuntime().available().version or ""
CONV = Kernel("conv", "float", ("c",), 10**6, 10**5)


def overlay(
    ms: float, machine: Machine = HERE, profile: str = "x86-avx2", version: str = VERSION, threads: int = 1
) -> Overlay:
    """One point for ONNX Runtime: a convolution of 10^6 products takes ``ms``."""
    cost = Cost(op="conv", precision="float", macs=10**6, bytes=10**5, ms=ms, spread=0.01)
    options = dict(load_profile("x86-avx2").runtime_named("ort").options)
    costs = RuntimeCosts(name="ort", version=version, threads=threads, settings=options, cost=(cost,))
    return Overlay(
        profile=profile, machine=machine, date=DAY, command="deploy profile", seconds=1, noise=0.01,
        runtime=(costs,),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty data folder, a machine of our own, and no measurements that come with the package."""
    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path))
    monkeypatch.setattr("deploy.stages.costs.this_machine", lambda: HERE)
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr(Target, "stands_here", lambda self: self.name == "x86-avx2")


def asked(name: str = "x86-avx2", threads: int = 1, **changed: object) -> Foresight:
    profile: Profile = load_profile(name).model_copy(update=changed)
    runtime = next((r for r in profile.runtime if r.name == "ort"), profile.runtime[0])
    return costs_of(Target(name, profile, (Route(runtime, OnnxRuntime()),)), threads)


def takes(known: Known) -> float:
    return known.costs.kernel(CONV).estimate.ms


def test_what_was_measured_here_goes_first() -> None:
    save(overlay(2.0))
    save(overlay(3.0, machine=OTHER))
    found = asked()
    known = found.runtimes["ort"]
    assert (known.basis, known.measured, known.least) == ("measured here, 2026-11-21", True, False)
    assert takes(known) == pytest.approx(2.0, rel=0.05)
    assert found.notes == ()


def test_by_the_rules_of_another_profile_is_said() -> None:
    save(overlay(2.0, profile="x86-vnni"))
    assert asked().runtimes["ort"].basis == "measured here by the rules of x86-vnni, 2026-11-21"


def test_the_same_kind_of_device_elsewhere_comes_next() -> None:
    save(overlay(3.0, machine=OTHER))
    found = asked()
    known = found.runtimes["ort"]
    assert (known.basis, known.measured) == ("measured on Other CPU, 2026-11-21", False)
    assert takes(known) == pytest.approx(3.0, rel=0.05)
    assert len(found.notes) == 1
    assert "ort is not used: measured on Other CPU" in found.notes[0]


@pytest.mark.parametrize("turned", [False, True])
def test_of_several_machines_of_the_kind_the_most_alike_lends(
    turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This CPU has avx2 and fma: another by name with both, one that lacks fma, one that has more."""
    features = {"A": ("avx2",), "B": ("avx2", "fma"), "C": ("avx2", "fma", "amx_int8", "amx_tile")}
    shipped = [
        overlay(1.0, machine=HERE.model_copy(update={"cpu": name, "features": has}))
        for name, has in features.items()
    ]
    order = shipped[::-1] if turned else shipped
    monkeypatch.setattr("deploy.stages.costs.measured_machines", lambda: order)
    assert asked().runtimes["ort"].basis == "measured on B, 2026-11-21"


def test_with_other_threads_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    save(overlay(3.0, machine=OTHER))
    assert asked(threads=4).runtimes["ort"].basis == "measured on Other CPU with 1 thread, 2026-11-21"
    save(overlay(1.0, machine=OTHER, threads=4))
    assert asked(threads=4).runtimes["ort"].basis == "measured on Other CPU, 2026-11-21"


@pytest.mark.parametrize(
    ("stale", "said"),
    [({"version": "0.1"}, "measured with version 0.1"), ({"threads": 2}, "measured with threads = 2")],
)
def test_what_is_stale_here_is_said_and_not_used(stale: dict[str, object], said: str) -> None:
    save(overlay(2.0, **stale))  # type: ignore[arg-type]
    found = asked(hardware={}, memory={})
    assert found.runtimes == {}
    (note,) = found.notes
    assert "ort is not used: " in note
    assert said in note
    assert "measure anew with: deploy profile" in note


@pytest.mark.parametrize("name", ["x86-avx2", "rpi5"])
def test_what_cannot_be_read_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "broken.json").write_text("{")
    (note,) = asked(name, hardware={}, memory={}).notes
    assert "broken.json" in note


def facts(clock: float, bandwidth: float) -> dict[str, object]:
    figures = {"clock": clock, "fp32_macs_per_cycle": 10.0, "bandwidth": bandwidth}
    made = {n: Figure(value=v, source="test", date=DAY) for n, v in figures.items()}
    return {"hardware": made, "memory": {}}


def test_another_machine_lends_scaled_by_data_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reached 10^6 products in 1 ms; 10 a cycle at 1 GHz are 10^7 in 1 ms: ten times as fast."""
    lender = overlay(1.0, machine=OTHER, profile="x86-vnni")
    far = overlay(9.0, machine=OTHER.model_copy(update={"cpu": "Far", "features": ()}), profile="x86-bf16")
    monkeypatch.setattr("deploy.stages.costs.measured_machines", lambda: [far, lender])
    known = asked(**facts(1.0, 10.0)).runtimes["ort"]
    assert (known.basis, known.measured) == ("lent by Other CPU, scaled by data sheets", False)
    assert takes(known) == pytest.approx(0.1, rel=0.05)
    unscaled = asked(hardware={}, memory={}).runtimes["ort"]
    assert unscaled.basis == "lent by Other CPU, as if it were that"
    assert takes(unscaled) == pytest.approx(1.0, rel=0.05)


def test_other_architectures_and_accelerators_lend_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = overlay(1.0, machine=OTHER.model_copy(update={"arch": "aarch64"}), profile="rpi5")
    gpu = overlay(1.0, machine=OTHER.model_copy(update={"device": "GPU"}), profile="x86-vnni")
    monkeypatch.setattr("deploy.stages.costs.measured_machines", lambda: [arm, gpu])
    assert asked(hardware={}, memory={}).runtimes == {}


def test_the_data_sheet_alone_is_a_least() -> None:
    known = asked(**facts(1.0, 10.0)).runtimes["ort"]
    assert known.basis == "the data sheet's roofline, the least that is possible"
    assert known.least
    assert takes(known) == pytest.approx(0.1)


def test_of_a_device_of_which_nothing_is_known_nothing_is_said() -> None:
    assert asked(hardware={}, memory={}) == Foresight({})


def test_keys_change_with_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for ms in (2.0, 2.5):
        save(overlay(ms))
        keys.append(asked().key)
    assert keys[0].keys() == keys[1].keys() == {"ort"}
    assert keys[0] != keys[1]
    assert asked().key == keys[1]
    monkeypatch.setattr("deploy.stages.costs.this_machine", lambda: OTHER.model_copy(update={"cpu": "New"}))
    sheets = [asked(**facts(clock, 10.0)).key for clock in (1.0, 2.0)]
    assert sheets[0] == sheets[1] == asked().key == keys[1], "measured on its kind goes before any data sheet"
