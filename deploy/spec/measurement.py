"""What a measurement found, with the conditions under which it holds."""

from __future__ import annotations

from pydantic import Field

from deploy.spec.document import Frozen


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


class Comparison(Frozen):
    """Float baseline and artifact, timed in turn within one run, so that a drifting clock hits both.

    ``speedup`` is the median over rounds of baseline / artifact; ``interval`` its 95 % bootstrap interval.
    ``tried`` holds the speed of what lost or won against float, in multiples of the faster float.
    """

    baseline: Measurement
    artifact: Measurement
    speedup: float
    interval: tuple[float, float]
    tried: dict[str, float] = {}
