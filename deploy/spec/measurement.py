"""What a measurement found, with the conditions under which it holds."""

from __future__ import annotations

from pydantic import Field, JsonValue

from deploy.spec.document import Frozen
from deploy.spec.project import PrecisionRequest
from deploy.spec.tensors import Precision


class Latency(Frozen):
    """Milliseconds of one inference. ``spread`` is the interquartile range over the median."""

    p50: float = Field(gt=0)
    p95: float
    p99: float
    samples: int
    spread: float = Field(ge=0)


class Conditions(Frozen):
    """Where and how it was measured."""

    device: str
    runtime: str
    threads: int
    batch: int
    date: str


class Measurement(Frozen):
    """Latency and peak memory of one runner. ``peak_memory_bytes`` is what opening and running it added."""

    latency_ms: Latency
    peak_memory_bytes: int | None = None
    conditions: Conditions


class Energy(Frozen):
    """Joules of one inference of float baseline and artifact, run in turn: medians over rounds.

    They are what ``counters`` counted while one of them alone ran: whole processor packages, idle power
    included. ``saving`` is the median over rounds of baseline / artifact; ``interval`` its 95 % bootstrap
    interval.
    """

    baseline: float = Field(gt=0)
    artifact: float = Field(gt=0)
    saving: float
    interval: tuple[float, float]
    counters: tuple[str, ...]


class Comparison(Frozen):
    """Float baseline and artifact, timed in turn within one run, so that a drifting clock hits both.

    ``speedup`` is the median over rounds of baseline / artifact; ``interval`` its 95 % bootstrap interval.
    ``energy`` is there where energy was the objective and this machine can count it.
    """

    baseline: Measurement
    artifact: Measurement
    speedup: float
    interval: tuple[float, float]
    energy: Energy | None = None


class Attempt(Frozen):
    """One form of the model that was built, scored or timed on the way to the artifact, in that order.

    ``bytes`` is the size of its model files, ``score`` and ``drop`` are in the metric's unit on the data that
    choose, ``speed`` is in multiples of the file as given, ``joules`` are those of one inference (see
    `Energy`). ``outcome`` says in a few words what became of it.
    """

    name: str
    runtime: str
    precision: dict[Precision, int] = {}
    bytes: int
    score: float | None = None
    drop: float | None = None
    latency_ms: Latency | None = None
    speed: float | None = None
    peak_memory_bytes: int | None = None
    joules: float | None = None
    outcome: str = ""


class Point(Frozen):
    """A form of the model that no other one met on the way beats in drop, latency and bytes together.

    ``number`` counts from the fastest on. ``runtime``, ``precision`` (as it was asked for), ``float_blocks``,
    ``rungs`` (what was done to the weights, in order), ``sparse_blocks`` and ``wide_blocks`` (those whose
    activations have 16 bits where others have 8) are what builds it again, ``options`` what it is opened
    with;
    ``mixed``: its blocks are those that costs of kernels chose. ``form`` names it as among the attempts;
    ``drop`` is on the data that choose, ``latency_ms`` a median, or a prediction where ``predicted`` says so.
    """

    number: int = Field(ge=1)
    form: str
    runtime: str
    precision: PrecisionRequest
    float_blocks: tuple[str, ...]
    rungs: tuple[str, ...] = ()
    sparse_blocks: tuple[str, ...] = ()
    wide_blocks: tuple[str, ...] = ()
    options: dict[str, JsonValue] = {}
    mixed: bool = False
    score: float | None = None
    drop: float | None = None
    bytes: int = Field(gt=0)
    latency_ms: float | None = Field(default=None, gt=0)
    predicted: bool = False
    chosen: bool = False


class BlockTime(Frozen):
    """Milliseconds that one inference spends in a block, in our float build and in the artifact.

    From the runtime's own profiler, which slows small operations: the shares mean more than the sum. None
    where the runtime does not say.
    """

    id: str
    float_ms: float | None = None
    ms: float | None = None
