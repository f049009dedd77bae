"""An accelerator surveyed by PyTorch, in a process of its own: the main process never imports PyTorch.

    python -P -m deploy.survey.torch_device '{"device": "cuda", "quick": true, "parent": 0}'

writes one JSON object a line as it measures: {"begins"}, then {"cost"}, {"failure"} and {"fact"}, each with
{"done", "total"}; {"absent"} alone where there is no such device. A process that the device's driver ends
midway so leaves what it had.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TextIO

from deploy.adapter.child import die_with
from deploy.cache import scratch
from deploy.progress import Progress
from deploy.spec.document import Frozen
from deploy.spec.overlay import Cost, Failure, RuntimeCosts
from deploy.spec.profile import Figure
from deploy.spec.tensors import Precision
from deploy.survey.torch_facts import (
    LARGE,
    SMALL,
    Scale,
    bandwidth_facts,
    device_facts,
    ends,
    launch_facts,
    sparsity,
    states,
)
from deploy.survey.torch_kernels import REFUSALS, Effort, exact_floats, measure_point, reason
from deploy.survey.torch_points import Point, points

logger = logging.getLogger(__name__)

_MOST_ON_CPU, _MOST_ON_CPU_QUICK = 20_000_000, 600_000
"""MACs of a point, or elements moved; what PyTorch does in float16 takes some CPUs 20 ns for each."""
_SPARSE: tuple[Precision, ...] = ("fp16", "int8")
Results = list[Cost | Failure] | dict[str, Figure]


class Begins(Frozen):
    """The device as PyTorch calls it, and by what it is measured."""

    device: str
    runtime: str
    version: str
    threads: int
    settings: dict[str, bool | int | str]


class DeviceSurvey(Frozen):
    """One device: its name, its points, and its figures as a whole (memory, launches, clocks, sparsity)."""

    device: str
    runtime: RuntimeCosts
    facts: dict[str, Figure]


def survey_torch(device: str, quick: bool, progress: Progress) -> DeviceSurvey | None:
    """Measure ``device`` ("cuda", "cuda:1", "cpu") by PyTorch in a child process.

    None where PyTorch or the device is missing, with a note that says which. Nothing is raised for what the
    device cannot do: those points are Failures, and where PyTorch's process ends early the last one says so.
    """
    missing = _missing(device)
    if missing:
        progress.note(f"no accelerator is measured: {missing}")
        return None
    request = {"device": device, "quick": quick, "parent": os.getpid()}
    begins: Begins | None = None
    costs: list[Cost] = []
    failures: list[Failure] = []
    facts: dict[str, Figure] = {}
    with scratch("torch-survey") as work, (work / "stderr").open("w+", errors="replace") as said:
        command = [sys.executable, "-P", "-m", "deploy.survey.torch_device", json.dumps(request)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if not line.endswith("\n"):
                        break  # torn: it was killed while it wrote
                    answer = json.loads(line)
                    if "absent" in answer:
                        progress.note(f"no accelerator is measured: {answer['absent']}")
                        return None
                    if "begins" in answer:
                        begins = Begins.model_validate(answer["begins"])
                        continue
                    costs += [Cost.model_validate(c) for c in answer.get("cost", ())]
                    failures += [Failure.model_validate(f) for f in answer.get("failure", ())]
                    facts |= {k: Figure.model_validate(f) for k, f in answer.get("fact", {}).items()}
                    progress.advance(answer["done"], answer["total"])
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            failures.append(_ended(process.returncode, said))
    if begins is None:
        progress.warn(f"no accelerator is measured: {failures[-1].reason if failures else 'no answer'}")
        return None
    return DeviceSurvey(
        device=begins.device,
        runtime=RuntimeCosts(
            name=begins.runtime,
            version=begins.version,
            threads=begins.threads,
            settings=begins.settings,
            cost=tuple(costs),
            failures=tuple(failures),
        ),
        facts=facts,
    )


def _missing(device: str) -> str:
    """What can be told without PyTorch's process, which takes seconds to start; empty if nothing."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return "PyTorch is not installed"
    return f"PyTorch {found} is a build for CPUs" if device != "cpu" and found.endswith("+cpu") else ""


