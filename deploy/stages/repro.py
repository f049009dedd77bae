"""A conversion that failed leaves a small model that fails alike: ``<out>/repro/<target>-<op>-<node>.onnx``.

It holds the node, or the few, that it takes, with random weights; it can be given to ``deploy build`` for the
same target, and to whoever is asked for help. What is written was tried: it fails with the same error.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.adapter.refusal import refused
from deploy.cache import scratch
from deploy.errors import BackendError, DeployError, UnsupportedError, VerificationError
from deploy.execute.compare import largest_error, random_feeds
from deploy.execute.reference import open_graph
from deploy.frontend.onnx_file import write
from deploy.graph.edit import weight_bytes
from deploy.graph.qdq import insert, read_tensors
from deploy.graph.shapes import infer
from deploy.graph.subgraph import cut, disguise, shrunk
from deploy.graph.summary import tensor_specs
from deploy.progress import SILENT
from deploy.quantize.candidate import Subject
from deploy.spec.artifact import Verdict
from deploy.spec.plan import Plan, differences
from deploy.stages.job import Job
from deploy.stages.prepare import Prepared
from deploy.stages.target import Route, Target

logger = logging.getLogger(__name__)

FOLDER = "repro"
Fails = Callable[[ir.Model], bool]

_FILES = 3
"""Refused operations that are shown, each in a file."""
_LARGE = 2**14
"""Bytes of weights above which a smaller form is tried."""
_LARGEST = 2**24
_ATTEMPTS, _SECONDS = 48, 60.0
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_STRAYS = {True: 0.03, False: 1e-3}
"""Of the output's magnitude, for quantized graphs and others: what rounding does not reach."""


class _GaveUp(Exception):  # noqa: N818
    """Enough was tried."""


@contextmanager
def refusals_saved(target: Target, prepared: Prepared, out: Path) -> Iterator[None]:
    """An UnsupportedError of what the preferred runtime refuses goes on with its hint naming small models."""
    try:
        yield
    except UnsupportedError as e:
        try:
            _say(e, _of_refusals(target, prepared, out))
        except Exception as why:  # noqa: BLE001  # it may not hide what went wrong
            logger.info("no small model is left: %s", why)
        raise


@contextmanager
def failures_saved(job: Job, out: Path) -> Iterator[None]:
    """A failure of lowering, opening or verifying goes on with its hint naming a small model."""
    try:
        yield
    except (UnsupportedError, BackendError, VerificationError) as e:
        try:
            with scratch("repro") as work:
                found = (_of_failure(subject, e, out, work) for subject in job.subjects)
                _say(e, [path for path in found if path is not None][:1])
        except Exception as why:  # noqa: BLE001  # it may not hide what went wrong
            logger.info("no small model is left: %s", why)
        raise


def _say(error: DeployError, paths: Sequence[Path]) -> None:
    if paths:
        listed = " and ".join(map(str, paths))
        shows = "is a small model that shows it" if len(paths) == 1 else "are small models that show it"
        error.hint = f"{error.hint}; {listed} {shows}, without your weights"


def _of_refusals(target: Target, prepared: Prepared, out: Path) -> list[Path]:
    route = target.routes[0]
    graph = prepared.graph_for(route.runtime).model
    first: dict[str, Verdict] = {}
    for verdict in refused(route.backend.check(graph, route.runtime)):
        first.setdefault(verdict.op, verdict)
    paths = (
        _save(graph, [verdict.node], _refuses(route, verdict), out, target.name)
        for verdict in list(first.values())[:_FILES]
    )
    return [path for path in paths if path is not None]


def _of_failure(subject: Subject, error: DeployError, out: Path, work: Path) -> Path | None:
    fails = _fails_alike(subject, error, work)
    for graph in _graphs(subject):
        try:
            if not fails(graph):
                continue
            known = {node.name or "" for node in graph.graph if node.op_type not in _PAIR}
            named = [n for n in re.findall(r"'([^']+)'", f"{error.message} {error.hint}") if n in known]
            for name in named[:4]:
                if fails(cut(graph, [name])):
                    return _save(graph, [name], fails, out, subject.target)
            return _save(graph, _smallest(graph, fails), fails, out, subject.target)
        except _GaveUp:
            return None
    return None


