"""What a build took to be true of the device, where that was found, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.adapter.profiles import load_profile
from deploy.bundle.read import caveat_of
from deploy.errors import DeployError
from deploy.spec.manifest import Lock, Manifest
from deploy.spec.profile import Fact as ProfileFact
from deploy.spec.profile import Figure, Profile, QuantRules, Runtime


@dataclass(frozen=True)
class Known:
    """One fact, and where and when it was found, unless its group says that of all."""

    name: str
    value: str
    source: str = ""
    unknown: bool = False


@dataclass(frozen=True)
class Group:
    """Facts of one kind; ``source`` where they all have the same one."""

    name: str
    facts: tuple[Known, ...]
    source: str = ""


@dataclass(frozen=True)
class Hardware:
    """``caveat`` says why the facts may not be those that the build used, or are missing."""

    title: str
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()
    caveat: str = ""


def hardware(manifest: Manifest, lock: Lock) -> Hardware:
    """The facts of the profile that a bundle was built by, as far as this installation has it."""
    try:
        profile = load_profile(manifest.profile)
    except DeployError as e:
        return Hardware(manifest.profile, caveat=f"the profile is not installed here: {e.message}")
    groups = [
        Group("precision", _facts(profile.precision)),
        Group("memory", _facts(profile.memory)),
        Group("hardware", _facts(profile.hardware)),
        *_of_runtime(profile, manifest.runtime),
    ]
    facts = tuple(g for g in groups if g.facts)
    return Hardware(profile.title, facts, profile.notes, caveat_of(profile, lock))


def _facts(table: Mapping[str, ProfileFact]) -> tuple[Known, ...]:
    return tuple(_known(name, fact) for name, fact in table.items())


def _known(name: str, fact: ProfileFact) -> Known:
    if not isinstance(fact, Figure):
        return Known(name, "unknown", unknown=True)
    source = f"{fact.source}, {fact.date}"
    if isinstance(fact.value, bool):  # a unit behind yes or no says how that is meant
        return Known(
            name, ", ".join(part for part in ("yes" if fact.value else "no", fact.unit) if part), source
        )
    value = f"{fact.value:,}" if isinstance(fact.value, int) else str(fact.value)
    return Known(name, f"{value} {fact.unit}".rstrip(), source)


def _of_runtime(profile: Profile, name: str) -> list[Group]:
    try:
        runtime = profile.runtime_named(name)
    except KeyError:
        return []
    source = f"{runtime.source}, {runtime.date}"
    groups = [Group(f"runtime {name}", _pairs(_runtime_facts(runtime)), source)]
    if runtime.quant is not None:
        source = f"{runtime.quant.source}, {runtime.quant.date}"
        groups.append(Group(f"how {name} wants INT8", _pairs(_quant_facts(runtime.quant)), source))
    return groups


def _pairs(said: Mapping[str, str]) -> tuple[Known, ...]:
    return tuple(Known(name, value) for name, value in said.items())


def _runtime_facts(runtime: Runtime) -> dict[str, str]:
    return {
        "versions": ", ".join(runtime.versions) or "any",
        "operator set": str(runtime.onnx_opset),
        "what stays float": runtime.around,
        "computed as one kernel": ", ".join(runtime.fuses) or "nothing",
    }


def _quant_facts(rules: QuantRules) -> dict[str, str]:
    symmetric = "symmetric" if rules.symmetric_activation else "with a zero point"
    channels = "per output channel" if rules.per_channel else "per tensor"
    if rules.per_channel and rules.per_tensor:
        channels += f" (per tensor: {', '.join(rules.per_tensor)})"
    return {
        "activations": f"{rules.activation}, {symmetric}",
        "weights": f"{rules.weight_bits} bits, {channels}",
        "bias": rules.bias,
        "scales": rules.scale,
        "integer kernels": ", ".join(rules.compute),
        "move integers only": ", ".join(rules.forward) or "none",
    }
