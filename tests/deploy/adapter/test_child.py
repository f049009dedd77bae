"""A child that fails in every way a library can: each is one error here, and nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploy.adapter.child import Allowance, Child
from deploy.adapter.message import Message
from deploy.errors import BackendError, DataError

LIBRARY = """
import os, signal, sys, time
from deploy.adapter.child import serve
from deploy.adapter.message import Message
from deploy.errors import DataError

def answer(question):
    said = question.said
    match said["do"]:
        case "echo":
            print("a library that talks")
            return Message({"pid": os.getpid(), "folder": os.getcwd(), **said}, question.arrays)
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "stop":
            print("the library's last words", file=sys.stderr, flush=True)
            os._exit(3)
        case "spin":
            while True: pass
        case "sleep": time.sleep(60)
        case "memory": return Message({"size": len(bytearray(2**29))})
        case "bug": raise ZeroDivisionError("by \\x1b[31mnothing")
        case "ours": raise DataError("not \\x07so", hint="but so")
        case "babble":
            while True: os.write(_raw, b"no message" * 1000)
        case "dump":
            try:
                with open("large", "wb") as file: file.write(bytes(2**24))
            except OSError as e: return Message({"errno": e.errno})

_raw = os.dup(1)
serve(answer)
"""
PLENTY = Allowance(memory=2**29, cpu_s=30, clock_s=30)


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "vendors_library.py").write_text(LIBRARY)
    paths = [str(tmp_path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    made = Child("vendors_library", "net.tflite", "LiteRT")
    yield made
    made.close()


def ask(child: Child, what: str, allowed: Allowance = PLENTY) -> Message:
    return child.ask(Message({"do": what}), allowed)


def test_arrays_and_words_come_back_from_another_process(child: Child) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "": np.array(True)}
    found = child.ask(Message({"do": "echo", "n": [1, "ü"]}, arrays), PLENTY)
    assert found.said["n"] == [1, "ü"] and found.said["pid"] != os.getpid()
    assert all(np.array_equal(found.arrays[name], array) for name, array in arrays.items())
    folder = Path(str(found.said["folder"]))
    assert folder.is_dir() and folder != Path.cwd()
    assert ask(child, "echo").said["pid"] == found.said["pid"], "one process answers all questions"
    child.close()
    assert not folder.exists() and not psutil.pid_exists(int(str(found.said["pid"])))
    with pytest.raises(BackendError, match="closed"):
        ask(child, "echo")


@pytest.mark.parametrize(
    ("what", "allowed", "said"),
    [
        ("crash", PLENTY, r"net\.tflite crashes LiteRT \(SIGSEGV\)"),
        ("stop", PLENTY, r"net\.tflite ends LiteRT's process \(status 3\): the library's last words"),
        ("spin", Allowance(2**29, 0.2, 30), r"net\.tflite keeps LiteRT busy"),
        ("sleep", Allowance(2**29, 30, 0.8), r"net\.tflite keeps LiteRT busy"),
        ("babble", PLENTY, "killed, or said nothing sensible"),
    ],
)
def test_a_child_that_is_lost_is_one_error(child: Child, what: str, allowed: Allowance, said: str) -> None:
    began = time.monotonic()
    with pytest.raises(BackendError, match=said) as first:
        ask(child, what, allowed)
    assert first.value.hint and first.value.exit_code == 7 and time.monotonic() - began < 10
    assert child.ended
    with pytest.raises(BackendError, match=said):
        ask(child, "echo")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_memory_is_limited_for_each_question(child: Child) -> None:
    with pytest.raises(BackendError, match=r"takes more than 0\.5 GiB"):
        ask(child, "memory")
    assert ask(child, "memory", Allowance(2**31, 30, 30)).said["size"] == 2**29, "the child lives on"


def test_errors_come_back_with_nothing_that_steers_a_terminal(child: Child) -> None:
    with pytest.raises(
        BackendError, match=r"net\.tflite: it cannot be read: ZeroDivisionError: by \\x1b\[31mnothing"
    ):
        ask(child, "bug")
    with pytest.raises(DataError, match=r"not \\x07so") as e:
        ask(child, "ours")
    assert e.value.hint == "but so"


def test_it_writes_no_large_file(child: Child) -> None:
    assert "errno" in ask(child, "dump").said


def test_the_thread_that_asked_first_may_end(child: Child) -> None:
    thread = threading.Thread(target=lambda: ask(child, "echo"))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert ask(child, "echo").said["do"] == "echo"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with its standard input")
def test_it_ends_with_us_however_we_end(child: Child) -> None:
    program = """
import sys, time
from deploy.adapter.child import Allowance, Child
from deploy.adapter.message import Message
child = Child("vendors_library", "x", "y")
print(child.ask(Message({"do": "echo"}), Allowance(2**29, 30, 30)).said["pid"], flush=True)
child.ask(Message({"do": "spin"}), Allowance(2**29, 60, 60))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
