"""Recipes in whole builds: every step, what is undone and said, what a lock replays, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")
from deploy.bundle.read import Bundle, load_lock, load_plan
from deploy.compress.ground import Ground, StepResult
from deploy.compress.step import Step as Place
from deploy.errors import ModelError, UsageError
from deploy.graph.edit import constant
from deploy.pipeline import build, build_all, dry_run
from deploy.progress import SILENT, Silent
from deploy.spec.ablation import StepRecord
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.plan import TensorPlan
from deploy.spec.project import Budget
from deploy.spec.recipe import Recipe, Step
from deploy.stages.recipe import ready
from deploy.stages.record import Record, open_cache
from deploy.stages.request import Request, Roles
from deploy.stages.steps import clean, read_source
from deploy.stages.target import find_target

Build = Callable[..., Bundle]
TRAIN = Finetune(epochs=1, batch=8, lr=0.05)
PLAIN = Prune(macs=0.4, criterion="l2", scope="global", compensate=False, max_drop=1.0)


@pytest.fixture
def labelled(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**images, "y": np.arange(len(images["x"])) % 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests that run real steps only."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(
    network: Path, images: dict[str, np.ndarray], labelled: dict[str, np.ndarray], tmp_path: Path, cache: Path
) -> Build:
    def run(*steps: Step, model: Path = network, **settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "data": images, "train": labelled, "measure": False, "tune": "off",
            "out": tmp_path / "dist", "cache": cache, "runtime": "ort", "precision": "float",
            "recipe": steps,
        }  # fmt: skip
        return build(model, **{**given, **settings})  # type: ignore[arg-type]

    return run


def steps_of(bundle: Bundle) -> tuple[StepRecord, ...]:
    assert bundle.measurements.compression is not None
    return bundle.measurements.compression.steps


WIDE = """g (float[n, 3, 8, 8] x) => (float[n, 4] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2, b2)
    e = Relu (c)
    f = GlobalAveragePool (e)
    h = Flatten (f)
    y = Gemm <transB = 1> (h, w3, b3)
}"""


@pytest.fixture
def wide(save: Callable[..., Path], tmp_path: Path) -> Path:
    """With weights large enough to share values."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (24, 3, 3, 3), "b1": (24,), "w2": (32, 24, 3, 3), "b2": (32,), "w3": (4, 32), "b3": (4,)}
    arrays = {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    return save(tmp_path / "wide.onnx", WIDE, arrays)


def test_every_step_runs_is_told_and_follows_a_lock(make: Build, wide: Path) -> None:
    recipe = (
        PLAIN.model_copy(update={"finetune": TRAIN}),
        LowRank(lost=0.3, max_drop=1.0),
        Sparsify(method="magnitude", anyway=True, finetune=TRAIN, max_drop=1.0),
        TRAIN,
        Cluster(max_drop=1.0),
    )
    bundle = make(*recipe, model=wide)
    found = steps_of(bundle)
    assert [(r.number, r.step.step, r.kept) for r in found] == [
        (1, "prune", True), (2, "lowrank", True), (3, "sparsify", True), (4, "finetune", True),
        (5, "cluster", True),
    ]  # fmt: skip
    ablation = bundle.measurements.compression
    assert ablation is not None and (ablation.metric, ablation.role) == ("agreement", "calibration")
    pruned = found[0].figures
    assert pruned.macs is not None and ablation.before.macs is not None
    assert pruned.macs <= 0.6 * ablation.before.macs
    assert pruned.drop is not None and pruned.score == pytest.approx(1 - pruned.drop)
    assert pruned.weight_bytes < ablation.before.weight_bytes and all(r.told for r in found)
    weights = [constant(v) for v in ir.load(bundle.folder / "graph.onnx").graph.initializers.values()]
    large = [array for array in weights if array is not None and array.size > 1000]
    assert large and all(len(np.unique(array)) <= 17 for array in large), "what came last holds"
    assert any((array == 0).mean() >= 0.4 for array in large), "zeros outlast training"
    curves = {path.name for path in (bundle.folder / "training").glob("*.csv")}
    assert {"1-prune.csv", "3-sparsify.csv", "4-finetune.csv"} <= curves
    manifest = bundle.manifest
    assert manifest.recipe.steps == recipe and manifest.compression is not None
    assert [r.figures.latency_ms for r in manifest.compression.steps] == [None] * 5
    again = make(*recipe, model=wide, lock=bundle.folder / "deploy.lock")
    assert again.digest == bundle.digest
    assert all(s.cached for s in again.measurements.stages if s.name in {r.step.step for r in found})


def test_a_student_of_half_the_width_ships(make: Build) -> None:
    bundle = make(Shrink(width=0.5, fresh=True), TRAIN, budget=Budget(max_drop=0.5))
    student, trained = steps_of(bundle)
    assert student.kept and trained.kept, "its shape is the user's choice"
    assert student.figures.parameters < 0.6 * bundle.manifest.source.parameters


def test_a_preset_becomes_steps_that_are_said(make: Build) -> None:
    bundle = make(recipe="fast")
    assert bundle.manifest.recipe.preset == "fast"
    assert [step.step for step in bundle.manifest.recipe.steps] == ["prune"]
    assert any("2:4" in note for note in bundle.manifest.recipe.notes)


# Steps that do as a test wants: what they cost follows from how much they take.


@dataclass
class Fake:
    """Stands for what runs steps: breaks the graph from ``limit`` on, unless a training mends it."""

    limit: float
    mends: bool = False
    ran: list[str] = field(default_factory=list)

    def __call__(self, step: Step) -> Callable[[Step, ir.Model, Ground], StepResult]:
        def run(step: Step, model: ir.Model, ground: Ground) -> StepResult:
            if isinstance(step, Finetune):
                self.ran.append("finetune")
                return StepResult(ground.given if self.mends else model, "trained")
            assert isinstance(step, Prune) and step.macs is not None
            self.ran.append(f"{step.macs:g}")
            return StepResult(broken(model) if step.macs >= self.limit else model, "done")

        return run


def broken(model: ir.Model) -> ir.Model:
    """Answers another class to all that it is asked."""
    copy = model.clone()
    value = copy.graph.initializers["w3"]
    array = constant(value)
    assert array is not None
    value.const_value = ir.tensor(np.roll(-array, 1, axis=0), name="w3")
    return copy


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Build) -> Callable[..., tuple[Build, Fake]]:
    def replaced(limit: float, mends: bool = False) -> tuple[Build, Fake]:
        steps = Fake(limit, mends)
        monkeypatch.setattr("deploy.stages.compress.runner", steps)
        return (lambda *given, **settings: make(*given, **{"cache": tmp_path / "fake", **settings})), steps

    return replaced


