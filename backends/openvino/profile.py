"""Where the time of one inference goes, from OpenVINO's own counters.

A compiled model lists its kernels with the operations of the file that each of them became
(``originalLayersNames``). Those bear the names of the graph's nodes, or names below them (``conv1/Reshape``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from backends.openvino.runner import OpenVinoOptions, read_file, settings
from backends.openvino.sdk import core, reason
from deploy.errors import BackendError

if TYPE_CHECKING:
    import openvino

_WARM_UP, _RUNS = 5, 30
_PAIR = ("FakeQuantize", "Convert", "Subtract", "Multiply")


def operation_times(
    path: Path, feeds: Mapping[str, np.ndarray], options: OpenVinoOptions
) -> dict[str, float]:
    """Milliseconds by node of the graph, the median over 30 runs after 5 for warming up, on the CPU.

    A kernel that several nodes became counts for the last of them, a quantization aside; what belongs to none
    stands under an empty name. Raises BackendError where OpenVINO fails.
    """
    model = read_file(path)
    places = {name: index for index, port in enumerate(model.inputs) for name in port.get_names()}
    nodes = _nodes(model)
    try:
        compiled = core().compile_model(model, "CPU", settings(options, "CPU") | {"PERF_COUNT": "YES"})
        kernels = _kernels(compiled, nodes)
        request = compiled.create_infer_request()
        given = {places[name]: np.asarray(array, order="C") for name, array in feeds.items()}
        runs: list[dict[str, float]] = []
        for _ in range(_WARM_UP + _RUNS):
            request.infer(given)
            times: dict[str, float] = {}
            for entry in request.profiling_info:
                node = kernels.get(entry.node_name, "")
                times[node] = times.get(node, 0.0) + entry.real_time.total_seconds() * 1000
            runs.append(times)
    except Exception as e:
        raise BackendError(
            f"OpenVINO cannot profile {path.name}: {reason(e)}", hint="build with --no-measure"
        ) from e
    counted = runs[_WARM_UP:]
    found = {name: median(run[name] for run in counted) for name in counted[0]}
    return {name: ms for name, ms in found.items() if ms > 0}


def _nodes(model: openvino.Model) -> dict[str, tuple[int, str]]:
    """By operation: its place in the file, and the node it is part of, which makes a value with a name.

    Of two operations the one that computes comes later than any that quantizes.
    """
    found: dict[str, tuple[int, str]] = {}
    operations = model.get_ordered_ops()
    for index, op in reversed(list(enumerate(operations))):
        name = op.get_friendly_name()
        if op.get_type_name() in ("Constant", "Parameter", "Result"):
            continue
        node = name
        if not any(out.get_names() for out in op.outputs()):
            readers = [target.get_node() for out in op.outputs() for target in out.get_target_inputs()]
            below = (found[r.get_friendly_name()][1] for r in readers if r.get_friendly_name() in found)
            node = min(below, default=name)
        pair = op.get_type_name() in _PAIR and node.rpartition("/")[2].rstrip("0123456789_") in ("q", "dq")
        found[name] = (index - len(operations) if pair else index, node)
    return found


def _kernels(compiled: openvino.CompiledModel, nodes: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    found = {}
    for kernel in compiled.get_runtime_model().get_ops():
        info = kernel.get_rt_info()
        became = info["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in info else []
        known = [nodes[name] for name in became if name in nodes]
        found[kernel.get_friendly_name()] = max(known)[1] if known else ""
    return found
