"""What becomes of weights that share values on a target, said before anything runs."""

from __future__ import annotations

from deploy.adapter.protocol import Palettizes
from deploy.spec.compression import Cluster
from deploy.spec.project import WITHOUT_RANGES
from deploy.stages.request import Request, Roles
from deploy.stages.target import Target


def notes(request: Request, target: Target, roles: Roles) -> tuple[str, ...]:
    """Where a recipe clusters and not all of it ships as palettes, the reasons."""
    steps = [step for step in request.recipe.steps if isinstance(step, Cluster)]
    if not steps:
        return ()
    forms = {
        route.runtime.name: route.backend.palette_forms(route.runtime)
        for route in target.routes
        if isinstance(route.backend, Palettizes)
    }
    if not forms:
        names = " and ".join(route.runtime.name for route in target.routes)
        return (f"cluster: {names} stores the shared values as plain floats; the file is no smaller",)
    found = []
    if request.precision in ("dynamic", "w8", "w4"):
        found.append(f"cluster: {request.precision} stores integers in the place of palettes")
    elif (
        roles.calibration is not None
        and request.precision not in WITHOUT_RANGES
        and not all(form.integers for form in forms.values())
    ):
        found.append(
            "cluster: weights that become INT8 are no palettes any more; --precision fp16 keeps them all"
        )
    whole = [name for name, form in forms.items() if form.groups == "none"]
    groups = [step.group for step in steps if step.group is not None]
    if groups and whole:
        found.append(
            f"cluster: this release of {' and '.join(whole)} has one codebook for a weight: groups of "
            f"{groups[0]} channels share it where they have 256 values together at most, "
            "else the weight stays dense"
        )
    return tuple(found)
