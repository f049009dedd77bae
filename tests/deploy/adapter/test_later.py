"""Modules that stand in for others until they are needed, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = "import sys; from deploy.adapter.later import import_later; import_later(); "
LOADED = "'sympy.core' in sys.modules"


def said(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_sizes_are_reckoned_with_when_they_are_needed() -> None:
    code = f"import onnx_ir as ir; n = ir.SymbolicDim('n'); print({LOADED}); print(n * 2 + n, {LOADED})"
    assert said(code).split("\n") == ["False", "3*n True"]


@pytest.mark.parametrize(
    "code",
    [
        "import sympy; print(sympy.Symbol('x') + 1)",
        "from sympy.core.symbol import Symbol; print(Symbol('x') + 1)",
        "import importlib.util as u; print(u.find_spec('sympy').name[:0] + 'x + 1')",
    ],
)
def test_others_may_import_it(code: str) -> None:
    assert said(code) == "x + 1"


def test_nothing_is_collected_while_modules_are_imported_and_afterwards_it_is() -> None:
    code = (
        "import gc; from deploy.adapter.later import import_uncollected; seen = []; "
        "gc.callbacks.append(lambda phase, info: seen.append(phase)); import_uncollected('deploy.pipeline'); "
        "print(seen, gc.isenabled(), gc.get_freeze_count() > 10_000); "
        "kept = [[] for _ in range(80_000)]; print(len(seen) // 2)"
    )
    assert said(code) == "[] True True\n3"
