"""The parameters of a model that came quantized, taken over exactly or refused: never found a second time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, quantize_array
from deploy.quantize.assign import Assignment
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.profile import QuantRules
from deploy.spec.tensors import QuantType

_SHOWN = 5


def adopt(model: ir.Model, imported: Mapping[str, TensorPlan], rules: QuantRules) -> Assignment:
    """The imported parameters as this runtime takes them, with the integers of the constants.

    uint8 and int8 with the zero point moved by 128 stand for the same numbers, so that much is translated.
    Raises UnsupportedError listing the values whose parameters the runtime cannot hold exactly.
    """
    present = {v.name for v in model.graph.inputs} | {o.name for n in model.graph for o in n.outputs}
    constants = model.graph.initializers
    tensors: dict[str, TensorPlan] = {}
    codes: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for name, plan in imported.items():
        if name in constants:
            array = constant(constants[name])
            if array is None:
                continue
            problems += [f"{name}: {p}" for p in _misfits(plan, rules, weight=plan.type != "int32")]
            codes[name] = quantize_array(array, plan)
            tensors[name] = plan.model_copy(update={"digest": data_digest(codes[name])})
        elif name in present:
            uses = {consumer: _retyped(params, rules) for consumer, params in plan.uses.items()}
            moved = plan.model_copy(update={**_retyped(plan, rules).model_dump(), "uses": uses})
            problems += [f"{name}: {p}" for p in _misfits(moved, rules, weight=False)]
            tensors[name] = moved
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UnsupportedError(
            "the model is already quantized with parameters that this target cannot hold exactly:"
            + "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
            + more,
            hint="give the float model, which is then quantized by this target's rules, or --precision float",
        )
    return Assignment(tensors, codes)


def _retyped(params: QuantParams, rules: QuantRules) -> QuantParams:
    """8-bit activations in the runtime's own type; others as they are."""
    plain = QuantParams(type=params.type, scale=params.scale, zero_point=params.zero_point, axis=params.axis)
    shift: dict[tuple[QuantType, QuantType], int] = {("uint8", "int8"): -128, ("int8", "uint8"): 128}
    moved = shift.get((params.type, rules.activation))
    if moved is None:
        return plain
    return plain.model_copy(
        update={"type": rules.activation, "zero_point": tuple(z + moved for z in params.zero_point)}
    )


def _misfits(params: QuantParams, rules: QuantRules, *, weight: bool) -> list[str]:
    found = []
    symmetric = rules.symmetric_activation
    if not weight and params.type not in (rules.activation, "int32"):
        found.append(f"{params.type}, activations are {rules.activation} here")
    if symmetric and any(params.zero_point):
        found.append(f"zero point {params.zero_point[0]}, only 0 is allowed")
    if symmetric and weight and params.type != "int8":
        found.append(f"{params.type} weights, only int8 are allowed")
    if rules.bias == "float" and params.type == "int32":
        found.append("an integer bias, only float is allowed")
    if rules.scale == "float16" and any(float(np.float16(s)) != s for s in params.scale):
        found.append(f"scale {params.scale[0]:.9g} is no float16 number")
    return found
