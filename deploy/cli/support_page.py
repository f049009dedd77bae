"""The table of all operations and backends, in the words that the terminal and the reference page share."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.spec.conformance import Conformance


def first_versions() -> dict[str, tuple[int, int]]:
    """Of every operation of the standard the opset that brought it and the last one that changed it."""
    import onnx

    found: dict[str, tuple[int, int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in ("", "ai.onnx"):
            first, last = found.get(schema.name, (schema.since_version, schema.since_version))
            found[schema.name] = min(first, schema.since_version), max(last, schema.since_version)
    return found


def listed(found: Sequence[Conformance]) -> list[str]:
    """The operations that some backend takes, sorted."""
    return sorted({op for conformance in found for op in conformance.operations})


def cell(conformance: Conformance, op: str) -> str:
    """How many of an operation's cases are taken and right: ``12 of 14``, ``12 of 14 (1 differs)``."""
    cases = conformance.operations.get(op)
    if cases is None:
        return "–"
    if not cases.cases:
        return "no cases"
    if not conformance.ran:
        return f"{cases.taken} of {cases.cases}"
    lost = cases.taken - cases.agree
    return f"{cases.agree} of {cases.cases}" + (f" ({lost} differ)" if lost else "")


def about(conformance: Conformance) -> str:
    """What ran the cases, and how many agree."""
    rows = conformance.operations.values()
    cases, agree = sum(row.cases for row in rows), sum(row.agree for row in rows)
    taken = sum(row.taken for row in rows)
    rules = f"under the rules of {conformance.profile}"
    if not conformance.ran:
        return f"by the vendor's table of operations, nothing was run: {taken:,} of {cases:,} cases are taken"
    wrong = f", {taken - agree} differ" if taken > agree else ""
    return f"{conformance.runtime}, {rules}: {agree:,} of {cases:,} cases agree{wrong}"


def page(found: Sequence[Conformance]) -> str:
    """The whole table in Markdown, with what is to be known of its figures."""
    from deploy.frontend.opset import OPSET
    from deploy.frontend.wellformed import OLDEST_OPSET

    versions = first_versions()
    names = [conformance.backend for conformance in found]
    rows = [
        f"| {op} | {_opsets(versions.get(op))} | {' | '.join(cell(c, op) for c in found)} |"
        for op in listed(found)
    ]
    onnx = ", ".join(sorted({conformance.onnx for conformance in found}))
    parts = [
        "# Operations by backend",
        "Which operations of the ONNX standard each backend takes. `12 of 14` means: of the standard's 14\n"
        f"node cases of that operation (onnx {onnx}) 12 are taken and give what the standard says; the\n"
        "others are refused before anything is written, unless it is said that they differ. A case counts\n"
        "as it stands, or with every input but the first as a constant. `deploy support MODEL` says the\n"
        "same of a model, node by node, with reasons; `deploy support OPERATION` shows types and reasons.",
        f"Models of opset {OLDEST_OPSET} or later are read and brought to opset {OPSET}, so the opset of a\n"
        "file hardly matters; *opsets* are those which brought an operation and last changed it.",
        "\n".join(f"- **{c.backend}**: {about(c)}. Written for opset {c.opset}." for c in found),
        "\n".join(
            [f"| operation | opsets | {' | '.join(names)} |", "|---|---|" + "---|" * len(names), *rows]
        ),
        "## Types",
        "Of the data that an operation is taken for: as the backend's own table lists them, else those of\n"
        "the cases that are right.",
        *(_types(conformance) for conformance in found),
        *filter(None, map(_differing, found)),
    ]
    return "\n\n".join(parts) + "\n"


def _opsets(versions: tuple[int, int] | None) -> str:
    return "" if versions is None else f"{versions[0]} to {versions[1]}"


def _types(conformance: Conformance) -> str:
    by: dict[tuple[str, ...], list[str]] = {}
    for op, cases in conformance.operations.items():
        if cases.types:
            by.setdefault(cases.types, []).append(op)
    rows = [f"- {', '.join(types)}: {', '.join(sorted(ops))}" for types, ops in sorted(by.items())]
    return f"### {conformance.backend}\n\n" + "\n".join(rows)


def _differing(conformance: Conformance) -> str:
    by: dict[str, list[str]] = {}
    for cases in conformance.operations.values():
        for name, reason in cases.differ.items():
            by.setdefault(reason, []).append(f"`{name.removeprefix('test_')}`")
    if not by:
        return ""
    rows = [f"- {reason}: {', '.join(sorted(names))}" for reason, names in sorted(by.items())]
    return f"## What differs in {conformance.backend}\n\n" + "\n".join(rows)