def weights(bundle: Bundle) -> dict[str, np.ndarray]:
    graph = ir.load(bundle.folder / "graph.onnx").graph
    return {name: value.const_value.numpy() for name, value in graph.initializers.items()}


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_what_costs_too_much_is_softened_and_the_lock_knows(fake: Callable[..., tuple[Build, Fake]]) -> None:
    make, steps = fake(limit=0.12)
    heard = Heard()
    step = PLAIN.model_copy(update={"max_drop": None})
    bundle = make(step, progress=heard)
    assert steps.ran == ["0.4", "0.2", "0.1", "0.15"]
    tries = [(r.softened, r.share, r.kept) for r in steps_of(bundle)]
    assert tries == [(0, 1, False), (1, 0.5, False), (3, 0.375, False), (2, 0.25, True)], (
        "what is kept is last"
    )
    assert "where 1.00 points is allowed" in steps_of(bundle)[0].undone
    told = zip(("macs = 0.2", "macs = 0.1", "macs = 0.15: more of it may hold"), heard.warnings, strict=True)
    assert all(words in warning for words, warning in told)
    (choice,) = load_lock(bundle).recipe or ()
    assert (choice.step, choice.softened, choice.share, choice.kept) == ("prune", 2, 0.25, True)
    make2, steps2 = fake(limit=0.12)
    again = make2(step, lock=bundle.folder / "deploy.lock", cache=bundle.folder.parent / "other")
    assert steps2.ran == ["0.1"] and again.digest == bundle.digest


