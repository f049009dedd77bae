"""Where predictions for a target come from: this machine's overlay, another machine's, a data sheet.

The nearest to the truth is taken and always named: measured here; measured on such a device elsewhere; lent
by the measured machine that is most like it, scaled by data sheets; the data sheet alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.adapter.overlays import find_overlay, kept_overlays, measured_machines, runs_here, why_not
from deploy.bundle.report.figures import plural
from deploy.measure.host import this_machine
from deploy.predict.caches import Cache
from deploy.predict.elsewhere import Sheet, Transferred, roof_of, roof_seen
from deploy.predict.latency import Costs, CostSource
from deploy.spec.document import digest
from deploy.spec.overlay import Machine, Overlay, RuntimeCosts
from deploy.spec.profile import Profile
from deploy.stages.target import Target


@dataclass(frozen=True)
class Known:
    """The costs of a runtime's kernels on a device.

    ``basis`` says where they are from, ``measured`` whether on that very device, ``alike`` whether on that or
    another one of its kind; ``key`` is the digest of what they are made of. ``least``: nothing can take less,
    most takes more.
    """

    costs: CostSource
    basis: str
    measured: bool
    key: str
    least: bool = False
    alike: bool = False


@dataclass(frozen=True)
class Foresight:
    """By runtime what is known of its costs; ``notes`` say what could not be used and why."""

    runtimes: Mapping[str, Known]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> dict[str, str]:
        """What results depend on that depend on this."""
        return {name: known.key for name, known in self.runtimes.items()}


NOTHING_KNOWN = Foresight({})


def costs_of(target: Target, threads: int) -> Foresight:
    """What is known of the costs of each runtime of the target.

    Raises UsageError where a shipped overlay is damaged.
    """
    profile = target.profile
    runtimes = [route.runtime for route in target.routes]
    found: dict[str, Known] = {}
    notes: list[str] = []
    kept, unreadable = kept_overlays()
    here = this_machine() if target.stands_here() else None
    if here is None:
        notes += unreadable
    else:
        fit = find_overlay(here, runs_here(runtimes, threads))
        notes += [*fit.warnings, *fit.reasons]
        kept = [k for k in kept if why_not(k.overlay.machine, here)]  # of this machine what fits was taken
        if fit.overlay is not None:
            rules = "" if fit.overlay.profile == profile.name else f" by the rules of {fit.overlay.profile}"
            when = f"measured here{rules}, {fit.overlay.date}"
            found = {
                m.name: Known(Costs.of(m, fit.overlay.facts), when, True, _key(m, fit.overlay), alike=True)
                for m in fit.overlay.runtime
            }
    elsewhere = [k.overlay for k in kept if k.overlay.profile == profile.name]
    overlays = sorted([*elsewhere, *measured_machines()], key=lambda o: _unlike(o.machine, here))
    for runtime in runtimes:
        if runtime.name not in found:
            known = _lent(profile, runtime.name, threads, overlays)
            if known is not None:
                found[runtime.name] = known
    return Foresight(found, tuple(notes))


def _unlike(measured: Machine, here: Machine | None) -> int:
    """In how many features one machine's CPU differs from this one; a CPU of another name in one more."""
    if here is None:
        return 0
    return len(set(measured.features) ^ set(here.features)) + (measured.cpu != here.cpu)


def _lent(profile: Profile, name: str, threads: int, overlays: Sequence[Overlay]) -> Known | None:
    """The costs of one runtime from other machines' measurements, those most like this machine first, or else
    from the data sheet."""
    same = [(o, c) for o in overlays if o.profile == profile.name if (c := o.runtime_named(name)) is not None]
    if same:
        overlay, costs = min(same, key=lambda o: o[1].threads != threads)
        run = "" if costs.threads == threads else f" with {plural(costs.threads, 'thread')}"
        basis = f"measured on {_device(overlay)}{run}, {overlay.date}"
        return Known(Costs.of(costs, overlay.facts), basis, False, _key(costs, overlay), alike=True)
    roof = roof_of(profile, threads)
    best = _most_alike(profile, name, overlays)
    if best is None:
        sheet = Sheet(roof)
        return Known(sheet, sheet.basis, False, digest(profile), least=True) if roof.macs else None
    overlay, costs = best
    roofs = (roof_seen(costs.cost), roof) if roof.macs else None
    how = "scaled by data sheets" if roof.macs else "as if it were that"
    lent = Transferred(Costs.of(costs), roofs=roofs)
    return Known(lent, f"lent by {_device(overlay)}, {how}", False, digest(costs) + digest(profile))


def _key(costs: RuntimeCosts, overlay: Overlay) -> str:
    return f"{digest(costs)} {Cache.of(overlay.facts)}"


def _most_alike(
    profile: Profile, name: str, overlays: Sequence[Overlay]
) -> tuple[Overlay, RuntimeCosts] | None:
    """The measured machine with this runtime whose CPU features agree best.

    None for accelerators and other architectures: their kernels have nothing in common.
    """
    able = [
        (overlay, costs)
        for overlay in overlays
        if overlay.machine.arch == profile.arch and not overlay.machine.device
        if (costs := overlay.runtime_named(name)) is not None
    ]
    return max(able, key=lambda o: len(set(profile.features) & set(o[0].machine.features)), default=None)


def _device(overlay: Overlay) -> str:
    return overlay.machine.device or overlay.machine.cpu
