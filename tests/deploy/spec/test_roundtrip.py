"""Every document comes back from disk as it was written, and refuses what it does not know."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from deploy.errors import UsageError
from deploy.spec.ablation import Ablation, Figures, PlaceRecord, StepChoice, StepRecord
from deploy.spec.artifact import Artifact, Verdict
from deploy.spec.compression import Prune
from deploy.spec.document import digest, line_in_json, parse, parse_toml, render
from deploy.spec.explanation import Explained, Explanation
from deploy.spec.finetune import Augment, Distill, FeaturePair, Finetune
from deploy.spec.manifest import (
    CalibrationInfo,
    Choice,
    Evaluation,
    KnownHazard,
    Lock,
    Manifest,
    Measurements,
    Outcome,
    Sizes,
    SourceInfo,
    StageTime,
    Verification,
)
from deploy.spec.measurement import Attempt, BlockTime, Comparison, Conditions, Energy, Latency, Measurement
from deploy.spec.overlay import Cost, Failure, Machine, Overlay, RuntimeCosts
from deploy.spec.plan import BlockPlan, Plan, QuantParams, TensorPlan, differences
from deploy.spec.profile import Figure, Profile, QuantRules, Runtime, Sparsity
from deploy.spec.project import Project
from deploy.spec.recipe import Recipe
from deploy.spec.tensors import Normalisation, TensorSpec

TODAY = datetime.date(2026, 11, 20)
INPUT = TensorSpec(
    name="x",
    dtype="float32",
    shape=("n", 3, 32, 32),
    layout="NCHW",
    normalisation=Normalisation(scale=1 / 255),
)
IDS = TensorSpec(name="ids", dtype="int64", shape=("n", 16), table_rows=30522)
OUTPUT = TensorSpec(name="y", dtype="float32", shape=("n", 10))
ARTIFACT = Artifact(
    backend="ort", files=("model.onnx",), inputs=(INPUT, IDS), outputs=(OUTPUT,), toolchain={"ort": "1"}
)
PLAN = Plan(
    graph_sha256="ab" * 32,
    target="x86-vnni",
    runtime="ort",
    tensors={
        "x": TensorPlan(type="uint8", scale=(0.1,), zero_point=(3,), origin="calibration"),
        "w": TensorPlan(
            type="int8", scale=(0.1, 0.2), zero_point=(0, 0), axis=0, origin="weight", digest="cd" * 32
        ),
        "s": TensorPlan(
            type="uint8",
            scale=(0.1,),
            zero_point=(3,),
            origin="shared",
            shared_with="x",
            uses={"conv2": QuantParams(type="uint8", scale=(0.3,), zero_point=(0,))},
        ),
    },
    blocks=(BlockPlan(id="b0", nodes=("conv", "relu"), precision="int8", reason="r", sqnr_db=31.5),),
)
LATENCY = Latency(p50=1.0, p95=1.2, p99=1.3, samples=100, spread=0.05)
MEASURED = Measurement(
    latency_ms=LATENCY,
    peak_memory_bytes=1000,
    conditions=Conditions(device="cpu", runtime="ort 1", threads=1, batch=1, date="2026-11-20"),
)
PROFILE = Profile(
    name="board",
    title="A board",
    precision={"int8": Figure(value=True, source="datasheet", date=TODAY), "fp16": "unknown"},
    runtime=(
        Runtime(
            name="ort",
            onnx_opset=21,
            fuses=("Conv+Relu",),
            quant=QuantRules(activation="uint8", compute=("Conv",), source="docs", date=TODAY),
            sparsity=Sparsity(pattern="2:4", axis=1, gain="unknown"),
            source="docs",
            date=TODAY,
        ),
    ),
)
ABLATION = Ablation(
    metric="top1",
    unit="fraction",
    role="validation",
    samples=100,
    basis="predicted",
    before=Figures(score=0.9, per_class={"3": 0.9}, drop=0.0, weight_bytes=36, macs=9, parameters=9),
    steps=(
        StepRecord(
            number=1,
            step=Prune(size=20),
            softened=1,
            figures=Figures(score=0.8, drop=0.1, interval=(0.0, 0.2), weight_bytes=20, macs=5, parameters=5),
            allowed=0.2,
            told="two channels",
            places=(PlaceRecord(place="conv1", what="2 of 4 kept", after=0.1),),
            shared=("w",),
            seconds=3.5,
        ),
    ),
)
MANIFEST = Manifest(
    compression=ABLATION.lasting,
    target="x86-cpu",
    profile="x86-vnni",
    runtime="ort",
    source=SourceInfo(
        name="m.onnx", sha256="00" * 32, bytes=10, opset=17, parameters=3, macs=None, weight_bytes=12
    ),
    recipe=Recipe(preset="fast", steps=(Prune(size=10),), notes=("no 2:4",)),
    plan_sha256=digest(PLAN),
    precision={"int8": 3, "float": 1},
    files={"artifact/model.onnx": "11" * 32},
    artifact=ARTIFACT,
    options={"threads": 1},
    size_bytes=Sizes(baseline=40, artifact=10, baseline_weights=36, weights=9),
    calibration=CalibrationInfo(sha256="22" * 32, samples=64, observer="mse"),
    evaluation=Evaluation(
        metric="top1",
        unit="fraction",
        higher_is_better=True,
        baseline=0.9,
        artifact=0.89,
        drop=0.01,
        interval=(0.0, 0.02),
        per_class={"3": (0.9, 0.8)},
        role="eval",
        samples=100,
        looks=1,
    ),
    verification=Verification(
        passed=True, samples=4, error=1e-7, noise_floor=1e-7, tolerance=1e-6, executed_by="onnxruntime"
    ),
    verdict=Outcome(status="met"),
    hazards=(KnownHazard(kind="softmax", severity="note", text="it stays float", nodes=("s1", "s2")),),
    notes=("the batch is pinned to 1",),
    deferred=False,
    executed_by="onnxruntime",
    classes=("cat", "dog"),
    toolchain={"onnxruntime": "1.31.1"},
    seed=0,
)
MEASUREMENTS = Measurements(
    comparison=Comparison(
        baseline=MEASURED,
        artifact=MEASURED,
        speedup=1.0,
        interval=(0.9, 1.1),
        energy=Energy(
            baseline=0.2, artifact=0.1, saving=2.0, interval=(1.9, 2.1), counters=("package-0", "package-1")
        ),
    ),
    attempts=(
        Attempt(
            name="int8",
            runtime="ort",
            precision={"int8": 3},
            bytes=1000,
            score=0.9,
            drop=0.01,
            speed=1.5,
            joules=0.1,
        ),
    ),
    blocks=(BlockTime(id="conv1", float_ms=0.2, ms=0.1), BlockTime(id="tail")),
    explained=Explained(
        basis="measured here",
        predicted_ms=0.4,
        blocks=(
            Explanation(
                id="conv1",
                precision="int8",
                float_ms=0.2,
                integer_ms=0.1,
                changes_ms=0.01,
                instead_ms=0.12,
                sqnr_db=31.5,
                noise=0.25,
                points=0.001,
                reason="r",
            ),
            Explanation(id="tail", precision="float"),
        ),
    ),
    stages=(StageTime(name="calibrate", seconds=0.5, cached=False),),
    compression=ABLATION,
)
LOCK = Lock(
    source_sha256="00" * 32,
    runtime="ort",
    calibration_sha256=None,
    profile_sha256="33" * 32,
    seed=0,
    choices=(Choice(what="precision", chosen="int8", reason="2.1 times float"),),
    float_blocks=("b3",),
    precision="mixed",
    recipe=(StepChoice(step="prune", softened=1), StepChoice(step="cluster", kept=False)),
)
VERDICT = Verdict(node="n", op="Einsum", support="unsupported", reason="no kernel")
PROJECT = Project.model_validate({
    "model": {"path": "m.onnx", "shapes": {"x": [1, 3, 8, 8]}},
    "data": {"classes": "labels.txt"},
    "io": {"dtype": "uint8", "layout": "NHWC", "inputs": ["x"]},
    "recipe": [
        {"step": "shrink", "width": 0.5, "widths": {"layer4.*": 0.25}},
        {"step": "prune", "macs": 0.3, "protect": ["head"]},
        {"step": "lowrank", "lost": 0.02},
        {"step": "sparsify", "pattern": "unstructured", "sparsity": 0.5},
        {"step": "finetune", "epochs": 3, "distill": {"alpha": 0.3, "temperature_end": 1}},
        {"step": "cluster", "centres": 32},
    ],
})  # fmt: skip
RECIPE = Recipe(
    steps=(
        Finetune(optimizer="adamw", lr=1e-3, schedule="onecycle", ema=0.99, trainable=("head.*", "stem.*")),
        Finetune(
            loss="python:losses:focal",
            augment=Augment(crop=4, flip=True, mixup=0.2),
            distill=Distill(
                teachers=("big.onnx",), features=(FeaturePair(student="a", teacher="b"),), feature_weight=0.1
            ),
        ),
    )
)

OVERLAY = Overlay(
    profile="x86-vnni",
    machine=Machine(cpu="Some CPU", arch="x86_64", features=("avx2", "fma"), cores=8),
    date=TODAY,
    command="deploy profile",
    seconds=210.5,
    noise=0.03,
    facts={"bandwidth": Figure(value=21.5, unit="GB/s", source="measured", date=TODAY)},
    runtime=(
        RuntimeCosts(
            name="ort",
            version="1.31.1",
            threads=1,
            settings={"streams": 1},
            cost=(
                Cost(
                    op="conv", precision="int8", macs=2**40, bytes=2**33, depth=288, align=32, ms=0.0195,
                    spread=0.001, shape="3x3, 32 channels, 56 x 56",
                ),
                Cost(op="overhead", precision="float", macs=0, bytes=0, ms=0, spread=0.1),
            ),
            failures=(Failure(op="norm", precision="int8", shape="768", reason="no integer kernel"),),
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [INPUT, ARTIFACT, PLAN, PROFILE, MANIFEST, MEASUREMENTS, LOCK, VERDICT, PROJECT, RECIPE, OVERLAY],
    ids=lambda d: type(d).__name__,
)
def test_round_trip_is_exact(document: BaseModel) -> None:
    text = render(document)
    back = parse(type(document), text, origin="test")
    assert back == document
    assert render(back) == text
    assert digest(back) == digest(document)


@pytest.mark.parametrize("document", [PLAN, PROFILE, MANIFEST, MEASUREMENTS, LOCK, PROJECT, OVERLAY])
def test_another_schema_and_unknown_keys_are_refused(document: BaseModel) -> None:
    data: dict[str, Any] = document.model_dump(mode="json", by_alias=True)
    with pytest.raises(ValidationError):
        type(document).model_validate(data | {"schema": 2})
    with pytest.raises(ValidationError):
        type(document).model_validate(data | {"colour": "red"})


def test_documents_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PLAN.target = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"lr": 0}, "greater than 0"),
        ({"loss": "focal"}, "no loss is called 'focal'"),
        ({"momentum": 0}, "nesterov needs a momentum"),
        ({"trainable": []}, "at least one pattern"),
        ({"loss": "mse", "label_smoothing": 0.1}, "means nothing to loss 'mse'"),
        ({"augment": {"flipp": True}}, "Extra inputs"),
        ({"distill": {"temperature": 0}}, "greater than 0"),
        ({"optimizer": "lion"}, "'sgd' or 'adamw'"),
    ],
)
def test_unfit_settings_of_training_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Finetune.model_validate({"step": "finetune", **settings})


float32 = st.floats(min_value=2.0**-40, max_value=2.0**20, width=32)


@given(st.lists(float32, min_size=1, max_size=8))
def test_float32_scales_survive_json_exactly(scales: list[float]) -> None:
    tensor = TensorPlan(
        type="int8",
        scale=tuple(scales),
        zero_point=(0,) * len(scales),
        axis=0,
        origin="weight",
    )
    assert parse(TensorPlan, render(tensor), origin="test").scale == tuple(scales)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scale": (0.1, 0.2)}, "zero points"),
        ({"scale": (0.1, 0.2), "zero_point": (0, 0)}, "axis"),
        ({"scale": (-0.1,)}, "positive"),
        ({"zero_point": (256,)}, "outside uint8"),
        ({"group": 32}, "groups need an axis"),
        ({"group": 1, "axis": 0}, "greater than or equal to 2"),
    ],
)
def test_impossible_parameters_are_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        QuantParams.model_validate({"type": "uint8", "scale": (0.1,), "zero_point": (0,)} | change)


def test_differences_name_the_tensor() -> None:
    assert differences(PLAN, PLAN) == []
    data = PLAN.model_dump(by_alias=True)
    data["tensors"]["x"]["scale"] = (0.1000001,)
    data["tensors"]["w"]["digest"] = "ee" * 32
    del data["tensors"]["s"]
    found = differences(PLAN, Plan.model_validate(data))
    assert [line.split(":")[0] for line in found] == ["s", "w", "x"]


def test_groups_are_read_back_as_they_were_and_told_where_they_differ() -> None:
    six = {"scale": (0.5,) * 6, "zero_point": (3,) * 6}
    grouped = TensorPlan(type="uint4", **six, axis=0, group=32, origin="weight")
    assert parse(TensorPlan, render(grouped), origin="test") == grouped
    assert [grouped.scale_shape(shape) for shape in ((96, 2), (70, 2))] == [(3, 2), (3, 2)]
    assert grouped.model_copy(update={"axis": 1}).scale_shape((2, 96)) == (2, 3)
    plan = PLAN.model_copy(update={"tensors": {"w": grouped}})
    other = PLAN.model_copy(update={"tensors": {"w": grouped.model_copy(update={"group": 64})}})
    assert differences(plan, plan) == []
    assert differences(plan, other) == ["w: groups of 64, planned 32"]


def test_a_form_that_rounds_while_running_needs_its_rules() -> None:
    runtime = PROFILE.runtime[0].model_dump()
    with pytest.raises(ValidationError, match=r"needs the list rounds or the table weights\.dynamic"):
        Runtime.model_validate({**runtime, "forms": ("dynamic",)})
    rules = {"operations": ("MatMul",), "rounds": "tensor", "source": "docs", "date": TODAY}
    able = Runtime.model_validate({**runtime, "forms": ("dynamic",), "weights": {"dynamic": rules}})
    assert "dynamic" in able.precisions


def test_one_ulp_is_allowed_only_when_asked() -> None:
    data = PLAN.model_dump(by_alias=True)
    data["tensors"]["x"]["scale"] = (0.1 * (1 + 2.0**-24),)
    other = Plan.model_validate(data)
    assert differences(PLAN, other)
    assert differences(PLAN, other, ulps=1) == []


TOML = """\
[model]
path = "m.onnx"

