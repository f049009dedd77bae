"""``deploy support``: which operations each backend takes, or which of them take a model, and why not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import CacheFolder, Json, complete_target, parse_shapes
from deploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploy.cli.terminal import Cell
    from deploy.spec.conformance import Conformance, OperationCases
    from deploy.stages.takes import Takes

_CASES_SHOWN = 3


def support(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|OPERATION",
            help="A model as `deploy build` takes it, or an ONNX operation. Default: all operations.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The runtimes of this device only.", autocompletion=complete_target
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZES", help="Sizes of a model's input: x=1,3,224,224; repeatable."),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the table of all operations as Markdown.")
    ] = False,
    cache: CacheFolder = None,
    json: Json = False,
) -> None:
    """Show which operations each backend takes, by ONNX's node cases; or which take a model, and why not."""
    from deploy.cli.support_page import first_versions
    from deploy.cli.terminal import write_json, write_text

    if markdown and (json or what is not None):
        raise UsageError("--markdown writes the table of all operations", hint="leave the rest out")
    versions = first_versions()
    if what is not None and what not in versions:
        _of_model(Path(what), target, parse_shapes(shape), cache, json=json)
        return
    found = _listed(target)
    if what is not None:
        found = [_only(conformance, what) for conformance in found]
    if markdown:
        from deploy.cli.support_page import page

        write_text(page(found))
    elif json:
        rows = [conformance.model_dump(mode="json", by_alias=True) for conformance in found]
        write_json({"opsets": {op: list(v) for op, v in versions.items()}, "backends": rows})
    elif what is not None:
        _show_operation(what, versions[what], found)
    else:
        _show_all(versions, found)


def _listed(target: str | None) -> list[Conformance]:
    """Those of the installed backends; with a target those of its runtimes, in their order."""
    from deploy.adapter.conformance import conformances
    from deploy.adapter.profiles import load_profile, resolve
    from deploy.measure.host import host

    found = conformances()
    if target is None:
        return found
    by_name = {conformance.backend: conformance for conformance in found}
    runtimes = resolve(load_profile(target), host().features).runtime
    return [by_name[runtime.name] for runtime in runtimes if runtime.name in by_name]


def _only(conformance: Conformance, op: str) -> Conformance:
    kept = {name: cases for name, cases in conformance.operations.items() if name == op}
    return conformance.model_copy(update={"operations": kept})


def _show_all(versions: Mapping[str, tuple[int, int]], found: Sequence[Conformance]) -> None:
    from deploy.cli.support_page import about, cell, listed
    from deploy.cli.terminal import write_facts, write_line, write_table

    rows: list[list[Cell]] = []
    for op in listed(found):
        first, last = versions.get(op, (0, 0))
        cells = [cell(conformance, op) for conformance in found]
        told: list[Cell] = [(text, _kind(c, op)) for text, c in zip(cells, found, strict=True)]
        rows.append([(op, "name"), f"{first} to {last}" if last else "", *told])
    write_table(("operation", "opsets", *(c.backend for c in found)), rows)
    write_line()
    write_facts([(c.backend, about(c)) for c in found])


def _kind(conformance: Conformance, op: str) -> str:
    cases = conformance.operations.get(op)
    if cases is None:
        return "quiet"
    whole = cases.taken == cases.cases and not cases.differ
    return "good" if whole else "middling" if cases.taken else "bad"


def _show_operation(op: str, versions: tuple[int, int], found: Sequence[Conformance]) -> None:
    from deploy.cli.support_page import about, cell
    from deploy.cli.terminal import write_facts, write_line

    first, last = versions
    changed = f"in the standard since opset {first}, last changed in {last}"
    write_line((op, "strong"), (f"  {changed}", "quiet"))
    for conformance in found:
        cases = conformance.operations.get(op)
        write_line()
        write_line((conformance.backend, "strong"), (f"  {about(conformance)}", "quiet"))
        if cases is None:
            write_line("  it does not take this operation")
            continue
        rows: list[tuple[str, Cell]] = [("cases", (cell(conformance, op), _kind(conformance, op)))]
        rows.append(("types", ", ".join(cases.types) or "unknown"))
        rows += _reasons("refused", cases.refused) + _reasons("unknown", cases.unsure) + _differences(cases)
        write_facts(rows, indent=2)


