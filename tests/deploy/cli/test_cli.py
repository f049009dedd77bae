"""What ends a run: errors, Ctrl-C, a closed pipe; each with its exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import errors

Deploy = Callable[..., tuple[int, str, str]]
PROGRAM = (sys.executable, "-m", "deploy")
WAITING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run as a shell's background job
import deploy.pipeline
from deploy.bundle.write import staged
from deploy.cli import main

def run(request, progress):
    progress.start("calibrate")
    with staged(pathlib.Path(request.out) / request.target):
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        time.sleep(30)

deploy.pipeline.run = run
raise SystemExit(main(["build", "model.onnx", "--target", "x86-cpu", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(
    "kind",
    [errors.UsageError, errors.ModelError, errors.DataError, errors.UnsupportedError, errors.ToolchainError,
     errors.BackendError, errors.VerificationError, errors.DeviceError],
)  # fmt: skip
def test_an_error_is_one_message_one_hint_and_its_class_exit_code(
    deploy: Deploy, here: Path, monkeypatch: pytest.MonkeyPatch, kind: type[errors.DeployError]
) -> None:
    def fail(request: object, progress: object) -> None:
        raise kind("it went wrong [here]", hint="do [this]")

    monkeypatch.setattr("deploy.pipeline.run", fail)
    code, out, err = deploy("build", "m.onnx", "--target", "x86-cpu")
    assert (code, out) == (kind.exit_code, "")
    assert err == "m.onnx → x86-cpu\nerror: it went wrong [here]\nhint: do [this]\n"

    code, out, err = deploy("build", "m.onnx", "--target", "x86-cpu", "--json")
    assert code == kind.exit_code
    assert json.loads(out) == {
        "error": {
            "type": kind.__name__,
            "message": "it went wrong [here]",
            "hint": "do [this]",
            "exit_code": code,
        }
    }
    assert "it went wrong" in err


def test_a_usage_error_is_json_too(deploy: Deploy) -> None:
    code, out, _ = deploy("targets", "nowhere", "--json")
    assert code == 2
    assert json.loads(out)["error"]["type"] == "UsageError"


def test_a_bug_stays_a_traceback(deploy: Deploy, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: object, progress: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("deploy.pipeline.run", fail)
    with pytest.raises(ZeroDivisionError):
        deploy("build", "m.onnx", "--target", "x86-cpu")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_with_130_and_leaves_nothing(here: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        try:
            _, err = child.communicate(timeout=10)
        finally:
            child.kill()
    assert child.returncode == 130
    assert err.endswith("interrupted\n") and "Traceback" not in err
    assert [path for path in here.rglob("*") if path.is_file() or "deploy" in path.name] == []


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.35, 0.5])
def test_an_interrupt_while_modules_load_is_as_calm(here: Path, seconds: float) -> None:
    """C++ modules abort the process when an exception passes through their initialisation."""
    code = "import signal; from deploy.cli import main; signal.setitimer(signal.ITIMER_VIRTUAL, {}); "
    code += "signal.signal(signal.SIGVTALRM, lambda *_: signal.raise_signal(signal.SIGINT)); "
    code += "code = main(['doctor']); signal.setitimer(signal.ITIMER_VIRTUAL, 0); raise SystemExit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code.format(seconds)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (130, 0)  # 0: it was quicker
    assert done.returncode == 0 or done.stderr == "interrupted\n"


def test_a_reader_that_leaves_early_causes_no_noise() -> None:
    many = f"{sys.executable} -m deploy targets x86-vnni --json"
    done = subprocess.run(f"{many} | head -c 5", shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_signs_that_a_terminal_cannot_show_do_not_end_the_run() -> None:
    code = "from deploy.cli import main; main(['--version']); "
    code += "from deploy.cli.terminal import write_line; write_line('✓ done')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.endswith(b"\\u2713 done\n")


def test_only_a_process_that_ends_leaves_its_garbage_where_it_is() -> None:
    code = (
        "import gc, sys; from deploy.cli import main; main(['--version']); before = gc.get_freeze_count(); "
        "sys.argv = ['deploy', '--version']; main(); print(before, gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 True"