def _ended(status: int, said: TextIO) -> Failure:
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    logger.info("PyTorch's process said:\n%s", "\n".join(lines[-50:]))
    last = f": {lines[-1][:200]}" if lines else ""
    why = f"PyTorch's process ended early (status {status}){last}"
    return Failure(op="overhead", precision="float", shape="everything behind", reason=why)


def main(device: str, quick: bool, answer: Callable[[dict[str, object]], None]) -> None:
    """In the child: measure everything, and hand out each result as it comes."""
    try:
        begins = _begin(device)
    except REFUSALS as e:
        answer({"absent": f"PyTorch has no {device} here ({reason(e)})"})
        return
    answer({"begins": begins.model_dump(mode="json")})
    work = list(_work(device, quick))
    for number, step in enumerate(work, 1):
        answer({**_as_json(step()), "done": number, "total": len(work)})


def _begin(device: str) -> Begins:
    """Raises what PyTorch does where it lacks the device."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = torch.device(device).type
    if kind not in ("cuda", "cpu"):
        raise ValueError("of PyTorch's devices only cuda and cpu are measured")
    torch.zeros(1, device=device)
    exact_floats()
    if kind == "cpu":
        return Begins(
            device=device, runtime=f"torch-{device}", version=torch.__version__, threads=1, settings={}
        )
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return Begins(
        device=torch.cuda.get_device_name(device),
        runtime="torch-cuda",
        version=f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}",
        threads=1,
        settings={"tf32": False, "cudnn_benchmark": True, "channels_last": True, "graphs": True},
    )


def _work(device: str, quick: bool) -> Iterator[Callable[[], Results]]:
    """Every measurement, to be made one after the other."""
    today = date.today()
    on_cuda = device.startswith("cuda")
    scale = LARGE if on_cuda else SMALL
    rounds = 5 if quick else 11
    effort = Effort(rounds, window_ms=4.0) if on_cuda else Effort(3, window_ms=1.0, links=2)
    most = None if on_cuda else _MOST_ON_CPU_QUICK if quick else _MOST_ON_CPU
    yield lambda: device_facts(device, today)
    for point, precision in points(quick=quick, most=most):
        yield partial(_point, point, precision, device, effort)
    yield lambda: _or_failure("overhead", lambda: ends(device, effort))
    yield lambda: _or_failure("launches", lambda: launch_facts(device, effort, today))
    yield lambda: _or_failure("memory", lambda: bandwidth_facts(device, scale, effort, today))
    for precision in _SPARSE:
        yield partial(_gain, precision, device, scale, effort, today)
    yield lambda: _or_failure("clocks", lambda: states(device, scale, today))


def _point(point: Point, precision: Precision, device: str, effort: Effort) -> Results:
    return [measure_point(point, precision, device, effort)]


def _gain(precision: Precision, device: str, scale: Scale, effort: Effort, today: date) -> Results:
    found = sparsity(precision, device, scale, effort, today)
    return [found] if isinstance(found, Failure) else {f"sparsity_gain_{precision}": found}


def _or_failure(what: str, measure: Callable[[], Results]) -> Results:
    try:
        return measure()
    except REFUSALS as e:
        return [Failure(op="overhead", precision="float", shape=what, reason=reason(e))]


def _as_json(results: Results) -> dict[str, object]:
    if isinstance(results, dict):
        return {"fact": {name: figure.model_dump(mode="json") for name, figure in results.items()}}
    return {
        "cost": [r.model_dump(mode="json") for r in results if isinstance(r, Cost)],
        "failure": [r.model_dump(mode="json") for r in results if isinstance(r, Failure)],
    }


def _start() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes where messages go
    request = json.loads(sys.argv[1])
    if request["parent"]:
        die_with(request["parent"])

    def answer(said: dict[str, object]) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    main(request["device"], request["quick"], answer)
    return 0


if __name__ == "__main__":
    sys.exit(_start())
