"""Packages made by coremltools itself, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from backends.coreml.interpret.machine import Compute
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import builder, mil, quiet, sdk

Built = Callable[..., object]
_KINDS = {"float32": "fp32", "float16": "fp16", "int32": "int32", "bool": "bool", "int8": "int8"}


def saved(
    build: Built,
    shapes: Mapping[str, Sequence[int]],
    path: Path,
    *,
    target: str = "iOS17",
    half: bool = False,
    types: Mapping[str, str] | None = None,
    passes: bool = False,
    **convert: object,
) -> Path:
    """A package of the program that ``build`` makes of inputs of these shapes, float32 where not said."""
    ct, mb = sdk(), builder()
    of = {name: getattr(mil().types, _KINDS[(types or {}).get(name, "float32")]) for name in shapes}
    specs = [mb.TensorSpec(shape=tuple(shape), dtype=of[name]) for name, shape in shapes.items()]

    def program(*values: object) -> object:
        return build(mb, *values)

    # coremltools takes the names of inputs from the function's signature
    made = eval(f"lambda {', '.join(shapes)}: program({', '.join(shapes)})", {"program": program})
    version = getattr(ct.target, target)
    with quiet():
        model = ct.convert(
            mb.program(input_specs=specs, opset_version=version)(made),
            source="milinternal",
            convert_to="mlprogram",
            minimum_deployment_target=version,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.DEFAULT if passes else ct.PassPipeline.EMPTY,
            skip_model_load=True,
            **convert,
        )
        model.save(str(path))
    return path


def evaluated(
    path: Path, feeds: Mapping[str, np.ndarray], compute: Compute = "float16"
) -> dict[str, np.ndarray]:
    """The results; floats are fed in the type that the package takes."""
    with CoreMLRunner(path, CoreMLOptions(compute=compute)) as runner:
        types = {spec.name: spec.dtype for spec in runner.inputs}
        return runner.run(
            {
                name: array.astype(types[name]) if array.dtype.kind == "f" and name in types else array
                for name, array in feeds.items()
            }
        )


def results(
    build: Built, feeds: Mapping[str, np.ndarray], path: Path, *, target: str = "iOS17"
) -> list[np.ndarray]:
    """The results of a program in order, of inputs as they are fed."""
    shapes = {name: array.shape for name, array in feeds.items()}
    kinds = {name: array.dtype.name for name, array in feeds.items()}
    found = evaluated(saved(build, shapes, path, target=target, types=kinds), feeds)
    return list(found.values())
