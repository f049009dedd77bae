"""``deploy verify --deep``: plans and operations of bundles, drawn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deploy.errors import VerificationError

if TYPE_CHECKING:
    from deploy.bundle.deep import DeepCheck, TensorCheck
    from deploy.bundle.operations import Deviation
    from deploy.cli.terminal import Cell
    from deploy.spec.plan import QuantParams

_WORST_SHOWN = 5


def verify_deep(path: Path, limit: float, *, json: bool) -> None:
    """Look at one bundle or at all in a folder; ends with the exit code of VerificationError where something
    diverges."""
    from deploy.bundle.deep import bundles_in, look_deep
    from deploy.cli.terminal import stages, write_json

    checks = []
    for folder in bundles_in(path):
        with stages(str(folder), quiet=json) as progress:
            begin = time.perf_counter()
            progress.start("operations")
            checks.append(look_deep(folder, limit_s=limit, progress=progress))
            said = f"{len(checks[-1].operations)} looked at"
            progress.finish("operations", time.perf_counter() - begin, False, said)
    if json:
        write_json(deep_json(checks))
    else:
        _show(checks)
    if not all(check.right for check in checks):
        raise typer.Exit(VerificationError.exit_code)


def deep_json(checks: Sequence[DeepCheck]) -> dict[str, object]:
    """Everything that was found, as plain values."""
    from deploy.bundle.deep import alike

    same, unlike = alike(checks)
    return {
        "right": all(check.right for check in checks),
        "same_everywhere": same,
        "differ_by_rules": unlike,
        "bundles": [
            {
                "bundle": str(check.bundle.folder),
                "target": check.bundle.manifest.target,
                "runtime": check.runtime,
                "right": check.right,
                "self_test": check.failed or "passes",
                "tensors": [
                    {
                        "name": t.name,
                        "planned": _params_json(t.planned),
                        "read": _params_json(t.read),
                        "differences": list(t.wrong),
                    }
                    for t in check.tensors
                ],
                "how": check.how,
                "why_not": check.why_not,
                "caveat": check.caveat,
                "unchecked": check.unchecked,
                "nodes": check.nodes,
                "uncovered": list(check.uncovered),
                "first_divergence": _operation_json(check.first),
                "operations": [_operation_json(operation) for operation in check.operations],
            }
            for check in checks
        ],
    }


def _params_json(params: QuantParams | None) -> dict[str, object] | None:
    if params is None:
        return None
    return params.model_dump(mode="json", include={"type", "scale", "zero_point", "axis", "group"})


def _operation_json(operation: Deviation | None) -> dict[str, object] | None:
    if operation is None:
        return None
    found = {**asdict(operation), "wrong": operation.wrong}
    return {key: None if value == float("inf") else value for key, value in found.items()}


def _show(checks: Sequence[DeepCheck]) -> None:
    from deploy.bundle.deep import alike
    from deploy.bundle.report import figures
    from deploy.cli.terminal import write_line

    _show_plans(checks)
    if len(checks) > 1:
        same, unlike = alike(checks)
        write_line()
        write_line(
            f"of {figures.plural(same + len(unlike), 'value')} in several plans {same} have the same steps "
            "in all; the others differ by the runtimes' rules"
        )
    for check in checks:
        _show_operations(check)


def _show_plans(checks: Sequence[DeepCheck]) -> None:
    """Each quantized value as it was read from each file."""
    from deploy.cli.terminal import write_line, write_table

    by_name: dict[str, dict[int, TensorCheck]] = {}
    for number, check in enumerate(checks):
        for tensor in check.tensors:
            by_name.setdefault(tensor.name, {})[number] = tensor
    if not by_name:
        write_line("nothing is quantized")
        return
    rows: list[list[Cell]] = [
        [(name, "name"), *(_tensor(found.get(number)) for number in range(len(checks)))]
        for name, found in sorted(by_name.items())
    ]
    titles = [f"{check.runtime} for {check.bundle.manifest.target}" for check in checks]
    write_table(("value", *titles), rows)


def _tensor(tensor: TensorCheck | None) -> Cell:
    if tensor is None:
        return "", "quiet"
    if tensor.wrong:
        return f"✗ {'; '.join(tensor.wrong)}", "bad"
    assert tensor.read is not None
    return f"✓ {_params(tensor.read)}", ""


def _params(params: QuantParams) -> str:
    """``int8 0.0123 -3``; with an axis the least and the greatest scale."""
    low, high = min(params.scale), max(params.scale)
    if params.axis is None:
        return f"{params.type} {low:.4g} {params.zero_point[0]:+d}"
    zero = "" if not any(params.zero_point) else " with zero points"
    groups = "" if params.group is None else f" in groups of {params.group}"
    return f"{params.type} {low:.3g} to {high:.3g}, axis {params.axis}{groups}{zero}"


def _show_operations(check: DeepCheck) -> None:
    from deploy.bundle.report import figures
    from deploy.cli.terminal import write_facts, write_line, write_table

    write_line()
    mark: Cell = ("✓", "good") if check.right else ("✗", "bad")
    write_line(mark, (f" {check.runtime} for {check.bundle.manifest.target}", "strong"))
    wrong = sum(bool(tensor.wrong) for tensor in check.tensors)
    test: Cell = (check.failed, "bad") if check.failed else "passes"
    plan = f"{figures.plural(len(check.tensors), 'value')} as planned"
    if wrong:
        plan = f"{wrong} of {figures.plural(len(check.tensors), 'value')} not as planned"
    facts: list[tuple[str, Cell]] = [("self-test", test), ("plan", (plan, "bad" if wrong else ""))]
    if check.why_not:
        facts.append(("operations", check.why_not))
    else:
        facts += _operation_facts(check)
    write_facts(facts, indent=2)
    worst = sorted(
        (o for o in check.operations if o.steps or o.error), key=lambda o: (not o.wrong, -o.steps, -o.error)
    )[:_WORST_SHOWN]
    if worst:
        rows: list[list[Cell]] = [
            [o.op, (o.node, "bad" if o.wrong else "name"), *_by(o), f"{o.expected:.6g}", f"{o.got:.6g}"]
            for o in worst
        ]
        write_line()
        write_table(
            ("furthest off", "node", "right", "one step", "more", "error", "expected", "got"),
            rows,
            right=(2, 3, 4, 5, 6, 7),
        )


def _operation_facts(check: DeepCheck) -> list[tuple[str, Cell]]:
    right, one, more = (sum(o.counts[i] for o in check.operations) for i in range(3))
    covered = check.nodes - len(check.uncovered)
    number = (
        f"{len(check.operations)}, each fed the reference's values, with {covered} of {check.nodes} nodes"
    )
    if check.unchecked:
        number += f"; for {check.unchecked} more there was no time (--limit)"
    facts: list[tuple[str, Cell]] = [("operations", number), ("run as", check.how)]
    if check.caveat:
        facts.append(("mind", (f"{check.caveat}: operations are judged by what it says now", "bad")))
    if right + one + more:
        facts.append(("integers", f"{right:,} right, {one:,} off by one step, {more:,} by more"))
    floats = [o.error for o in check.operations if not sum(o.counts)]
    if floats:
        facts.append(("floats", f"off by {max(floats):.2g} of their magnitude at most"))
    first = check.first
    if first is not None:
        off = f"{first.steps} steps" if first.steps else f"{first.error:.2g} of its magnitude"
        told = (
            f"{first.op} '{first.node}' (value '{first.value}'): off by {off}, expected {first.expected:.6g}"
        )
        facts.append(("diverges", (f"{told}, got {first.got:.6g}", "bad")))
    return facts


def _by(operation: Deviation) -> tuple[Cell, Cell, Cell, Cell]:
    if not sum(operation.counts):
        return "", "", "", f"{operation.error:.2g}"
    right, one, more = operation.counts
    return f"{right:,}", f"{one:,}", (f"{more:,}", "bad" if more else ""), ""
