"""A MIL program becomes an .mlpackage, by coremltools' own writer and a short list of its passes.

What the passes do here: names that Core ML takes, the parameters that an operation has to carry, and float16.
Those that fuse or rescale what is quantized are left out: the plan says already what is rounded where.

The package holds one entry of metadata of ours, JSON: by planned value the variable that carries it, by inner
value of the graph its variable, by end of the program the graph's name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_OID, uuid5

import onnx_ir as ir

from backends.coreml.lower import Walked
from backends.coreml.notes import METADATA, Notes
from backends.coreml.sdk import quiet, sdk
from deploy.errors import BackendError

if TYPE_CHECKING:
    import coremltools

_HALF, _STORED_HALF = "_cast_fp16", "_to_fp16"
"""What coremltools adds to the name of a variable that it computes in float16, and of a constant."""
_DATE = "com.github.apple.coremltools.conversion_date"
"""Left out: a graph gives the same package every day."""
_PASSES = (
    "common::sanitize_input_output_names",
    "common::noop_elimination",
    "common::add_conv_transpose_output_shape",
    "common::const_deduplication",
    "common::add_fp16_cast",
    "common::cast_optimization",
    "common::const_elimination",
    "common::dead_code_elimination",
    "common::dedup_op_and_var_names",
    "common::topological_reorder",
    "common::dead_code_elimination",
)


def write(graph: ir.Model, walked: Walked, target: str, precision: str, path: Path) -> dict[str, str]:
    """Write the package; ``precision`` is what floats are computed in, FLOAT16 or FLOAT32. Inner values of
    the graph by the variable that holds them, where their names differ.

    Raises BackendError where coremltools fails.
    """
    ct = sdk()
    passes = [name for name in _PASSES if precision == "FLOAT16" or name != "common::add_fp16_cast"]
    try:
        with quiet():
            model = ct.convert(
                walked.program,
                source="milinternal",
                convert_to="mlprogram",
                inputs=walked.ends.types(),
                classifier_config=walked.ends.classifier(),
                minimum_deployment_target=getattr(ct.target, target),
                compute_precision=_computed(graph, walked, precision),
                pass_pipeline=ct.PassPipeline(pass_names=passes, pipeline_name="deploy"),
                skip_model_load=True,
            )
            values = _describe(graph, walked, model)
            model.save(str(path))
            _settle(path)
    except Exception as e:
        raise BackendError(
            f"coremltools cannot write the program: {' '.join(str(e).split())}",
            hint="build for ONNX Runtime, or report this graph",
        ) from e
    return values


def _computed(graph: ir.Model, walked: Walked, precision: str) -> object:
    """In which type floats are computed: where a graph has both, as it says of each node."""
    ct = sdk()
    floats = {value.dtype for node in graph.graph for value in node.outputs}
    if precision == "FLOAT32" or not {ir.DataType.FLOAT, ir.DataType.FLOAT16} <= floats:
        return getattr(ct.precision, precision)
    wide = {
        node.name or ""
        for node in graph.graph
        if any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
    }
    makers = walked.out.makers
    return ct.transform.FP16ComputePrecision(lambda op: makers.get(op.outputs[0].name) not in wide)


def _describe(graph: ir.Model, walked: Walked, model: coremltools.models.MLModel) -> dict[str, str]:
    """Write our metadata, and give the names of inner values."""
    made = _variables(model)

    def found(name: str) -> str | None:
        return next((one for one in (f"{name}{_HALF}", name) if one in made), None)

    values = {
        value.name: name
        for value, var in walked.out.carried.items()
        if value.name and (name := found(var.name)) is not None
    }
    program = walked.ends
    kept = {name: (value.name or "", result.name or "") for name, (value, result) in program.states.items()}
    given = [value for value in graph.graph.outputs if value.name not in dict(kept.values()).values()]
    ends = {
        name: value.name or ""
        for name, value in (
            *((name, value) for value, name in program.inputs.items()),
            *zip(program.outputs, given, strict=True),
        )
    }
    notes = Notes(
        planned=[
            (name, stored, partial)
            for name, var, partial in walked.out.planned
            if (stored := found(var.name)) is not None
        ],
        ends=ends,
        images={program.inputs[one]: "NHWC" if last else "NCHW" for one, last in program.images.items()},
        states=kept,
        scored="" if program.scored is None else program.scored[0].name or "",
        values=values,
        by_outputs=sorted(value.name or "" for value in walked.out.stored_by_outputs),
        weights={
            name: stored
            for name, var in sorted(walked.out.weights.items())
            if (stored := found(var.name) or found(f"{var.name}{_STORED_HALF}")) is not None
        },
        nodes={stored: node for var, node in walked.out.makers.items() if (stored := found(var)) is not None},
    )
    model.user_defined_metadata[METADATA] = notes.text()
    model.user_defined_metadata.pop(_DATE, None)
    return values


def _settle(path: Path) -> None:
    """Name the package's items by what they are and not at random: equal graphs give equal files."""
    manifest = path / "Manifest.json"
    content = json.loads(manifest.read_text())
    items = content["itemInfoEntries"]
    renamed = {key: str(uuid5(NAMESPACE_OID, entry["path"])) for key, entry in items.items()}
    content["itemInfoEntries"] = dict(sorted((renamed[key], entry) for key, entry in items.items()))
    content["rootModelIdentifier"] = renamed[content["rootModelIdentifier"]]
    manifest.write_text(json.dumps(content, indent=4))


def _variables(model: coremltools.models.MLModel) -> Mapping[str, object]:
    """The variables of the written program by name."""
    function = model.get_spec().mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    return {output.name: operation for operation in block.operations for output in operation.outputs}
