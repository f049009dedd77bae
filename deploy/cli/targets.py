"""``deploy targets``: the devices there are profiles for, and all facts of one with their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Json, complete_target

if TYPE_CHECKING:
    from deploy.measure.host import Host
    from deploy.spec.profile import Fact, Profile, QuantRules, Runtime
    from deploy.spec.unit import ComputeUnit


_HERE = {
    "measures": "builds and measures",
    "builds": "builds, cannot measure",
    "lacks": "cannot build: no backend for it is installed",
}


def targets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A target, its alias, or a profile's file.", autocompletion=complete_target
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the targets, or show every fact of one with its source."""
    from deploy.adapter.profiles import all_profiles, load_profile
    from deploy.cli.terminal import write_json

    if name is not None:
        profile = load_profile(name)
        if json:
            write_json({**profile.model_dump(mode="json", by_alias=True), "host": stand_in(profile)})
        else:
            _show(profile)
        return
    profiles = all_profiles()
    if json:
        rows = [
            {
                "name": p.name,
                "aliases": list(p.aliases),
                "title": p.title,
                "runtimes": _runtimes(p),
                "host": stand_in(p),
            }
            for p in profiles
        ]
        write_json({"targets": rows})
        return
    _list(profiles)


def stand_in(profile: Profile) -> str:
    """What this machine can do for the target: ``measures`` it, ``builds`` for it without timing it, or
    ``lacks`` a backend for any of its runtimes."""
    from deploy.adapter.profiles import resolve
    from deploy.errors import UsageError
    from deploy.measure.host import host

    runtimes = _runtimes(profile)
    if len(_missing(runtimes)) == len(runtimes):
        return "lacks"
    here = host()
    try:
        return "measures" if _equals(resolve(profile, here.features), here) else "builds"
    except UsageError:
        return "builds"


def _equals(profile: Profile, here: Host) -> bool:
    return profile.stand_in and profile.arch == here.arch and set(profile.features) <= here.features


def _runtimes(profile: Profile) -> list[str]:
    """Names of the runtimes; of a profile that means "this machine", those of what it stands for here."""
    from deploy.adapter.profiles import load_profile

    own = [runtime.name for runtime in profile.runtime]
    variants = [load_profile(v.use) for v in profile.on_host]
    return own or list(dict.fromkeys(r.name for v in variants for r in v.runtime))


def _missing(runtimes: list[str]) -> list[str]:
    """Those for which no backend is installed."""
    from deploy.adapter.discover import backend_names

    return [name for name in runtimes if name not in backend_names()]


def _marked(runtimes: list[str]) -> str:
    missing = _missing(runtimes)
    return ", ".join(f"({name})" if name in missing else name for name in runtimes)


def _list(profiles: list[Profile]) -> None:
    from deploy.cli.terminal import Cell, write_line, write_table

    rows: list[list[Cell]] = [
        [
            (profile.name, "name"),
            ", ".join(profile.aliases),
            profile.title,
            _marked(_runtimes(profile)),
            ("measures", "good") if stand_in(profile) == "measures" else stand_in(profile),
        ]
        for profile in profiles
    ]
    write_table(("target", "alias", "device", "runtime", "here"), rows)
    write_line()
    write_line(("here: this machine builds for it, or also measures in its place", "quiet"))
    if any(_missing(_runtimes(profile)) for profile in profiles):
        write_line(("in brackets: a runtime for which no backend is installed", "quiet"))
    write_line(("`deploy targets NAME` shows what is known of one, with sources", "quiet"))


def _show(profile: Profile) -> None:
    from deploy.cli.terminal import Cell, write_facts, write_line, write_table

    write_line((profile.name, "strong"), f"  {profile.title}")
    facts = [("also called", ", ".join(profile.aliases)), ("architecture", profile.arch)]
    facts += [("needs", ", ".join(profile.features)), ("extends", profile.inherits or "")]
    facts += [(f"with {'+'.join(v.features) or 'any CPU'}", f"is {v.use}") for v in profile.on_host]
    facts += [("this machine", _HERE[stand_in(profile)])]
    write_facts([(key, value) for key, value in facts if value], indent=2)
    sources: list[str] = []
    for title, group in (
        ("precision", profile.precision),
        ("memory", profile.memory),
        ("hardware", profile.hardware),
    ):
        if group:
            write_line()
            rows: list[list[Cell]] = [
                [name, _value(fact), (_cited(_source(fact), sources), "quiet")]
                for name, fact in group.items()
            ]
            write_table((title, "", ""), rows)
    for runtime in profile.runtime:
        _show_runtime(runtime, sources)
    if profile.notes:
        write_line()
    for note in profile.notes:
        write_line(note)
    if sources:
        write_line()
    for number, source in enumerate(sources, start=1):
        write_line((f"[{number}] {source}", "quiet"), wrap=False)


