"""Overlays are found where they fit, and never used or left out without a word."""

from __future__ import annotations

import dataclasses
import datetime
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.adapter import overlays
from deploy.adapter.discover import find_backend
from deploy.adapter.overlays import (
    Kept,
    Runs,
    data_root,
    find_overlay,
    kept_overlays,
    measured_machines,
    named_overlay,
    overlay_folder,
    read_overlay,
    runs_here,
    save,
    write_overlay,
)
from deploy.adapter.profiles import load_profile
from deploy.errors import UsageError
from deploy.spec.document import render
from deploy.spec.overlay import Cost, Machine, Overlay, RuntimeCosts
from deploy.spec.profile import Figure

TODAY = datetime.date(2026, 11, 21)
HERE = Machine(cpu="Some CPU", arch="x86_64", features=("avx2", "fma"), cores=8)
ORT = Runs("ort", "1.31.1", 1, {})
OPENVINO = Runs("openvino", "2026.4.1", 1, {"streams": 1})


def points(runtime: Runs, spread: float = 0.02) -> RuntimeCosts:
    cost = Cost(op="conv", precision="float", macs=1000, bytes=100, ms=0.1, spread=spread)
    return RuntimeCosts(
        name=runtime.name,
        version=runtime.version,
        threads=runtime.threads,
        settings=dict(runtime.settings),
        runner=runtime.runner,
        cost=(cost,),
    )


def overlay(
    *runtimes: RuntimeCosts,
    machine: Machine = HERE,
    date: datetime.date = TODAY,
    quick: bool = False,
    noise: float = 0.02,
    bandwidth: float = 20.0,
) -> Overlay:
    return Overlay(
        profile="x86-vnni",
        machine=machine,
        date=date,
        command="deploy profile",
        quick=quick,
        seconds=200,
        noise=noise,
        facts={"bandwidth": Figure(value=bandwidth, unit="GB/s", source="measured", date=date)},
        runtime=runtimes or (points(ORT), points(OPENVINO)),
    )


def test_what_was_saved_is_found(tmp_path: Path) -> None:
    given = overlay()
    path = save(given, tmp_path)
    assert path.parent == overlay_folder(tmp_path)
    found = find_overlay(HERE, [ORT, OPENVINO], tmp_path)
    assert found.overlay == given
    assert found.sources == {"ort": Kept(path, given), "openvino": Kept(path, given)}
    assert (found.reasons, found.warnings) == ((), ())
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing temporary stays"


def test_an_empty_folder_has_nothing_and_nothing_to_say(tmp_path: Path) -> None:
    found = find_overlay(HERE, [ORT], tmp_path / "absent")
    assert (found.overlay, found.sources, found.reasons, found.warnings) == (None, {}, (), ())


def test_only_the_runtimes_asked_for_are_there(tmp_path: Path) -> None:
    save(overlay(), tmp_path)
    found = find_overlay(HERE, [OPENVINO], tmp_path).overlay
    assert found is not None
    assert [runtime.name for runtime in found.runtime] == ["openvino"]


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"cpu": "Other CPU"}, "measured on Some CPU (x86_64), this is Other CPU (x86_64)"),
        ({"arch": "aarch64"}, "this is Some CPU (aarch64)"),
        ({"features": ("avx2",)}, "with CPU features that are not here: fma"),
        ({"features": ("avx2", "fma", "avx512_vnni")}, "without CPU features that are here: avx512_vnni"),
        ({"device": "NVIDIA H200"}, "measured on the CPU, this is NVIDIA H200"),
    ],
)
def test_an_overlay_of_another_machine_is_not_used_and_that_is_said(
    tmp_path: Path, machine: dict[str, object], said: str
) -> None:
    path = save(overlay(), tmp_path)
    found = find_overlay(HERE.model_copy(update=machine), [ORT], tmp_path)
    assert found.overlay is None
    (reason,) = found.reasons
    assert reason.startswith(f"{path}: ort is not used: ") and said in reason
    assert "deploy profile" in reason


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Runs("ort", "1.32.0", 1, {}), "measured with version 1.31.1, installed is 1.32.0"),
        (Runs("ort", "1.31.1", 1, {}, runner=2), "through runner 1 of this package, which has number 2 now"),
        (Runs("ort", "1.31.1", 4, {}), "measured with threads = 1, wanted are 4"),
        (Runs("ort", "1.31.1", 1, {"hint": "x"}), "measured with no settings, the profile now says hint = x"),
    ],
)
def test_an_overlay_of_another_version_is_not_used_and_that_is_said(
    tmp_path: Path, here: Runs, said: str
) -> None:
    save(overlay(), tmp_path)
    found = find_overlay(HERE, [here, OPENVINO], tmp_path)
    assert found.overlay is not None, "the other runtime fits"
    assert [runtime.name for runtime in found.overlay.runtime] == ["openvino"]
    (reason,) = found.reasons
    assert "ort is not used" in reason and said in reason


