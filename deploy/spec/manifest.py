"""What a bundle says of itself: ``manifest.json``, ``deploy.lock`` and ``measurements.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from deploy.spec.ablation import Ablation, StepChoice
from deploy.spec.artifact import Artifact
from deploy.spec.document import SCHEMA, Frozen
from deploy.spec.explanation import Explained
from deploy.spec.ladder import RungName, RungRecord
from deploy.spec.measurement import Attempt, BlockTime, Comparison, Point
from deploy.spec.project import PrecisionRequest
from deploy.spec.recipe import Recipe
from deploy.spec.residency import Residency
from deploy.spec.tensors import Precision


class Evaluation(Frozen):
    """A metric on the float baseline and on the artifact, over the same samples.

    ``drop`` is positive when the artifact is worse, in the metric's unit; ``interval`` its paired 95 %
    interval. ``role`` is the data it was taken on; ``looks`` how often those data were looked at.
    """

    metric: str
    unit: str
    higher_is_better: bool
    baseline: float
    artifact: float
    drop: float
    interval: tuple[float, float]
    per_class: dict[str, tuple[float, float]] = {}
    role: Literal["eval", "validation", "calibration", "random"]
    samples: int
    looks: int


class Outcome(Frozen):
    """The verdict on the whole build. ``float``: nothing was gained by compressing, and why."""

    status: Literal["met", "missed", "float"]
    reasons: tuple[str, ...] = ()


class SparsityProof(Frozen):
    """Whether what was written has the 2:4 zeros that the plan's blocks say, along the summed axis.

    Of so many ``products`` that many are ``proved``, ``by`` the weights as they were read from the file, or
    by the digests of their integers. ``broken`` says of the others by how much they are not.
    """

    pattern: Literal["2:4"] = "2:4"
    products: int = Field(ge=1)
    proved: int = Field(ge=0)
    by: Literal["weights", "digests"]
    broken: tuple[str, ...] = ()


class Verification(Frozen):
    """How far the artifact is from the reference graph, against what was allowed.

    Errors are the largest absolute difference over the outputs, divided by the largest reference magnitude.
    ``noise_floor`` is the same figure between two runs of the reference by one runtime, optimised and not.
    ``operations``: where the whole strays further than noise, how many of them were checked one by one, fed
    the reference's values, and all found right. ``beyond`` is what was found right besides: inferences in a
    row where states are kept, other sizes; ``skipped`` sizes that were not run, for they are too large for a
    check. ``sparsity``: of a plan with 2:4 sparse blocks.
    """

    passed: bool
    samples: int
    error: float
    noise_floor: float
    tolerance: float
    executed_by: str
    first_divergence: str | None = None
    operations: int = 0
    beyond: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    sparsity: SparsityProof | None = None


class SourceInfo(Frozen):
    """The model as given. ``sha256`` is that of the file, or the digest of the program that a function made.

    ``made_by`` has the versions of what captured a PyTorch model; the other figures are the ONNX file's.
    """

    name: str
    sha256: str
    bytes: int
    opset: int
    parameters: int
    macs: int | None
    weight_bytes: int
    made_by: dict[str, str] = {}


class CalibrationInfo(Frozen):
    """What the ranges were found on. ``random``: on noise, since no data were given and the user agreed."""

    sha256: str
    samples: int
    observer: str
    random: bool = False


class KnownHazard(Frozen):
    """What in the model loses accuracy or is refused by targets, seen before any data.

    ``nodes`` are those it is true of, by name, or an input where its shape is meant.
    """

    kind: str
    severity: Literal["note", "warning"]
    text: str
    nodes: tuple[str, ...]


class Sizes(Frozen):
    """Bytes of the float model and of the artifact; ``weights`` counts the constants alone."""

    baseline: int
    artifact: int
    baseline_weights: int
    weights: int


class Manifest(Frozen):
    """Everything needed to trust, run and rebuild a bundle. ``notes`` is what reading the model warned of,
    ``classes`` the names of the classes in the order of their numbers, empty where nobody gave them.
    ``compression`` are the steps of the recipe that were kept, and what they left; ``residency`` what the
    device's accelerators would compute, by the rules of its profile."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    target: str
    profile: str
    runtime: str
    source: SourceInfo
    recipe: Recipe
    compression: Ablation | None = None
    plan_sha256: str
    precision: dict[Precision, int]
    files: dict[str, str]
    artifact: Artifact
    options: dict[str, JsonValue]
    size_bytes: Sizes
    calibration: CalibrationInfo | None
    evaluation: Evaluation | None
    verification: Verification
    verdict: Outcome
    hazards: tuple[KnownHazard, ...] = ()
    residency: tuple[Residency, ...] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    deferred: bool
    executed_by: str
    toolchain: dict[str, str]
    seed: int


class Choice(Frozen):
    """One decision that a measurement made."""

    what: str
    chosen: str
    reason: str


class Lock(Frozen):
    """``deploy.lock``: every choice that came from a measurement, and what it was made for.

    ``rungs`` of the accuracy ladder come first, and ``float_blocks`` are those of the graph that they left,
    ``sparse_blocks`` those whose weights then got 2:4 zeros, ``wide_blocks`` those whose activations have 16
    bits where others have 8.
    ``recipe`` says what became of each step of it, None in locks written before. ``precision`` is the one
    that was asked for, or the form of weights alone that won; ``options`` are the
    settings that were chosen, ``threads`` how many everything else ran with, ``any_threads`` whether the
    artifact's number was chosen; ``looks`` how often the data that accept were looked at to come to these
    choices.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    source_sha256: str
    runtime: str
    calibration_sha256: str | None
    profile_sha256: str
    seed: int
    choices: tuple[Choice, ...]
    float_blocks: tuple[str, ...]
    rungs: tuple[RungName, ...] = ()
    sparse_blocks: tuple[str, ...] = ()
    wide_blocks: tuple[str, ...] = ()
    recipe: tuple[StepChoice, ...] | None = None
    precision: PrecisionRequest = "auto"
    threads: int = 1
    any_threads: bool = False
    options: dict[str, JsonValue] = {}
    looks: int = 0


class StageTime(Frozen):
    """Seconds that a stage took, and whether its result came from the cache."""

    name: str
    seconds: float
    cached: bool


class Measurements(Frozen):
    """``measurements.json``: one run on one machine. It lies outside the bundle's digest.

    ``missed`` says by how much limits were missed, by the manifest's reason, where that is a matter of
    measuring; ``doubts`` say what clock and data could not tell; ``front`` are the forms among which one may
    choose; ``compression`` every try of a step of the recipe; ``ladder`` the rungs that were tried.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    comparison: Comparison | None
    why_not: str = ""
    doubts: tuple[str, ...] = ()
    missed: dict[str, str] = {}
    attempts: tuple[Attempt, ...] = ()
    front: tuple[Point, ...] = ()
    compression: Ablation | None = None
    ladder: tuple[RungRecord, ...] = ()
    blocks: tuple[BlockTime, ...] = ()
    explained: Explained = Explained()
    stages: tuple[StageTime, ...] = ()
