"""The table of kinds holds every kind that the code can name, and no other."""

import ast
from pathlib import Path

from deploy.graph.hazard_kinds import KINDS

ROOT = Path(__file__).parents[3]
PLACES = ("deploy/graph/*hazards.py", "deploy/quantize/*hazards.py", "backends/tflite/**/*.py")


def strings() -> set[str]:
    """All plain strings in the files that find hazards."""
    files = [path for pattern in PLACES for path in ROOT.glob(pattern)]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def named() -> set[str]:
    """The kinds that stand where a kind stands: before the texts of a finding, or behind ``kind=``."""
    found = set()
    for pattern in PLACES:
        for path in ROOT.glob(pattern):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                parts: list[ast.expr] = []
                if isinstance(node, ast.Tuple) and len(node.elts) == 3:
                    parts = [node.elts[0]] if _severity(node.elts[2]) else []
                elif isinstance(node, ast.Call):
                    name = node.func.id if isinstance(node.func, ast.Name) else ""
                    parts = [k.value for k in node.keywords if k.arg == "kind" and name == "KnownHazard"]
                    if name in ("Hazard", "Measured", "_Suspect") and len(node.args) > 1:
                        parts.append(node.args[1])
                found |= {str(p.value) for p in parts if isinstance(p, ast.Constant)}
    return found


def _severity(node: ast.expr) -> bool:
    values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    return bool(values & {"note", "warning"})


def test_every_kind_is_explained() -> None:
    assert {kind for kind in named() if kind} <= set(KINDS)
    assert len(named()) > 20


def test_no_kind_is_explained_that_nobody_finds() -> None:
    assert set(KINDS) <= strings()