[budget]
max_drop = "much"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOML, "deploy.toml:5: 'budget.max_drop'"),
        ('[model]\npath = "m"\nshape = 3\n', "deploy.toml:3: unknown key 'model.shape'"),
        ('[model]\npath = "m"\n[modle]\n', "deploy.toml:3: unknown key 'modle'"),
        ("[model]\npath = \n", "line 2"),
        ('[data]\neval = "e.npz"\n', "'model'"),
        ('[model]\npath = "m"\n[input.x]\nnormalisation = { std = [0.0] }\n', "deploy.toml:4:"),
    ],
)
def test_a_malformed_project_names_line_and_key(text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_toml(Project, text, origin="deploy.toml")
    assert expected in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("macs", 10**400), ("macs", -1), ("bytes", 2.5), ("ms", float("nan")), ("ms", float("inf")),
        ("ms", 1e300), ("spread", -0.1), ("depth", 0), ("op", "convolution"), ("precision", "fp4"),
    ],
)  # fmt: skip
def test_costs_that_nobody_could_have_measured_are_refused(key: str, value: object) -> None:
    cost = OVERLAY.runtime[0].cost[0].model_dump()
    with pytest.raises(ValidationError, match=key):
        Cost.model_validate(cost | {key: value})


def test_an_overlay_has_each_runtime_once_and_one_at_least() -> None:
    for runtimes in ((), OVERLAY.runtime * 2):
        with pytest.raises(ValidationError, match="runtime"):
            Overlay.model_validate(OVERLAY.model_dump(by_alias=True) | {"runtime": runtimes})
    assert OVERLAY.runtime_named("ort") is OVERLAY.runtime[0]
    assert OVERLAY.runtime_named("tflite") is None


