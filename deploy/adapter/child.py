"""A child process with limits, in which a vendor's library reads a file that is not trusted.

Such a file may crash the library, or make it take all memory or time. In a child that costs nothing but the
child: the question is answered by one error that says what the file did. The child is no sandbox against code
that a flaw of the library would let in; it has the user's rights.

A module that is started so ends with ``serve(answer)``; `Child` starts it and asks.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from pydantic import ValidationError

from deploy import errors
from deploy.adapter.message import Garbled, Message, receive, send
from deploy.cache import scratch
from deploy.errors import BackendError, DeployError
from deploy.spec.contents import FileContents

logger = logging.getLogger(__name__)

Answer = Callable[[Message], Message]

_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "OMP_NUM_THREADS")
_LARGEST_FILE = 2**20
"""Bytes that the child may write into one file: its own messages."""
_MOST_SAID = 4000
"""Characters of an error; what does not print in them errors escape themselves."""
_HINT = "it is damaged, or made to do this: get it again from where it comes from"


@dataclass(frozen=True)
class Allowance:
    """What one question may cost: bytes of memory in all, seconds of processors, seconds on the clock, bytes
    of the largest file that is written."""

    memory: int
    cpu_s: float
    clock_s: float
    file: int = _LARGEST_FILE


@dataclass(frozen=True)
class Reading:
    """How files of one format are read in a child of ``module``, and what a question about one may cost.

    ``library`` is what reads them, for messages. Memory grows with the size of the file and of what is fed by
    so many bytes for each.
    """

    module: str
    library: str
    per_file_byte: int
    per_fed_byte: int
    memory: int = 2 * 2**30
    opening_s: float = 60.0
    running_s: float = 600.0

    def child(self, path: Path) -> Child:
        """A process for one file, not started yet."""
        return Child(self.module, path.name, self.library)

    def to_open(self, size: int, threads: int = 1) -> Allowance:
        """For opening a file of so many bytes, or asking what it holds."""
        return self._allowed(size, 0, self.opening_s, threads)

    def to_run(self, size: int, feeds: Iterable[np.ndarray], threads: int = 1) -> Allowance:
        """For one inference."""
        return self._allowed(size, sum(array.nbytes for array in feeds), self.running_s, threads)

    def _allowed(self, size: int, fed: int, seconds: float, threads: int) -> Allowance:
        memory = self.memory + self.per_file_byte * size + self.per_fed_byte * fed
        return Allowance(memory, seconds * threads, seconds)

    def contents(self, path: Path, size: int) -> FileContents:
        """What a file holds, by the child's answer to ``contents``. Raises BackendError where it is damaged,
        or takes too much to read."""
        child = self.child(path)
        asked = Message({"ask": "contents", "path": str(path.resolve()), "size": size})
        try:
            said = child.ask(asked, self.to_open(size)).said
            return FileContents.model_validate_json(str(said["contents"]))
        except ValidationError as e:
            raise BackendError(
                f"{path.name} holds what cannot be shown: {e.errors()[0]['msg']}", hint=_HINT
            ) from e
        finally:
            child.close()


class Child:
    """A process of ``python -m module``, started when it is first asked something; close it after use.

    ``subject`` names the file in messages, ``library`` what reads it.
    """

    def __init__(self, module: str, subject: str, library: str) -> None:
        self._module, self._subject, self._library = module, subject, library
        self._resources = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._late = False
        self._ended: BackendError | None = None

    def ask(self, message: Message, allowed: Allowance) -> Message:
        """The child's answer. Raises BackendError where the file ends it, what its answer raised else."""
        if self._ended is not None:
            raise self._ended
        process = self._started()
        timer = threading.Timer(allowed.clock_s, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            limits = {"memory": allowed.memory, "cpu_s": allowed.cpu_s, "file": allowed.file}
            send(cast(BinaryIO, process.stdin), Message({"limits": limits, **message.said}, message.arrays))
            answer = receive(cast(BinaryIO, process.stdout), allowed.memory)
        except (OSError, Garbled) as e:
            raise self._gone(allowed) from e
        finally:
            timer.cancel()
        if answer is None:
            raise self._gone(allowed)
        if "error" in answer.said:
            raise _error(answer.said)
        if "refusal" in answer.said:
            raise BackendError(f"{self._subject}: {str(answer.said['refusal'])[:_MOST_SAID]}", hint=_HINT)
        return answer

    @property
    def ended(self) -> bool:
        """Whether a file ended the process; it answers nothing any more."""
        return self._ended is not None

    def close(self) -> None:
        """End the process, if there is one."""
        self._resources.close()
        self._ended = self._ended or BackendError("the runner is closed", hint="open the artifact again")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        work = self._resources.enter_context(scratch("child"))
        said = self._resources.enter_context((work / "stderr").open("w+b"))
        self._said = said
        # -P: what lies in the working folder is not imported, were it called numpy or json.
        command = [sys.executable, "-P", "-m", self._module, str(os.getpid())]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                cwd=work,
                env=clean_environment(work),
            )

        self._process = _starter(os.getpid()).submit(start).result()
        self._resources.callback(_close, self._process)
        return self._process

    def _end_late(self) -> None:
        self._late = True
        if self._process is not None:
            self._process.kill()

    def _gone(self, allowed: Allowance) -> BackendError:
        """Why there is no answer."""
        assert self._process is not None
        self._process.kill()  # it may live on where what it sent was no message
        status = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines()]
        lines = [line for line in lines if line]
        logger.info("the child that reads %s said:\n%s", self._subject, "\n".join(lines[-50:]))
        out_of_time = not self._late and status == -signal.SIGXCPU if hasattr(signal, "SIGXCPU") else False
        if self._late or out_of_time:
            seconds = allowed.cpu_s if out_of_time else allowed.clock_s
            text = f"{self._subject} keeps {self._library} busy for more than {seconds:.0f} s"
        elif status == -signal.SIGKILL:
            text = f"{self._subject}: the process with {self._library} was killed, or said nothing sensible"
        elif status < 0:
            text = f"{self._subject} crashes {self._library} ({signal.Signals(-status).name})"
        else:
            last = f": {lines[-1][:300]}" if lines else ""
            text = f"{self._subject} ends {self._library}'s process (status {status}){last}"
        self._ended = BackendError(text, hint=_HINT)
        return self._ended


