"""``deploy run``: arrays or images in, outputs and the likeliest classes out, through a bundle or a file."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Json
from deploy.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from deploy.cli.predictions import Predictions
    from deploy.cli.subject import Subject
    from deploy.data.dataset import FittedSource
    from deploy.spec.tensors import TensorSpec

_BATCH = 64


def run(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|FILE",
            help="The folder that `deploy build` wrote; or a .mlpackage, whoever wrote it.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="Samples, named by input, as calibration data are: .npz, .npy, a folder of images.",
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="An image or a folder of them, for the input NAME where there are several; repeatable.",
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option("--random", min=1, metavar="N", help="Feed so many samples of noise instead."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="An .npz to write, replaced as a whole."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes, one a line.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes are shown.")] = 5,
    labels: Annotated[str, typer.Option(help="Arrays of this name, or NAME.*, are labels: not fed.")] = "y",
    json: Json = False,
) -> None:
    """Feed samples or images to a bundle; show the likeliest classes, or save its outputs by name.

    Data are treated as calibration data were: scaled, cropped and normalised as the bundle's manifest says,
    unless the graph does that itself. A file says itself what it takes. Any number of samples will do. For
    what keeps states they are a sequence, fed one after the other from zeros on.
    """
    from deploy.cli.predictions import predict, predictions_json, show_predictions
    from deploy.cli.subject import subject_at
    from deploy.cli.terminal import show_note, write_json
    from deploy.data.images import read_classes

    if output is not None:
        _refuse_unwritable(output)
    with subject_at(bundle) as subject:
        names = subject.classes if classes is None else read_classes(classes)
        dataset = _opened(data, image or [], random, subject, labels)
        if dataset.labelled and not (data is not None and data.is_dir()):
            show_note(f"label arrays ('{labels}') are not fed to the model")
        if subject.kind == "file":
            show_note(f"computed by: {subject.title}")
        if subject.deferred:
            show_note(
                "the artifact is finished on the device: here a stand-in computes, as in `deploy verify`"
            )
        outputs = _computed(subject, dataset)
    predictions = None
    if image or output is None:
        predictions = predict(bundle, outputs, names, count=len(dataset), top=top, named=classes is not None)
    if output is not None:
        _write(output, outputs)
    if json:
        found: dict[str, object] = {
            subject.kind: str(bundle),
            "samples": len(dataset),
            "output": None if output is None else str(output),
            "arrays": {n: {"dtype": str(a.dtype), "shape": list(a.shape)} for n, a in outputs.items()},
        }
        if subject.kind == "file":
            found["executed_by"] = subject.title
        if predictions is not None:
            found |= predictions_json(predictions, dataset.sample_names())
        write_json(found)
        return
    _show(subject.title, dataset, outputs, output, predictions)
    if predictions is not None:
        show_predictions(predictions, dataset.sample_names())


def _computed(subject: Subject, dataset: FittedSource) -> dict[str, np.ndarray]:
    """The outputs for all samples."""
    from deploy.adapter.batching import fixed_batch, run_samples
    from deploy.adapter.protocol import Remembers
    from deploy.bundle.report.content import cleaned
    from deploy.cli.terminal import show_note

    size = fixed_batch(subject.inputs)
    with subject.open() as runner:
        if subject.states and isinstance(runner, Remembers):
            _require_whole(subject.title, len(dataset), size or 1)
            kept = cleaned(", ".join(subject.states))
            show_note(f"samples are a sequence: {kept} stay from one to the next")
            return _joined([runner.step(batch.feeds) for batch in dataset.batches(size or 1)])
        size = size or _BATCH
        return _joined([run_samples(runner, batch.feeds, size) for batch in dataset.batches(size)])


def _require_whole(title: str, count: int, size: int) -> None:
    """Raises DataError where a sequence ends within an inference, which no made-up sample may fill."""
    if count % size:
        raise DataError(
            f"{count} samples: {title} takes {size} at a time, each after what those before it left",
            hint=f"give a multiple of {size}: as many of each of the {size} sequences",
        )


def _show(
    title: str,
    dataset: FittedSource,
    outputs: Mapping[str, np.ndarray],
    output: Path | None,
    predictions: Predictions | None,
) -> None:
    from deploy.bundle.report import figures
    from deploy.bundle.report.content import cleaned
    from deploy.cli.terminal import write_facts, write_line

    if output is None and predictions is not None:
        return
    where = title if output is None else str(output)
    write_line(("✓ ", "good"), f"{figures.plural(len(dataset), 'sample')} → {where}")
    write_facts([(cleaned(n), f"{a.dtype} {figures.shape(a.shape)}") for n, a in outputs.items()], indent=2)


def _opened(
    data: Path | None, images: Sequence[str], random: int | None, subject: Subject, labels: str
) -> FittedSource:
    """What is to be fed. Raises UsageError where that is not clear, DataError where it does not fit."""
    from deploy.cli.terminal import show_note
    from deploy.data.dataset import open_dataset, open_pictures
    from deploy.data.images import frames

    inputs = subject.inputs
    if random is not None:
        if data is not None or images:
            raise UsageError("--random stands in for data", hint="give one of them")
        return open_dataset(subject.noise(random), inputs)
    if not images:
        if data is None:
            raise UsageError(
                "nothing to feed", hint="give --image cat.jpg, an .npz file of samples, or --random 1"
            )
        return open_dataset(data, inputs, labels=labels)
    pictures = _by_input(images, inputs)
    dataset = open_pictures(pictures, inputs, data, labels=labels)
    for path in (path for paths in pictures.values() for path in paths if path.is_file()):
        if (count := frames(path)) > 1:
            show_note(f"{path}: {count} frames or pages, the first one is taken")
    plain = [s.name for s in inputs if s.name in pictures and s.normalisation is None and s.dtype[0] == "f"]
    if plain:
        show_note(f"the {subject.kind} knows no normalisation of '{plain[0]}': pixels go in as 0 to 255")
    return dataset


def _by_input(images: Sequence[str], inputs: Sequence[TensorSpec]) -> dict[str, list[Path]]:
    """The files of each input. Raises UsageError where a name is missing or wrong, DataError where no input
    takes images."""
    from deploy.data.images import image_inputs

    fitting = [spec.name for spec in image_inputs(inputs)]
    known = [spec.name for spec in inputs]
    found: dict[str, list[Path]] = {}
    for word in images:
        name, equals, rest = word.partition("=")
        if equals and name in known and not Path(word).exists():
            found.setdefault(name, []).append(Path(rest))
        elif equals and not Path(word).exists() and "/" not in name and Path(rest).exists():
            raise UsageError(
                f"--image {word}: the model has no input '{name}'", hint=f"its inputs: {', '.join(known)}"
            )
        elif len(fitting) == 1 or len(known) == 1:
            found.setdefault((fitting or known)[0], []).append(Path(word))
        elif not fitting:
            raise DataError(
                f"--image {word}: no input of the model takes images: {', '.join(map(str, inputs))}",
                hint="save the samples as an .npz file, arrays named by input",
            )
        else:
            raise UsageError(
                f"--image {word}: the model has several image inputs: {', '.join(fitting)}",
                hint=f"say which: --image {fitting[0]}={word}",
            )
    return found


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    import numpy as np

    return {
        name: np.concatenate([part[name] for part in parts]) if array.ndim else parts[-1][name]
        for name, array in parts[0].items()
    }


def _refuse_unwritable(output: Path) -> None:
    """Before any work is done. Raises UsageError."""
    folder = output.parent
    if output.suffix != ".npz":
        raise UsageError(f"{output}: the outputs are written as .npz", hint=f"name it {output.name}.npz")
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint=f"create it: mkdir -p {folder}")
    if output.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{output}: cannot be written", hint="choose another place with -o")


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz under any names (numpy's own writer refuses ``file``); it appears whole or not at all."""
    import numpy as np

    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(scratch, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
        scratch.replace(path)
    except OSError as e:
        raise UsageError(
            f"{path}: cannot be written: {e.strerror}",
            hint="free some space, or choose another place with -o",
        ) from e
    finally:
        scratch.unlink(missing_ok=True)