def test_of_2_4_what_holds_stays(make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eight layers, of which the two that add most are too much; the lock knows them."""
    ran: list[tuple[str, ...]] = []

    def run(step: Sparsify, model: ir.Model, ground: Ground) -> StepResult:
        ran.append(step.protect)
        rows = tuple(Place(f"n{i}", "2:4", f"n{i}" not in step.protect, rise=0.01 * i) for i in range(8))
        return StepResult(model if {"n6", "n7"} <= set(step.protect) else broken(model), "done", rows)

    monkeypatch.setattr("deploy.stages.compress.runner", lambda step: run)
    heard, step = Heard(), Sparsify(anyway=True, max_drop=0.1)
    bundle = make(step, cache=tmp_path / "one", progress=heard)
    assert ran == [(), ("n5", "n6", "n7"), ("n6", "n7"), ("n7",)]
    tries = [(len(r.step.protect), r.kept) for r in steps_of(bundle) if isinstance(r.step, Sparsify)]
    assert tries == [(0, False), (3, False), (1, False), (2, True)], "what is kept comes last"
    assert "2:4 but for 3 layers" in heard.warnings[0] and "more of it may hold" in heard.warnings[1]
    (choice,) = load_lock(bundle).recipe or ()
    assert (choice.softened, choice.protect, choice.kept) == (2, ("n6", "n7"), True)
    ran.clear()
    again = make(step, cache=tmp_path / "two", lock=bundle.folder / "deploy.lock")
    assert ran == [("n6", "n7")] and again.digest == bundle.digest


def test_what_never_fits_is_left_out_and_said(fake: Callable[..., tuple[Build, Fake]], make: Build) -> None:
    plain = make()
    own, steps = fake(limit=0.0)
    heard = Heard()
    bundle = own(PLAIN.model_copy(update={"max_drop": 0.05}), TRAIN, progress=heard)
    assert steps.ran == ["0.4", "finetune", "0.2", "0.1", "0.05"], "the same graph is trained once"
    assert not any(record.kept for record in steps_of(bundle)), "its training goes with it"
    assert "step 1 (prune) is left out" in heard.warnings[-1]
    assert all(np.array_equal(a, weights(plain)[name]) for name, a in weights(bundle).items())
    assert bundle.manifest.compression is not None and bundle.manifest.compression.steps == ()
    again = own(PLAIN.model_copy(update={"max_drop": 0.05}), TRAIN, lock=bundle.folder / "deploy.lock")
    assert again.digest == bundle.digest


def test_a_step_is_judged_after_its_training(fake: Callable[..., tuple[Build, Fake]]) -> None:
    make, steps = fake(limit=0.0, mends=True)
    bundle = make(PLAIN.model_copy(update={"max_drop": 0.0}), TRAIN)
    assert steps.ran == ["0.4", "finetune"]
    pruned, trained = steps_of(bundle)
    assert pruned.kept and trained.kept
    assert pruned.figures.drop is not None and pruned.figures.drop > 0.2
    assert trained.figures.drop == 0


def test_a_preset_leaves_out_what_cannot_work(
    fake: Callable[..., tuple[Build, Fake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _ = fake(limit=1.0)

    def fails(step: Step) -> Callable[[Step, ir.Model, Ground], StepResult]:
        def run(step: Step, model: ir.Model, ground: Ground) -> StepResult:
            raise ModelError("this graph is not to be trained")

        return run

    monkeypatch.setattr("deploy.stages.compress.runner", fails)
    heard = Heard()
    bundle = make(recipe="fast", progress=heard)
    assert heard.warnings == ["prune is left out of the recipe: this graph is not to be trained"]
    assert steps_of(bundle) == ()
    with pytest.raises(ModelError):
        make(PLAIN)


class Pulled(Silent):
    """The plug is pulled after so many steps forward; ``noted`` is what was said."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.noted: list[str] = []

    def advance(self, done: int, total: int) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.noted.append(text)


def test_a_build_killed_between_rounds_goes_on_and_ends_the_same(make: Build, tmp_path: Path) -> None:
    step = PLAIN.model_copy(update={"finetune": TRAIN.model_copy(update={"epochs": 2}), "per_round": 0.25})
    whole = make(step, cache=tmp_path / "whole")
    pulled = Pulled(after=13)  # 4 batches an epoch, 2 epochs a round: in the second round
    with pytest.raises(KeyboardInterrupt):
        make(step, cache=tmp_path / "killed", progress=pulled)
    assert any((tmp_path / "killed" / "unfinished").iterdir())
    again = Pulled(after=10**6)
    bundle = make(step, cache=tmp_path / "killed", progress=again)
    assert any(text.startswith("training goes on") for text in again.noted)
    assert bundle.digest == whole.digest
    assert not any((tmp_path / "killed" / "unfinished").iterdir())


# What is refused before anything runs.


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(step: Step) -> None:
        raise AssertionError("a step ran")

    monkeypatch.setattr("deploy.stages.compress.runner", fail)
    yield


BAD: dict[str, tuple[tuple[Step, ...], dict[str, object], str]] = {
    "no training data": ((TRAIN,), {"train": None}, "finetune: there are no training data"),
    "none for its rounds": (
        (PLAIN.model_copy(update={"finetune": TRAIN}),), {"train": None}, "its finetune has nothing to learn",
    ),
    "a second step": ((PLAIN, TRAIN.model_copy(update={"trainable": ("w9",)})), {}, "'w9' is the name of no"),
    "a protected name": ((PLAIN.model_copy(update={"protect": ("Con",)}),), {}, "'Con' is the name of no"),
    "nothing left to prune": ((PLAIN.model_copy(update={"protect": ("*",)}),), {}, "nothing to remove"),
    "no samples": ((Prune(macs=0.3),), {"data": None}, "there are none"),
    "2:4 that does not pay": ((Sparsify(),), {}, "2:4"),
    "latency without a table": ((Prune(latency=0.3),), {}, "needs to know what kernels take on x86-avx2"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_anything_runs(what: str, make: Build, never: None) -> None:
    steps, settings, message = BAD[what]
    with pytest.raises(UsageError, match=message) as caught:
        make(*steps, **settings)
    assert caught.value.hint


def test_a_preset_by_a_wrong_name_and_a_lock_of_another_recipe(make: Build) -> None:
    with pytest.raises(UsageError, match="no recipe is called 'tiny'"):
        make(recipe="tiny")
    bundle = make()
    with pytest.raises(UsageError, match="made with no steps, and the recipe now has the steps prune"):
        make(PLAIN, lock=bundle.folder / "deploy.lock")


def test_a_goal_of_latency_belongs_to_one_target(network: Path) -> None:
    request = Request(source=network, target="x86-cpu", recipe=Recipe(steps=(Prune(latency=0.3),)))
    with pytest.raises(UsageError, match="belongs to one target"):
        build_all(request, ("x86-cpu", "rpi5"))


def test_a_dry_run_names_the_steps_of_a_preset(
    network: Path, images: dict[str, np.ndarray], cache: Path
) -> None:
    request = Request(
        source=network, target="x86-avx2", runtime="ort", data=images, recipe=Recipe(preset="smallest"),
        cache=cache,
    )  # fmt: skip
    shown = dry_run(request)
    assert [step.step for step in shown.recipe.steps] == ["prune", "lowrank"]
    assert any("training data" in note for note in shown.recipe.notes)


def test_a_preset_without_what_is_refused_trains_for_nothing(
    network: Path,
    images: dict[str, np.ndarray],
    labelled: dict[str, np.ndarray],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(step: Step) -> Callable[[Step, ir.Model, Ground], None]:
        def check(step: Step, model: ir.Model, ground: Ground) -> None:
            if isinstance(step, Prune):
                raise UsageError("prune: all groups are too narrow", hint="none")

        return check

    monkeypatch.setattr("deploy.stages.recipe.checker", refuse)
    request = Request(
        source=network, target="x86-avx2", runtime="ort", data=images, train=labelled, cache=cache,
        recipe=Recipe(preset="balanced"),
    )  # fmt: skip
    shown = dry_run(request).recipe
    assert shown.steps == () and "prune is left out: all groups are too narrow" in shown.notes


@pytest.mark.parametrize("recipe", [Recipe(preset="fast"), Recipe(steps=(PLAIN,))], ids=["preset", "steps"])
def test_integers_are_final(recipe: Recipe, network: Path, cache: Path) -> None:
    request, record = Request(source=network, target="x86-avx2", recipe=recipe), Record(SILENT)
    with open_cache(cache, SILENT) as kept:
        prepared = clean(read_source(request, kept, record), request, kept, record)
    some = TensorPlan(type="int8", scale=(1.0,), zero_point=(0,), origin="imported")
    quantized = replace(prepared, facts=prepared.facts.model_copy(update={"imported": {"x": some}}))
    with pytest.raises(UsageError, match="the model came quantized"):
        ready(request, quantized, find_target("x86-avx2", "ort"), Roles(None, None, None), None, SILENT)


def test_what_the_recipe_has_lost_is_not_searched_for_among_precisions(
    fake: Callable[..., tuple[Build, Fake]], images: dict[str, np.ndarray]
) -> None:
    """A graph that answers all otherwise: no float block brings a point back, so all are INT8 as usual."""
    make, _ = fake(limit=0.1)
    bundle = make(PLAIN, precision="auto", eval=images, budget=Budget(max_drop=0.02))
    verdict, ladder = bundle.manifest.verdict, bundle.measurements.ladder
    assert verdict.status == "missed" and "of it by the recipe" in verdict.reasons[0]
    plan = load_plan(bundle)
    assert {block.precision for block in plan.blocks} == {"int8"} and not ladder
    assert bundle.manifest.evaluation is not None and bundle.manifest.evaluation.looks == 1