@pytest.mark.parametrize(
    ("before", "after", "found", "said"),
    [
        ('"ms": 0.0195', '"ms": "slow"', '"ms": "slow"', "'runtime.0.cost.0.ms'"),
        ('"align": 32', '"aligned": 32', '"aligned"', "unknown key 'runtime.0.cost.0.aligned'"),
        ('"precision": "int8",\n', "\n", '"op": "conv"', "'runtime.0.cost.0.precision': Field required"),
        ('"cores": 8', '"cores": 0', '"cores"', "'machine.cores'"),
    ],
)
def test_malformed_json_is_told_with_line_and_key(before: str, after: str, found: str, said: str) -> None:
    text = render(OVERLAY)
    assert before in text
    broken = text.replace(before, after, 1)
    line = next(i for i, shown in enumerate(broken.splitlines(), 1) if found in shown)
    if "required" in said:
        line -= 1  # where the table begins that lacks it
    with pytest.raises(UsageError) as caught:
        parse(Overlay, broken, origin="o.json")
    assert caught.value.message.startswith(f"o.json:{line}: ")
    assert said in caught.value.message


def test_what_is_no_json_is_told_with_its_line() -> None:
    with pytest.raises(UsageError, match="at line 3"):
        parse(Overlay, '{\n"schema": 1\n"profile": 2}', origin="o.json")


