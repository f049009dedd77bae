"""What a model's first samples show of its hazards, for the commands that look before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.graph.hazards import Hazard
    from deploy.spec.tensors import Normalisation

DEFAULT_TARGET = "x86-cpu"


@dataclass(frozen=True)
class Ahead:
    """``hazards`` of the graph and of the ``samples`` (in words), by the rules of ``target``."""

    target: str
    samples: str
    hazards: list[Hazard]


def look_ahead(
    model: Path,
    data: str | None,
    target: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    cache: Path | None,
    normalisation: Mapping[str, Normalisation] | None = None,
) -> Ahead:
    """As the first stages of a build do, from whose cache it comes. Raises what these raise."""
    from deploy.graph.hazards import Hazard
    from deploy.progress import SILENT
    from deploy.spec.project import InputSection
    from deploy.stages.foresee import outlook
    from deploy.stages.record import Record, open_cache
    from deploy.stages.request import Request

    request = Request(
        source=model,
        target=target or DEFAULT_TARGET,
        data=data,
        shapes=shapes,
        inputs={name: InputSection(normalisation=n) for name, n in (normalisation or {}).items()},
        precision="auto" if data is not None else "float",  # without data nothing is missed here
        cache=cache,
    )
    with open_cache(cache, SILENT) as store:
        found = outlook(request, Record(SILENT), store)
    hazards = [Hazard(node, h.kind, h.text, h.severity) for h in found.hazards for node in h.nodes]
    return Ahead(found.target, found.samples, hazards)