def test_the_number_of_cores_does_not_count(tmp_path: Path) -> None:
    save(overlay(), tmp_path)
    assert find_overlay(HERE.model_copy(update={"cores": 2}), [ORT], tmp_path).overlay is not None


def test_one_that_fits_silences_those_that_do_not(tmp_path: Path) -> None:
    """A home folder may be shared by several machines."""
    save(overlay(machine=HERE.model_copy(update={"cpu": "Other CPU"})), tmp_path)
    save(overlay(), tmp_path)
    assert find_overlay(HERE, [ORT], tmp_path).reasons == ()


def test_surveys_of_single_runtimes_are_joined(tmp_path: Path) -> None:
    before = TODAY - datetime.timedelta(days=3)
    save(overlay(points(ORT, spread=0.3), date=before, bandwidth=10), tmp_path)
    save(overlay(points(OPENVINO, spread=0.1), quick=True, bandwidth=21), tmp_path)
    found = find_overlay(HERE, [ORT, OPENVINO], tmp_path)
    assert found.overlay is not None
    assert [runtime.name for runtime in found.overlay.runtime] == ["ort", "openvino"]
    assert found.overlay.date == before, "as old as its oldest part"
    assert found.overlay.quick
    assert found.overlay.noise == pytest.approx(0.2)
    assert found.overlay.facts["bandwidth"].value == 21
    assert len({kept.path for kept in found.sources.values()}) == 2


def test_a_full_survey_goes_before_a_quick_one_and_the_newer_before_the_older(tmp_path: Path) -> None:
    old, new = TODAY - datetime.timedelta(days=3), TODAY
    save(overlay(points(ORT), date=old), tmp_path)
    save(overlay(points(ORT), date=new, quick=True), tmp_path)
    found = find_overlay(HERE, [ORT], tmp_path).overlay
    assert found is not None and (found.date, found.quick) == (old, False)
    save(overlay(points(ORT), points(OPENVINO), date=new), tmp_path)
    found = find_overlay(HERE, [ORT], tmp_path).overlay
    assert found is not None and (found.date, found.quick) == (new, False)


def test_a_new_survey_removes_what_it_makes_obsolete_and_nothing_else(tmp_path: Path) -> None:
    other = HERE.model_copy(update={"cpu": "Other CPU"})
    save(overlay(points(ORT), date=TODAY), tmp_path)
    save(overlay(points(ORT), machine=other), tmp_path)
    save(overlay(points(Runs("ort", "1.31.1", 2, {}))), tmp_path)
    save(overlay(points(Runs("ort", "1.30.0", 1, {})), quick=True), tmp_path)
    assert len(kept_overlays(tmp_path)[0]) == 4
    save(overlay(), tmp_path)
    left = [k.overlay for k in kept_overlays(tmp_path)[0]]
    assert sorted((o.machine.cpu, o.runtime[0].threads, len(o.runtime)) for o in left) == [
        ("Other CPU", 1, 1),
        ("Some CPU", 1, 2),
        ("Some CPU", 2, 1),
    ]
    save(overlay(quick=True), tmp_path)
    assert len(kept_overlays(tmp_path)[0]) == 4, "a quick survey replaces no full one"