@given(st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
), st.integers(0, 8))  # fmt: skip
def test_every_value_is_found_on_its_line(value: object, indent: int) -> None:
    text = json.dumps(value, indent=indent)

    def check(value: object, location: tuple[str | int, ...]) -> None:
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, member in inner:
            line = line_in_json(text, (*location, key))
            assert line is not None
            first = json.dumps(member, indent=indent).splitlines()[0]
            assert first in text.splitlines()[line - 1]
            check(member, (*location, key))

    check(value, ())


def test_where_there_is_no_such_value_there_is_no_line() -> None:
    assert line_in_json("{", ("a",)) is None
    assert line_in_json('{"a" 1}', ("a",)) is None
    assert line_in_json("7", ("a",)) is None
    assert line_in_json('{\n"a": {}}', ("a", "b")) == 2
    assert line_in_json("[" * 100_000, (0, 0)) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n"nois": 1,\n"seconds": "long"}', "o.json:2: unknown key 'nois' (and "),
        ('{\n"nois": 1,\n"schema": 7}', "o.json:3: 'schema': "),
        ("{}", "o.json: 'profile': Field required (and "),
    ],
)
def test_of_several_problems_the_one_that_explains_most_is_told(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(Overlay, text, origin="o.json")
    assert caught.value.message.startswith(said)
