"""The program as a process: quick, light, and helpful about misspelt words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from deploy import __version__

Deploy = Callable[..., tuple[int, str, str]]
PROGRAM = (sys.executable, "-m", "deploy")
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "pydantic", "psutil", "platformdirs")


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after ``code``."""
    listing = "; import sys; sys.stderr.write(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code + listing], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_nothing_heavy_is_loaded_for_help() -> None:
    assert not loaded_by("from deploy.cli import main; main(['--help'])") & set(HEAVY)


def test_help_of_a_command_loads_only_what_typer_needs() -> None:
    """typer checks the flags before the command with pydantic."""
    loaded = loaded_by("from deploy.cli import main; main(['build', '--help'])")
    assert not loaded & set(HEAVY) - {"pydantic"}


def test_importing_the_package_loads_no_more_than_the_standard_library() -> None:
    assert not loaded_by("import deploy") & {"typer", "rich", *HEAVY}


def test_help_lists_every_command(deploy: Deploy) -> None:
    code, out, err = deploy("--help")
    assert (code, err) == (0, "")
    for command in ("init", "build", "inspect", "run", "verify", "targets", "doctor", "cache"):
        assert f" {command} " in out


def test_no_word_at_all_shows_the_help(deploy: Deploy) -> None:
    assert deploy()[:2] == deploy("--help")[:2]


def test_the_version(deploy: Deploy) -> None:
    assert deploy("--version") == (0, f"deploy {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("biuld",), "no such command 'biuld'", "did you mean 'build'?"),
        (("cache", "clera"), "no such command 'clera'", "did you mean 'clear'?"),
        (("build", "--max-drip", "1"), "no such option: --max-drip", "did you mean --max-drop"),
        (("targets", "jetsn"), "unknown target 'jetsn'", "jetson"),
        (("run",), "missing argument 'BUNDLE|FILE'", "`deploy run --help`"),
        (("build", "m.onnx", "--precision", "int9"), "'--precision'", "`deploy build --help`"),
        (("build", "m.onnx", "--samples", "0"), "'--samples'", "`deploy build --help`"),
        (("build", "m.onnx", "--max-drop", "-1"), "'--max-drop'", "`deploy build --help`"),
    ],
)
def test_a_misspelt_word_is_a_usage_error_with_the_nearest_one(
    deploy: Deploy, words: tuple[str, ...], message: str, hint: str
) -> None:
    code, out, err = deploy(*words)
    assert (code, out) == (2, "")
    error, _, told = err.partition("\nhint: ")
    assert error.startswith("error: ") and message in error
    assert hint in told


def test_the_shell_completes_commands_and_targets() -> None:
    def completions(line: str) -> set[str]:
        environment = {
            **os.environ,
            "_DEPLOY_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split())),
        }
        done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=False)
        return set(done.stdout.split())

    assert {"build", "verify", "targets"} <= completions("deploy ")
    assert {"jetson", "x86-cpu"} <= completions("deploy build --target ")
