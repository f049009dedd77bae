"""A heat: ways to run a file, timed in turn for a moment, to find out which is faster by more than noise."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack

from deploy.adapter.protocol import Arrays, Runner
from deploy.errors import BackendError
from deploy.measure.latency import Timing, knock_out, speedup
from deploy.spec.project import Tune
from deploy.stages.baseline import Contender

SECONDS: Mapping[Tune, float] = {"off": 0.0, "quick": 3.0, "full": 20.0}
"""For opening and timing the winner's variants; who then seems faster is timed once more with everybody."""
_CROWD = 6
"""Contenders that need all of the time."""
WORTH = 1.02
"""Times as fast as before: less is not worth a setting that others have to know of."""


def heat(runs: Mapping[str, Contender], feeds: Arrays, seconds: float) -> dict[str, Timing]:
    """Times of all that can be opened within half of the time, of the first two whatever that takes.

    Raises BackendError where the first cannot be opened.
    """
    end = time.perf_counter() + seconds
    with ExitStack() as stack:
        opened: dict[str, Runner] = {}
        for name, who in runs.items():
            if len(opened) > 1 and time.perf_counter() > end - seconds / 2:
                break
            try:
                runner = stack.enter_context(who.open())
                runner.run(feeds)
            except BackendError:
                if not opened:
                    raise
                continue  # settings that this machine or version does not take
            opened[name] = runner
        enough = len(opened) * seconds / _CROWD
        left = max(end - time.perf_counter(), seconds / 4)
        return knock_out(opened, feeds, min(left, enough)) if len(opened) > 1 else {}


def fastest(times: Mapping[str, Timing]) -> str | None:
    """Who is faster than the first by more than noise, the fastest of them; None if nobody is."""
    if not times:
        return None
    first, *others = times
    best, most = None, WORTH
    for name in others:
        ratio, (least, _) = speedup(times[first], times[name])
        if ratio > most and least > 1.0:
            best, most = name, ratio
    return best