def _cited(source: str, sources: list[str]) -> str:
    """The source's number in the list at the end, where it is added if it is new."""
    if not source:
        return ""
    if source not in sources:
        sources.append(source)
    return f"[{sources.index(source) + 1}]"


def _show_runtime(runtime: Runtime, sources: list[str]) -> None:
    from deploy.cli.terminal import write_facts, write_line

    write_line()
    cited = _cited(f"{runtime.source} ({runtime.date})", sources)
    absent = "  no backend for it is installed here" if _missing([runtime.name]) else ""
    write_line(
        (f"runtime {runtime.name}", "strong"),
        "  " + ", ".join(runtime.versions),
        (f"  {cited}", "quiet"),
        absent,
    )
    facts = [
        ("ONNX opset", str(runtime.onnx_opset)),
        ("precisions", ", ".join(runtime.precisions)),
        ("float type", runtime.around),
        ("shapes", "fixed" if runtime.static_shapes else "free or fixed"),
        ("fuses", ", ".join(runtime.fuses)),
        ("options", ", ".join(f"{key} = {value}" for key, value in runtime.options.items())),
    ]
    if runtime.sparsity is not None:
        gain = runtime.sparsity.gain
        facts.append(
            ("sparsity", f"{runtime.sparsity.pattern}, gain {_value(gain)}  {_cited(_source(gain), sources)}")
        )
    for title, rules in (("INT8", runtime.quant), ("INT8, INT16", runtime.quant16)):
        if rules is not None:
            facts += _rules(title, rules, sources)
    if runtime.rounds:
        facts.append(("dynamic in", ", ".join(runtime.rounds)))
    write_facts([(key, value) for key, value in facts if value], indent=2)
    for name, unit in runtime.unit.items():
        _show_unit(name, unit, sources)


def _show_unit(name: str, unit: ComputeUnit, sources: list[str]) -> None:
    """What is known of an accelerator: what runs there, and which rules take it away."""
    from deploy.cli.terminal import Cell, write_facts, write_line

    write_line()
    write_line((name, "strong"), f"  otherwise {unit.otherwise}")
    cited = _cited(f"{unit.source} ({unit.date})", sources)
    facts: list[tuple[str, Cell]] = [("runs", f"{', '.join(unit.runs)}  {cited}")]
    for key, rule in unit.rule.items():
        told = f"{rule.effect}: {rule.words} ({', '.join(rule.operations) or 'any operation'})"
        facts.append((key, f"{told}  {rule.said} {_cited(f'{rule.source} ({rule.date})', sources)}"))
    write_facts(facts, indent=2)


def _rules(title: str, rules: QuantRules, sources: list[str]) -> list[tuple[str, str]]:
    symmetric = "symmetric" if rules.symmetric_activation else "affine"
    scope = "per channel" if rules.per_channel else "per tensor"
    if rules.per_channel and rules.per_tensor:
        scope += f" (per tensor: {', '.join(rules.per_tensor)})"
    return [
        (
            title,
            f"activations {rules.activation} {symmetric}; weights {rules.weight_bits} bit {scope}; "
            f"bias {rules.bias}; scales {rules.scale}  " + _cited(f"{rules.source} ({rules.date})", sources),
        ),
        ("  computes", ", ".join(rules.compute)),
        ("  if constant", ", ".join(rules.weighted)),
        (
            "  about zero",
            ", ".join(f"{op}'s operand {i}" for op, places in rules.centred.items() for i in places),
        ),
        ("  passes on", ", ".join(rules.forward)),
        ("  makes alike", ", ".join(rules.unify)),
        ("  instead of", "float, where INT8 loses too much" if rules.instead_of_float else ""),
        (
            "  prescribes",
            ", ".join(
                f"{op} {fixed.scale:g} from {fixed.zero_point}" for op, fixed in rules.fixed_output.items()
            ),
        ),
    ]


def _value(fact: Fact) -> str:
    if isinstance(fact, str):
        return fact
    if isinstance(fact.value, bool):
        return "yes" if fact.value else "no"
    return f"{fact.value} {fact.unit}".rstrip()


def _source(fact: Fact) -> str:
    return "" if isinstance(fact, str) else f"{fact.source} ({fact.date})"
