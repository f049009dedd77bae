"""Where the time of one inference goes, from ONNX Runtime's own profiler.

The profiler reports kernels. Which node of the written graph a kernel computes is read off the optimised
graph, which ONNX Runtime writes out beside: its nodes keep the names of the values that they make, or bear
names made from those of a node or value with a suffix for the pass that made them.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import onnx_ir as ir

from deploy.cache import scratch
from deploy.errors import BackendError
from deploy.execute.reference import session_options
from deploy.graph.edit import all_nodes

_WARM_UP, _RUNS = 5, 30
_SECONDS = 2.0
"""After so long no further run is begun, unless there were fewer than four."""
_KERNEL = "_kernel_time"
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant)$")
"""What ONNX Runtime's passes append to the name of the node or value that a new node stands for."""

_MOVES = frozenset(
    ("Transpose", "ReorderInput", "ReorderOutput", "Identity", "Cast", "MemcpyFromHost", "MemcpyToHost")
)
_PAIR = frozenset(("QuantizeLinear", "DequantizeLinear"))


def operation_times(
    model: Path, feeds: Mapping[str, np.ndarray], *, threads: int, settings: Mapping[str, str]
) -> dict[str, float]:
    """Milliseconds by node of the file ``model``, the median over 30 runs (of slow ones fewer).

    A kernel that several nodes became counts for the node that makes its result; layout changes and copies
    stand under an empty name. Raises BackendError where ONNX Runtime fails.
    """
    import onnxruntime as ort

    with scratch("profile") as folder:
        optimised = folder / "optimised.onnx"
        options = session_options(threads=threads, settings=settings)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights.bin"
        )
        try:
            session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            begin, runs = time.perf_counter(), 0
            while runs < _WARM_UP + _RUNS and (runs < 4 or time.perf_counter() - begin < _SECONDS):
                session.run(None, dict(feeds))
                runs += 1
            profile = Path(session.end_profiling())
        except Exception as e:
            raise BackendError(
                f"ONNX Runtime cannot profile {model.name}: {e}", hint="build with --no-measure"
            ) from e
        events = json.loads(profile.read_text(encoding="utf-8", errors="replace"))
        return by_node(kernel_times(events, min(_WARM_UP, runs // 4)), ir.load(optimised), ir.load(model))


def kernel_times(events: Iterable[Mapping[str, object]], warm_up: int) -> dict[str, float]:
    """Milliseconds by kernel name: the median over the runs in a profile, the first ``warm_up`` left out."""
    nodes: list[tuple[float, str, float]] = []
    ends: list[float] = []
    for event in events:
        start, duration, name = event.get("ts"), event.get("dur"), event.get("name")
        if not isinstance(start, int | float) or not isinstance(duration, int | float):
            continue
        if event.get("cat") == "Node" and isinstance(name, str) and name.endswith(_KERNEL):
            nodes.append((start, name.removesuffix(_KERNEL), duration / 1000))
        elif name == "model_run":
            ends.append(start + duration)
    ends.sort()
    runs: list[dict[str, float]] = [defaultdict(float) for _ in ends]
    for start, name, ms in nodes:
        run = next((i for i, end in enumerate(ends) if start <= end), None)
        if run is not None:
            runs[run][name] += ms
    counted = runs[warm_up:]
    names = dict.fromkeys(name for run in counted for name in run)
    return {name: median(run.get(name, 0.0) for run in counted) for name in names}


def by_node(kernels: Mapping[str, float], optimised: ir.Model, written: ir.Model) -> dict[str, float]:
    """Times by kernel as times by node of the graph as ``written``."""
    made_by = {out.name: node for node in written.graph for out in node.outputs}
    named = {node.name: node for node in written.graph}
    running = {node.name: node for node in optimised.graph}
    inner = {node.name for node in all_nodes(optimised)} - running.keys()
    times: dict[str, float] = {}
    for kernel, ms in kernels.items():
        if kernel in inner:
            continue  # the time of an If, Loop or Scan holds that of its body
        node = _stands_for(kernel, running.get(kernel), made_by, named)
        times[node] = times.get(node, 0.0) + ms
    return times


def _stands_for(
    kernel: str,
    running: ir.Node | None,
    made_by: Mapping[str | None, ir.Node],
    named: Mapping[str | None, ir.Node],
) -> str:
    """The name of the written node whose result a kernel makes; empty for what belongs to none."""
    names = [] if running is None else [out.name for out in running.outputs]
    node = next((made_by[name] for name in names if name in made_by), None)
    while node is None:
        node = named.get(kernel) or made_by.get(kernel)
        shorter = _SUFFIX.sub("", kernel)
        if shorter == kernel:
            break
        kernel = shorter
    op = "" if running is None else running.op_type
    while node is not None and op not in _PAIR and node.op_type in _PAIR:
        source = node.inputs[0]  # an integer kernel ends in the codes of what it computes
        producer = None if source is None else source.producer()
        if producer is None:
            break
        node = producer
    if node is None or (op in _MOVES and node.op_type != op):
        return ""
    return node.name or ""