def _graphs(subject: Subject) -> Iterator[ir.Model]:
    """What is lowered: with everything INT8 that can be, and as float."""
    if subject.histograms or subject.imported:
        assignment = subject.assignment(())
        if assignment.tensors:
            yield insert(subject.graph, assignment.tensors, assignment.codes)
    yield subject.graph


def _smallest(graph: ir.Model, fails: Fails) -> list[str]:
    """The last nodes of the shortest beginning that fails: as few of them as still do. Both by halving."""
    names = [node.name or "" for node in graph.graph if node.op_type not in _PAIR]
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(cut(graph, names[:middle])) else (middle, high)
    names = names[:high]
    low, high = 0, len(names)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fails(cut(graph, names[middle:])) else (low, middle)
    return names[low:]


def _refuses(route: Route, verdict: Verdict) -> Fails:
    """Whether a model has a node that the runtime refuses for the same reason."""

    def fails(model: ir.Model) -> bool:
        said = refused(route.backend.check(model, route.runtime))
        return any(v.op == verdict.op and _plain(v.reason) == _plain(verdict.reason) for v in said)

    return fails


def _fails_alike(subject: Subject, error: DeployError, work: Path) -> Fails:
    """Whether building and running a model ends with the same class of error. Raises _GaveUp in the end."""
    attempts, began = iter(range(_ATTEMPTS)), time.monotonic()

    def fails(model: ir.Model) -> bool:
        if next(attempts, None) is None or time.monotonic() - began > _SECONDS:
            raise _GaveUp
        folder = Path(tempfile.mkdtemp(dir=work))
        try:
            _build(subject, model, folder)
        except (UnsupportedError, BackendError, VerificationError) as e:
            return type(e) is type(error)
        except Exception:  # noqa: BLE001  # a piece may be no network: whatever a backend says to that
            return False
        return False

    return fails


def _build(subject: Subject, model: ir.Model, folder: Path) -> None:
    """Lower, read back, run and compare. Raises what that raises."""
    backend, tensors = subject.backend, read_tensors(model)
    plan = Plan(graph_sha256="", target=subject.target, runtime=subject.runtime.name, tensors=tensors)
    artifact = backend.lower(model, plan, subject.runtime, folder, SILENT)
    if wrong := differences(plan, backend.read_plan(artifact)):
        raise VerificationError(wrong[0])
    inputs = tensor_specs(model.graph.inputs)
    feeds = random_feeds(inputs, 0, batch=fixed_batch(inputs) or 2)
    with open_graph(model, optimised=False) as literal:
        want = literal.run(feeds)
    with backend.open(artifact.model_copy(update={"foreign": True}), subject.options) as runner:
        got = runner.run(feeds)
    if largest_error(want, got) > _STRAYS[bool(tensors)]:
        raise VerificationError("the results differ")


def _save(graph: ir.Model, names: Sequence[str], fails: Fails, out: Path, target: str) -> Path | None:
    """Write the smallest form of these nodes that still fails, without the user's weights; None where there
    is none, or nothing can be written."""
    for model in _forms(graph, names):
        if _is_network(model) and fails(model):
            node = next(n for n in graph.graph if n.name == names[-1])
            path = out / FOLDER / f"{_file_name(f'{target}-{node.op_type}-{node.name}')}.onnx"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(model, path)
            except OSError:
                return None
            return path
    return None


def _forms(graph: ir.Model, names: Sequence[str]) -> Iterator[ir.Model]:
    """Smallest first: the nodes alone, then with neighbours; narrower where large, then as they are."""
    order = [node.name or "" for node in graph.graph if node.op_type not in _PAIR]
    places = [order.index(name) for name in names]
    for more in (0, 1, 3, 8):
        piece = cut(graph, order[max(0, min(places) - more) : max(places) + 1 + more])
        model = disguise(piece)
        if weight_bytes(model) > _LARGE and (narrow := shrunk(model)) is not None:
            yield narrow
        if weight_bytes(model) <= _LARGEST:
            yield model


def _is_network(model: ir.Model) -> bool:
    """Whether ONNX Runtime opens it: what it refuses cannot be given to a build."""
    try:
        with open_graph(infer(model), optimised=False):
            return True
    except (DeployError, ValueError):
        return False


def _plain(reason: str) -> str:
    """A reason without what is of one network only."""
    return re.sub(r"'[^']*'|\d+", "", reason)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:120]