def serve(answer: Answer) -> None:
    """Answer questions on standard input until it ends: what a child does all its life.

    What ``answer`` raises goes back as an error: anything may come of a file that is not trusted.
    """
    die_with(int(sys.argv[1]))
    no_traces()
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints goes where messages go
    while (question := _unlimited(questions)) is not None:
        limits = cast(Mapping[str, float], question.said["limits"])
        limit_memory(int(limits["memory"]))
        _limit_time(limits["cpu_s"])
        _limit_files(int(limits["file"]))
        try:
            found = answer(question)
        except DeployError as e:
            found = Message({"error": type(e).__name__, "message": e.message, "hint": e.hint})
        except MemoryError:
            allowed = f"{limits['memory'] / 2**30:.1f} GiB"
            found = Message({"refusal": f"it takes more than {allowed}, which its size does not justify"})
        except Exception as e:  # noqa: BLE001  # see above
            found = Message({"refusal": f"it cannot be read: {type(e).__name__}: {e}"})
        send(answers, found)


def _unlimited(questions: BinaryIO) -> Message | None:
    """The next question: what we are fed is our own."""
    limit_memory(-1)
    return receive(questions, sys.maxsize)


def clean_environment(work: Path) -> dict[str, str]:
    """What a child needs to start, with ``work`` for its files; nothing is imported from relative folders."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    folders = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(p).is_absolute()]
    if folders:
        kept["PYTHONPATH"] = os.pathsep.join(folders)
    return {**kept, "TMPDIR": str(work)}


def limit_memory(size: int) -> None:
    """What this process may allocate, -1 for no limit; beyond it allocations fail. Linux only."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def no_traces() -> None:
    """This process leaves no dump of its memory when it crashes, and writes no large file."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_files(_LARGEST_FILE)


def die_with(parent: int) -> None:
    """End this process when the one that started it ends, however that happens. Linux only."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _limit_files(size: int) -> None:
    """What one file that this process writes may hold."""
    if sys.platform != "win32":
        import resource

        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        size = size if most == resource.RLIM_INFINITY else min(size, most)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def _limit_time(seconds: float) -> None:
    """From now on."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


@cache
def _starter(pid: int) -> ThreadPoolExecutor:
    """The thread that starts children. Linux ends a child with the *thread* that started it, so that one must
    live as long as we do, and a fork of us needs its own."""
    del pid
    return ThreadPoolExecutor(1, thread_name_prefix="deploy-child")


def _close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:  # what could not be written is not wanted any more
                logger.debug("a pipe to a child that ended")
    process.wait()


def _error(said: Mapping[str, object]) -> DeployError:
    kind = getattr(errors, str(said["error"]), BackendError)
    if not (isinstance(kind, type) and issubclass(kind, DeployError)):
        kind = BackendError
    return kind(str(said.get("message"))[:_MOST_SAID], hint=str(said.get("hint"))[:_MOST_SAID])
