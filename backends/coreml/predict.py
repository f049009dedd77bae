"""On macOS, what Core ML itself makes of a package, beside what the interpreter does.

Nothing here runs elsewhere: coremltools has ``predict`` on macOS only.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import quiet, sdk
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError, ToolchainError
from deploy.execute.compare import random_feeds
from deploy.spec.manifest import KnownHazard
from deploy.spec.tensors import TensorSpec

_FAR = 0.05
"""Part of an output's greatest number; processors differ in what they round between operations."""


def predicts() -> bool:
    """Whether Core ML is here."""
    return sys.platform == "darwin"


def predicted(
    path: Path, feeds: Arrays, inputs: Sequence[TensorSpec], classes: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The outputs that Core ML makes on this Mac, on whichever processor it takes.

    ``feeds`` are those of `CoreMLRunner`; images become pictures. A classifier's probabilities come in the
    order of its ``classes``, which Core ML's dictionaries do not have; states are zeros. Raises
    ToolchainError elsewhere, BackendError where Core ML refuses the package.
    """
    if not predicts():
        raise ToolchainError("Core ML runs on macOS only", hint="leave it to the reference interpreter")
    try:
        with quiet():
            model = sdk().models.MLModel(str(path))
            given = {spec.name: _given(spec, feeds[spec.name]) for spec in inputs}
            kept = (model.make_state(),) if model.get_spec().description.state else ()
            found: Mapping[str, object] = model.predict(given, *kept)
            return {name: _array(value, classes) for name, value in found.items()}
    except Exception as e:
        raise BackendError(
            f"Core ML cannot run {path.name}: {' '.join(str(e).split())[:300]}",
            hint="check that this macOS is as new as the package's target",
        ) from e


def _given(spec: TensorSpec, array: np.ndarray) -> object:
    if spec.layout != "NHWC" or spec.dtype != "uint8":
        return array
    from PIL import Image

    return Image.fromarray(array[0, :, :, 0] if array.shape[-1] == 1 else array[0])


def _array(value: object, classes: Sequence[str]) -> np.ndarray:
    if isinstance(value, Mapping):
        by_name = {str(name): chance for name, chance in value.items()}
        return np.array([by_name[name] for name in classes or by_name], np.float32)
    return np.asarray(value)


def compared(path: Path, feeds: Arrays, options: CoreMLOptions) -> dict[str, float] | None:
    """The largest relative difference between Core ML and the interpreter for each output of numbers.

    Of its greatest number; None where Core ML is not here.
    """
    if not predicts():
        return None
    with CoreMLRunner(path, options) as runner:
        ours = runner.run(feeds)
        theirs = predicted(path, feeds, runner.inputs, runner.classes)
    differences: dict[str, float] = {}
    for name, have in ours.items():
        want = theirs.get(name)
        if want is None or want.dtype.kind not in "fiu" or want.size != have.size:
            continue
        scale = max(float(np.abs(want).max(initial=0)), 1e-12)
        apart = np.abs(have.astype(np.float64).reshape(-1) - want.astype(np.float64).reshape(-1))
        differences[name] = float(apart.max(initial=0)) / scale
    return differences


def hazards(path: Path, options: CoreMLOptions) -> list[KnownHazard]:
    """On macOS, whether Core ML runs a package, and gives what the interpreter does on noise.

    Nothing elsewhere.
    """
    if not predicts():
        return []
    with CoreMLRunner(path, options) as runner:
        sizes = {spec.name: runner.usual.get(spec.name, spec.shape) for spec in runner.inputs}
        usual = [spec.model_copy(update={"shape": sizes[spec.name]}) for spec in runner.inputs]
    try:
        differences = compared(path, random_feeds(usual, 0), options)
    except BackendError as e:
        return [_hazard("warning", f"{e.message}: the interpreter alone has run it")]
    far = [name for name, apart in (differences or {}).items() if not apart <= _FAR]
    text = f"Core ML here and the interpreter are more than {_FAR:.0%} apart"
    return [_hazard("warning", f"{text} at the outputs {', '.join(far)}")] if far else []


def _hazard(severity: Literal["note", "warning"], text: str) -> KnownHazard:
    return KnownHazard(kind="core_ml", severity=severity, text=text, nodes=())
