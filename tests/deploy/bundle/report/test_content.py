"""What a report says: figures as in the documents, order, folding, and texts that cannot do harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.bundle.read import Bundle, load_bundle
from deploy.bundle.report.content import cleaned, report
from deploy.bundle.report.markdown import markdown
from deploy.bundle.report.page import html
from deploy.bundle.report.summary import Fact, context, rows
from deploy.errors import UsageError
from deploy.spec.measurement import Energy


def test_the_verdict_comes_with_its_numbers(full: Bundle, built: Bundle):
    found = report(full)
    assert found.status == "missed"
    assert found.sentence.startswith("Missed: top1 89.00 %, 1.00 points worse than float; 4.00 × faster; ")
    assert found.reasons == ("told",), "the measurements hold the figure of that reason"
    assert report(built).sentence.startswith("Met: ")
    assert report(built).sentence.endswith("not timed here.")


def test_float_against_artifact(full: Bundle):
    rows = {row.name: row for row in report(full).rows}
    assert (rows["top1"].before, rows["top1"].after) == ("90.00 %", "89.00 %")
    assert rows["top1"].change == "1.00 points lost (95 %: 0.20 to 1.80 points)"
    assert rows["latency p50"].change == "4.00 × faster (95 %: 3.90 to 4.10)"
    assert rows["latency p99"].after == "1.20 ms"
    assert rows["peak memory"].change == "10.00 × smaller"
    assert set(rows) >= {"file", "weights", "latency p95"}


def metered(full: Bundle, **changed: object) -> Bundle:
    """The bundle where energy was the objective."""
    used = Energy(
        baseline=0.0412,
        artifact=0.0103,
        saving=4.0,
        interval=(3.9, 4.1),
        counters=("package-0", "package-0 dram"),
    ).model_copy(update=changed)
    measured = full.measurements
    assert measured.comparison is not None
    attempts = tuple(
        attempt.model_copy(update={"joules": joules})
        for attempt, joules in zip(measured.attempts, (0.0412, 0.0103), strict=True)
    )
    comparison = measured.comparison.model_copy(update={"energy": used})
    return replace(
        full, measurements=measured.model_copy(update={"comparison": comparison, "attempts": attempts})
    )


def test_energy_is_told_where_it_was_measured_and_only_there(full: Bundle):
    found = report(metered(full))
    row = next(row for row in found.rows if row.name == "energy")
    assert (row.before, row.after, row.kind) == ("41.2 mJ", "10.3 mJ", "good")
    assert row.change == "4.00 × less (95 %: 3.90 to 4.10)"
    assert [a.energy for a in found.attempts] == ["41.2 mJ", "10.3 mJ"]
    assert any("package-0 dram" in fact.value and "idle" in fact.value for fact in found.context)
    assert any(note.startswith("energy: 10.3 mJ") for note in found.whys.notes), "--explain says it too"
    plain = report(full)
    assert all(row.name != "energy" for row in plain.rows) and not any(a.energy for a in plain.attempts)
    assert not any("energy" in text for text in (*plain.whys.notes, *(fact.name for fact in plain.context)))


@pytest.mark.parametrize(
    ("saving", "interval", "said"),
    [
        (0.5, (0.4, 0.6), "2.00 × more (95 %: 0.40 to 0.60)"),
        (1.0, (0.9, 1.1), "as much (95 %: 0.90 to 1.10)"),
    ],
)
def test_energy_that_was_not_saved_is_not_praised(
    full: Bundle, saving: float, interval: tuple[float, float], said: str
):
    row = next(row for row in rows(metered(full, saving=saving, interval=interval)) if row.name == "energy")
    assert (row.change, row.kind) == (said, "")


def test_every_renderer_has_a_column_of_energy_where_there_is_any(full: Bundle):
    found = metered(full)
    for text in (markdown(report(found)), html(report(found))):
        assert text.count("10.3 mJ") >= 2, "beside the float file, and among the attempts"
    head = next(line for line in markdown(report(found)).splitlines() if line.startswith("| form"))
    assert head == "| form | runtime | score | change | file | p50 | speed | energy | outcome |"
    assert ">Energy</th>" in html(report(found))
    assert "Energy" not in html(report(full)) and "energy" not in markdown(report(full))


def test_the_interval_of_a_gain_is_that_of_the_gain(full: Bundle):
    assert full.manifest.evaluation is not None
    better = full.manifest.evaluation.model_copy(
        update={"artifact": 0.902, "drop": -0.002, "interval": (-0.013, 0.0)}
    )
    manifest = full.manifest.model_copy(update={"evaluation": better})
    score = rows(replace(full, manifest=manifest))[0]
    assert score.change == "0.20 points gained (95 %: 0.00 to 1.30 points)"


def test_what_a_small_device_gives_is_told(full: Bundle):
    artifact = full.manifest.artifact.model_copy(update={"memory_bytes": {"flash": 317_152, "arena": 36_000}})
    small = replace(full, manifest=full.manifest.model_copy(update={"artifact": artifact}))
    told = {fact.name: fact.value for fact in context(small)}
    assert told["takes"] == "317,152 bytes of flash, 36,000 bytes of memory as arena, by estimate"
    assert "takes" not in {fact.name for fact in context(full)}


def test_blocks_are_sorted_by_time_and_keep_the_order_of_the_graph_too(full: Bundle, built: Bundle):
    blocks = report(full).blocks
    assert [row.id for row in blocks.rows[:3]] == ["b29", "b28", "b27"]
    assert [row.id for row in blocks.in_order[:3]] == ["b0", "b1", "b2"]
    assert blocks.longest == pytest.approx(0.3) and blocks.outside == "0.0500 ms"
    assert [(t.precision, t.blocks) for t in blocks.totals] == [("int8", 20), ("float", 10)]
    untimed = report(built).blocks
    assert not untimed.timed
    assert len(untimed.rows) == len(untimed.in_order) > 2
    noise = [float(row.noise.removesuffix(" dB")) for row in untimed.rows if row.noise]
    assert noise == sorted(noise)


def test_classes_that_lost_most_come_first_by_name_where_known(full: Bundle):
    classes = report(full).classes
    assert (classes[0].name, classes[0].change, classes[0].kind) == ("29", "−2.90 points", "bad")
    assert [row.name for row in classes[-2:]] == ["1 dog", "0 cat"]
    assert classes[-1].change == "0"


def test_a_class_of_any_name_stays_itself(full: Bundle):
    assert full.manifest.evaluation is not None
    scores = {"0" + "9" * 5000: (0.9, 0.8), "²": (0.9, 0.9)}
    evaluation = full.manifest.evaluation.model_copy(update={"per_class": scores})
    manifest = full.manifest.model_copy(update={"evaluation": evaluation})
    classes = report(Bundle(full.folder, manifest, full.measurements, full.digest)).classes
    assert {row.name for row in classes} == set(scores)


def test_attempts_stages_and_hazards(full: Bundle):
    found = report(full)
    assert [(a.name, a.speed, a.drop, a.chosen) for a in found.attempts] == [
        ("as given", "", "0", False),
        ("int8", "4.00 ×", "−1.00 points", True),
    ]
    assert [(s.name, s.time, s.cached) for s in found.stages] == [("read", "0.50 s", True)]
    assert found.hazards[0].nodes == "n, n, n, n, n, n and 3 more"
    assert found.notes == ("note",)


def test_hardware_facts_have_their_source_or_are_said_to_be_unknown(full: Bundle):
    hardware = report(full).hardware
    assert not hardware.caveat
    facts = [fact for group in hardware.groups for fact in group.facts if not group.source]
    assert any(fact.unknown for fact in facts)
    assert all(fact.unknown or fact.source.endswith("-21") or "20" in fact.source for fact in facts)
    assert {group.name for group in hardware.groups} >= {"precision", "how ort wants INT8"}


def test_a_profile_that_is_not_here_or_has_changed_is_said(full: Bundle):
    from deploy.bundle.read import load_lock
    from deploy.bundle.report.hardware import hardware

    lock = load_lock(full)
    elsewhere = full.manifest.model_copy(update={"profile": "acme-board"})
    assert "not installed here" in hardware(elsewhere, lock).caveat
    assert "has changed" in hardware(full.manifest, lock.model_copy(update={"profile_sha256": "0"})).caveat


def test_the_origin_holds_what_is_needed_to_check_and_to_rebuild(built: Bundle):
    origin = report(built).origin
    assert origin.digest == built.digest
    assert {file.name for file in origin.files} == set(built.manifest.files)
    verify, rebuild = (command.code for command in origin.commands)
    assert verify == "deploy verify ."
    assert (
        "--target x86-avx2" in rebuild and "--lock deploy.lock" in rebuild and "--data CALIBRATION" in rebuild
    )


def test_a_name_in_a_command_cannot_become_a_command(built: Bundle):
    manifest = built.manifest.model_copy(update={"target": "x; rm -rf ~ `id`"})
    changed = Bundle(built.folder, manifest, built.measurements, built.digest)
    assert "--target 'x; rm -rf ~ `id`'" in report(changed).origin.commands[1].code


def test_no_text_holds_what_does_not_print(hostile: Bundle):
    def texts(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        if isinstance(part, tuple):
            return [text for item in part for text in texts(item)]
        if hasattr(part, "__dataclass_fields__"):
            return [
                t for name in part.__dataclass_fields__ if name != "code" for t in texts(getattr(part, name))
            ]
        return []

    found = texts(report(hostile))
    assert len(found) > 300
    assert all(text.isprintable() for text in found)


def test_what_does_not_print_is_shown_as_its_escape():
    assert cleaned(Fact("a\x1b[2J", "b\u202ec\n")) == Fact("a\\x1b[2J", "b\\u202ec\\n")
    assert cleaned("plain ümlaut × 你好 🙂") == "plain ümlaut × 你好 🙂"


@pytest.mark.parametrize("name", ["plan.json", "deploy.lock", "measurements.json", "selftest.npz"])
def test_nothing_outside_the_bundle_is_read(bundle_copy: Path, tmp_path: Path, name: str):
    secret = tmp_path / "secret"
    secret.write_bytes((bundle_copy / name).read_bytes())
    (bundle_copy / name).unlink()
    (bundle_copy / name).symlink_to(secret)
    with pytest.raises(UsageError, match="outside the bundle"):
        report(load_bundle(bundle_copy))


def test_a_bundle_without_its_plan_is_told(bundle_copy: Path):
    (bundle_copy / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"plan\.json: no such file"):
        report(load_bundle(bundle_copy))
