"""What loads what: nothing heavy by itself, nothing of a vendor anywhere but where it is used."""

from __future__ import annotations

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import backends
import deploy

ROOT = Path(deploy.__file__).parents[1]
SOURCES = sorted(p for folder in ("deploy", "backends") for p in (ROOT / folder).rglob("*.py"))
VENDORS = (
    "torch", "tensorrt", "openvino", "coremltools", "ai_edge_litert", "PIL", "scipy", "highspy", "sklearn",
    "onnxscript", "onnxsim", "pandas", "tensorflow", "jax", "ray",
)  # fmt: skip
LONGEST = 400
MADE_OF_TORCH = (
    "deploy.execute.module", "deploy.execute.ops", "deploy.train", "deploy.compress.channel_",
    "deploy.compress.layers", "deploy.compress.lowrank", "deploy.compress.obs", "deploy.compress.sparsify",
    "deploy.compress.student", "deploy.compress.prune.criteria", "deploy.compress.prune.measured",
    "deploy.compress.prune.step",
)  # fmt: skip
"""Modules, with what lies in them, that import PyTorch while loading; nothing else imports them so."""


def modules() -> list[str]:
    found = ["deploy", "backends"]
    for package in (deploy, backends):
        walked = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        found += [module.name for module in walked]
    return found


def in_a_new_process(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_without_any_vendors_software() -> None:
    """Only the file that builds an engine on the device may ask for TensorRT, and not while loading."""
    program = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

blocked, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.meta_path.insert(0, Blocked())
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as e:
        failed[name] = str(e)
print(json.dumps(failed))
"""
    assert len(modules()) > 60
    names = [name for name in modules() if not name.startswith(MADE_OF_TORCH)]
    assert json.loads(in_a_new_process(program, json.dumps(VENDORS), json.dumps(names))) == {}


LOADED = "import sys, json\n{}\nprint(json.dumps(sorted(sys.modules)))"


def loaded_by(statements: str) -> set[str]:
    return set(json.loads(in_a_new_process(LOADED.format(statements))))


HEAVY = {
    "jinja2",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "pydantic",
    "typer",
    "rich",
    "psutil",
    "platformdirs",
    *VENDORS,
}


def test_importing_the_package_loads_nothing_heavy() -> None:
    names = loaded_by("import deploy")
    assert not HEAVY & names
    assert {n for n in names if n.startswith("deploy")} == {"deploy"}


def test_the_command_line_loads_little_before_it_knows_what_to_do() -> None:
    names = loaded_by("import deploy.cli.app")
    assert not (HEAVY - {"typer", "rich"}) & names
    assert not {"deploy.pipeline", "deploy.spec.project", "deploy.bundle.read"} & names


def test_a_build_loads_no_vendors_software(tmp_path: Path, network: Path) -> None:
    statements = (
        f"import deploy; deploy.build({str(network)!r}, target='jetson', out={str(tmp_path / 'dist')!r}, "
        f"cache={str(tmp_path / 'cache')!r}, random_calibration=True)"
    )
    names = loaded_by(statements)
    assert not set(VENDORS) & names
    assert "onnxruntime" in names


def test_every_public_name_is_there_and_lazy() -> None:
    for name in deploy.__all__:
        assert getattr(deploy, name) is not None
    assert dir(deploy) == sorted(deploy.__all__)
    assert set(deploy.__all__) - {"__version__"} == set(deploy._HOME)
    with pytest.raises(AttributeError, match="no attribute 'compile'"):
        _ = deploy.compile


def test_the_lazy_names_are_those_that_a_type_checker_sees() -> None:
    tree = ast.parse(Path(deploy.__file__).read_text())
    seen = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("deploy")
        for alias in node.names
    }
    assert seen == deploy._HOME


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_has_one_subject(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # What goes to the device is one file without anything beside it.
    alone = path.name == "build_engine.py"
    assert alone or len(text.splitlines()) <= LONGEST
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says what it is about"


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.is_relative_to(ROOT / "deploy")],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_the_compiler_knows_no_backend(path: Path) -> None:
    """Found through entry points only, like anybody else's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        assert not [n for n in names if n.partition(".")[0] == "backends"]