def test_a_noisy_one_is_used_with_a_warning(tmp_path: Path) -> None:
    path = save(overlay(noise=0.31), tmp_path)
    found = find_overlay(HERE, [ORT, OPENVINO], tmp_path)
    assert found.overlay is not None
    (warning,) = found.warnings
    assert str(path) in warning and "busy" in warning and "0.31" in warning


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "cut off": (lambda text: text[: len(text) // 2], "line"),
    "another schema": (lambda text: text.replace('"schema": 1', '"schema": 0'), ":2: 'schema'"),
    "a misspelt key": (lambda text: text.replace('"facts"', '"fakts"'), "unknown key 'fakts'"),
    "a word for a number": (lambda text: text.replace('"ms": 0.1', '"ms": "x"', 1), "'runtime.0.cost.0.ms'"),
    "infinite": (lambda text: text.replace('"ms": 0.1', '"ms": Infinity', 1), "'runtime.0.cost.0.ms'"),
    "huge": (lambda text: text.replace("1000", "1" + "0" * 500, 1), "'runtime.0.cost.0.macs'"),
    "nested": (lambda text: "[" * 200_000, "Invalid JSON"),
    "empty": (lambda text: "", "Invalid JSON"),
    "no JSON": (lambda text: "\0\1\2", "Invalid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_malformed_file_is_told_with_file_line_and_key(tmp_path: Path, damage: str) -> None:
    change, said = DAMAGES[damage]
    path = save(overlay(), tmp_path)
    path.write_text(change(path.read_text()))
    found = find_overlay(HERE, [ORT], tmp_path)
    assert found.overlay is None
    (reason,) = found.reasons
    assert reason.startswith(f"{path}:") and said in reason
    with pytest.raises(UsageError) as caught:
        read_overlay(path)
    assert reason.startswith(caught.value.message)


def test_the_line_of_a_malformed_value_is_right(tmp_path: Path) -> None:
    path = save(overlay(), tmp_path)
    text = path.read_text().replace('"cores": 8', '"cores": "many"')
    path.write_text(text)
    line = next(i for i, shown in enumerate(text.splitlines(), 1) if "many" in shown)
    (reason,) = find_overlay(HERE, [ORT], tmp_path).reasons
    assert reason.startswith(f"{path}:{line}: 'machine.cores'")


def test_a_file_is_measured_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(overlay(), tmp_path)
    monkeypatch.setattr(overlays, "LARGEST", 100)
    with pytest.raises(UsageError, match="larger than any overlay"):
        read_overlay(path)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{")
    for name, said in (("pipe", "no such file"), ("folder", "no such file"), ("binary", "is not text")):
        with pytest.raises(UsageError, match=said):
            read_overlay(tmp_path / f"{name}.json")


def test_runtimes_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.json"
    text = render(overlay(points(ORT), points(OPENVINO)))
    path.write_text(text.replace('"openvino"', '"ort"'))
    with pytest.raises(UsageError, match="a runtime stands there twice"):
        read_overlay(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(overlay(), tmp_path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        save(overlay(noise=0.1), tmp_path)
    assert "DEPLOY_DATA" in caught.value.hint
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        save(overlay(), tmp_path)


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "measured").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        save(overlay(), tmp_path)


def test_files_are_readable_as_others_are(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_overlay(overlay(), tmp_path / "deep" / "down.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deep" / "down.json").stat().st_mode) == 0o640


def test_the_data_folder_is_the_environments_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path))
    assert overlay_folder() == tmp_path / "measured"
    monkeypatch.delenv("DEPLOY_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root().name == "deploy-compiler" and data_root().is_relative_to(tmp_path)


def test_runtimes_here_have_their_versions_and_settings() -> None:
    profile = load_profile("x86-vnni")
    found = {runs.name: runs for runs in runs_here(profile.runtime, 2)}
    assert found["ort"].threads == 2
    assert found["ort"].version.count(".") == 2
    assert found["ort"].settings == profile.runtime_named("ort").options
    assert runs_here(load_profile("jetson-orin-nano").runtime, 1) == [], "TensorRT is on the board"


def test_a_runner_that_takes_another_time_has_another_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes = [r for r in load_profile("x86-vnni").runtime if r.name == "ort"]
    (before,) = runs_here(runtimes, 1)
    monkeypatch.setattr(type(find_backend("ort")), "runner", before.runner + 1)
    (after,) = runs_here(runtimes, 1)
    assert after == dataclasses.replace(before, runner=before.runner + 1)
    save(overlay(points(before)), tmp_path)
    assert find_overlay(HERE, [before], tmp_path).overlay is not None
    assert find_overlay(HERE, [after], tmp_path).overlay is None


def test_what_comes_with_the_package_can_be_read() -> None:
    machines = measured_machines()
    assert machines == sorted(machines, key=lambda o: (o.profile, o.machine.cpu))
    for shipped in machines:
        assert load_profile(shipped.profile).name == shipped.profile


def test_machines_that_come_with_the_package_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "_SHIPPED", (tmp_path / "none", tmp_path))
    assert measured_machines() == []
    other = overlay(machine=HERE.model_copy(update={"cpu": "A CPU"}))
    for name, given in (("one", overlay()), ("two", other)):
        write_overlay(given, tmp_path / f"{name}.json")
    assert measured_machines() == [other, overlay()]
    (tmp_path / "one.json").write_text("{}")
    with pytest.raises(UsageError, match=r"one\.json"):
        measured_machines()


def test_machines_are_called_by_profile_cpu_and_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlays, "_SHIPPED", (tmp_path / "shipped",))
    gpu = overlay(machine=HERE.model_copy(update={"device": "NVIDIA H200"})).model_copy(
        update={"profile": "nvidia-h200"}
    )
    write_overlay(gpu, tmp_path / "shipped" / "h200.json")
    other = overlay(machine=HERE.model_copy(update={"cpu": "Other CPU"}))
    save(other, tmp_path)
    for name in ("nvidia-h200", "NVIDIA H200", "h200"):
        assert named_overlay(name, tmp_path).overlay == gpu
    for name in ("other", "x86-vnni"):
        assert named_overlay(name, tmp_path).overlay == other
    with pytest.raises(UsageError, match="no measurements of a machine called 'rpi'") as caught:
        named_overlay("rpi", tmp_path)
    assert "NVIDIA H200 (nvidia-h200)" in caught.value.hint
    with pytest.raises(UsageError, match="several machines are called 'CPU'"):
        named_overlay("CPU", tmp_path)