def _reasons(what: str, said: Mapping[str, tuple[str, ...]]) -> list[tuple[str, Cell]]:
    return [(what, f"{reason}: {_few(names)}") for reason, names in said.items()]


def _differences(cases: OperationCases) -> list[tuple[str, Cell]]:
    by: dict[str, list[str]] = {}
    for name, reason in cases.differ.items():
        by.setdefault(reason, []).append(name)
    return [("differs", f"{reason}: {_few(names)}") for reason, names in by.items()]


def _few(names: Sequence[str]) -> str:
    more = len(names) - _CASES_SHOWN
    shown = ", ".join(name.removeprefix("test_") for name in names[:_CASES_SHOWN])
    return shown + (f" and {more} more" if more > 0 else "")


# --- of a model -------------------------------------------------------------------------------------------


def _of_model(
    path: Path, target: str | None, shapes: Mapping[str, tuple[int, ...]], cache: Path | None, *, json: bool
) -> None:
    from deploy.adapter.conformance import conformances
    from deploy.cli.terminal import write_json
    from deploy.progress import SILENT
    from deploy.stages.record import Record, open_cache
    from deploy.stages.request import Request
    from deploy.stages.takes import takes

    places: list[tuple[str, str | None]] = [(target, None)] if target else []
    places = places or [(c.profile, c.backend) for c in conformances()]
    request = Request(source=path, target=target or "", shapes=shapes, cache=cache)
    with open_cache(cache, SILENT) as store:
        found = takes(request, places, Record(SILENT), store)
    if json:
        write_json(_model_json(path, found))
    else:
        _show_model(path, found)


def _model_json(path: Path, found: Takes) -> dict[str, object]:
    return {
        "model": str(path),
        "runtimes": [
            {"runtime": r.runtime, "target": r.target, "nodes": len(r.verdicts),
             "taken": r.count("supported"), "refused": r.count("unsupported"), "unknown": r.count("unknown")}
            for r in found.runtimes
        ],
        "nodes": [
            {"node": name, "op": op, "runtimes": {
                r.runtime: {"support": r.verdicts[name].support, "reason": r.verdicts[name].reason}
                for r in found.runtimes if name in r.verdicts
            }}
            for name, op in found.nodes
        ],
        "notes": list(found.notes),
    }  # fmt: skip


def _show_model(path: Path, found: Takes) -> None:
    from deploy.bundle.report import figures
    from deploy.cli.terminal import show_note, write_facts, write_line, write_table

    write_line(
        (str(path), "strong"), (f"  {figures.plural(len(found.nodes), 'node')} after cleaning", "quiet")
    )
    write_line()
    number = Counter(op for _, op in found.nodes)
    rows: list[list[Cell]] = []
    for op in sorted(number):
        names = [name for name, its in found.nodes if its == op]
        rows.append([(op, "name"), str(number[op]), *(_taken(r.verdicts, names) for r in found.runtimes)])
    titles = [f"{r.runtime} on {r.target}" for r in found.runtimes]
    write_table(("operation", "nodes", *titles), rows, right=(1,))
    for r in found.runtimes:
        facts: list[tuple[str, Cell]] = [
            (v.node, f"{v.op}: {v.reason}" if v.support == "unsupported" else f"{v.op}, unknown: {v.reason}")
            for v in r.verdicts.values()
            if v.support != "supported"
        ]
        if facts:
            write_line()
            write_line((f"{r.runtime} on {r.target}", "strong"), ("  does not take", "quiet"))
            write_facts(facts, indent=2)
    for note in found.notes:
        show_note(note)


def _taken(verdicts: Mapping[str, object], names: Sequence[str]) -> Cell:
    from deploy.spec.artifact import Verdict

    said = [v for name in names if isinstance(v := verdicts.get(name), Verdict)]
    taken = sum(v.support == "supported" for v in said)
    if not said:
        return "", "quiet"
    if taken == len(said):
        return "all", "good"
    if any(v.support == "unsupported" for v in said):
        return f"{taken} of {len(said)}", "bad"
    return f"{taken} of {len(said)}, others unknown", "middling"
