"""What is known of a model beside what it computes, where Xcode and other programs look for it."""

from __future__ import annotations

import json
from pathlib import Path

from backends.coreml.classes import CLASSES
from backends.coreml.notes import Notes
from backends.coreml.sdk import quiet, sdk
from deploy.spec.artifact import Description
from deploy.spec.tensors import TensorSpec


def describe(package: Path, notes: Notes, description: Description) -> None:
    """Write it into the package's specification, replacing what was said before."""
    with quiet():
        spec = sdk().utils.load_spec(str(package))
    about = spec.description.metadata
    about.shortDescription = description.text or description.name
    about.versionString, about.author = description.version, description.author
    about.license = description.license
    if description.classes:
        about.userDefined[CLASSES] = json.dumps(list(description.classes), ensure_ascii=False)
    for name, fact in description.facts.items():
        about.userDefined[name] = fact
    names = notes.ends | {state: given for state, (given, _) in notes.states.items()}
    known = {one.name: one for one in (*description.inputs, *description.outputs)}
    predicted = (spec.description.predictedFeatureName, spec.description.predictedProbabilitiesName)
    made = dict(zip(predicted, ("the likeliest class", "the probability of each class"), strict=True))
    for feature in (*spec.description.input, *spec.description.output, *spec.description.state):
        one = known.get(names.get(feature.name, ""))
        if one is None:
            feature.shortDescription = made.get(feature.name, "")
        elif feature.type.HasField("imageType"):
            picture = feature.type.imageType
            grey = picture.colorSpace == picture.ColorSpace.GRAYSCALE
            picture.colorSpace = picture.colorSpace if grey else picture.ColorSpace.Value(one.colours)
            feature.shortDescription = f"{one.name}: a picture, which the model normalises itself"
        else:
            feature.shortDescription = _told(one)
    model = next(package.rglob("*.mlmodel"))
    model.write_bytes(spec.SerializeToString(deterministic=True))


def _told(spec: TensorSpec) -> str:
    """An input or output in words: its sizes, and what is left to do to raw data."""
    left = spec.normalisation
    if left is None or spec.folded:
        return str(spec)
    means, stds = (", ".join(f"{number:g}" for number in numbers) for numbers in (left.mean, left.std))
    return f"{spec}, (value * {left.scale:g} - mean) / std with mean {means} and std {stds}"
