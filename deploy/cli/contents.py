"""A file in a runtime's own format, such as a .tflite, in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle.report import figures
from deploy.bundle.report.content import cleaned
from deploy.cli.terminal import Cell, write_facts, write_line

if TYPE_CHECKING:
    from deploy.spec.contents import Execution, FileContents, OperatorCount, Port

_PORTS_SHOWN = 16
_OUTSIDE_SHOWN = 8
_CLASSES_SHOWN = 8


def contents_json(path: Path, found: FileContents) -> dict[str, object]:
    """The object that ``deploy inspect --json`` writes of such a file."""
    return {"file": str(path), **found.model_dump(mode="json")}


def show_contents(path: Path, found: FileContents) -> None:
    """What the file holds, and what the runtime here makes of it."""
    write_line((str(path), "strong"), (f"  {cleaned(found.format)}", "quiet"))
    write_line()
    facts: list[tuple[str, Cell]] = [
        (word, cleaned(_port(port)))
        for word, ports in (("input", found.inputs), ("output", found.outputs))
        for port in ports[:_PORTS_SHOWN]
    ]
    facts += [
        ("written by", "deploy" if found.ours else "another program"),
        ("description", cleaned(found.description)),
        ("file", f"{figures.size(found.bytes)}, {figures.size(found.constant_bytes)} of constants"),
        ("classes", cleaned(_classes(found.classes))),
        ("operators", cleaned(_operators(found.operators, len(found.operators)))),
        ("subgraphs", str(found.subgraphs) if found.subgraphs != 1 else ""),
        ("signatures", cleaned(", ".join(_signature(s.key, s.inputs, s.outputs) for s in found.signatures))),
        ("metadata", cleaned(", ".join(f"{n} ({figures.size(b)})" for n, b in found.metadata.items()))),
    ]
    write_facts([(name, text) for name, text in facts if text], indent=2)
    write_line()
    _show_execution(found.execution)


def _show_execution(execution: Execution) -> None:
    runtime = cleaned(execution.runtime)
    if execution.refusal:
        write_line(("✗ ", "bad"), f"{runtime} does not open it: {cleaned(execution.refusal)}")
        return
    if execution.partitions is None:
        write_line(("✓ ", "good"), f"{runtime} opens it")
        return
    left = sum(operator.count for operator in execution.outside)
    said = f"{figures.plural(execution.partitions, 'partition')} computed by {cleaned(execution.delegate)}"
    good = execution.partitions == 1 and not left
    write_line(("✓ ", "good") if good else ("• ", "middling"), f"{runtime} opens it: {said}")
    if left:
        write_line(f"  left to its own kernels: {cleaned(_operators(execution.outside, _OUTSIDE_SHOWN))}")


def _port(port: Port) -> str:
    sizes = ", ".join("n" if size < 0 else str(size) for size in port.shape)
    text = f"{port.name}: {port.dtype}[{sizes}]"
    if len(port.scale) == 1:
        zero = port.zero_point[0] if port.zero_point else 0
        return f"{text}, scale {port.scale[0]:.6g}, zero point {zero}"
    return text if not port.scale else f"{text}, a scale for each index of axis {port.axis}"


def _classes(names: Sequence[str]) -> str:
    more = len(names) - _CLASSES_SHOWN
    listed = ", ".join(names[:_CLASSES_SHOWN])
    return f"{listed} and {more} more" if more > 0 else listed


def _operators(operators: Sequence[OperatorCount], most: int) -> str:
    shown = [f"{o.count} {o.op}{f' v{o.version}' if o.version else ''}" for o in operators[:most]]
    more = len(operators) - len(shown)
    return ", ".join(shown) + (f" and {figures.plural(more, 'other kind')}" if more else "")


def _signature(key: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    return f"{key} ({', '.join(inputs)} → {', '.join(outputs)})"
