"""``deploy init``: looks at a model and its data, and writes a ``deploy.toml`` that explains itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import CacheFolder, complete_target
from deploy.cli.project import FILE
from deploy.cli.sources import MODEL_HELP, open_model
from deploy.errors import DeployError, UsageError

if TYPE_CHECKING:
    from deploy.data.dataset import Dataset
    from deploy.graph.hazards import Hazard
    from deploy.graph.summary import Summary
    from deploy.spec.project import Project
    from deploy.spec.tensors import Normalisation, TensorSpec

_DEFAULT_TARGET = "x86-cpu"
_PIXEL_SCALE = 1 / 255


def init(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}.")],
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Calibration samples: .npz, .npy, a folder of images.")
    ] = None,
    eval_: Annotated[
        str | None,
        typer.Option("--eval", metavar="PATH", help="Labelled samples that accept or reject a build."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", metavar="NAME", autocompletion=complete_target, help="A device; repeatable."
        ),
    ] = None,
    cache: CacheFolder = None,
    force: Annotated[bool, typer.Option("--force", help=f"Replace a {FILE} that is there.")] = False,
) -> None:
    """Look at a model and its data, and write a commented deploy.toml into this folder."""
    from deploy.adapter.profiles import load_profile
    from deploy.cli.inspect import show_hazards
    from deploy.cli.outlook import look_ahead
    from deploy.cli.terminal import show_note, write_line
    from deploy.graph.hazards import hazards
    from deploy.graph.shapes import infer
    from deploy.graph.summary import summary

    path = Path(FILE)
    if path.exists() and not force:
        raise UsageError(f"{path.absolute()} exists", hint="edit it, or replace it with --force")
    targets = tuple(target or (_DEFAULT_TARGET,))
    for name in targets:
        load_profile(name)
    graph = infer(open_model(model, {}, cache).model)
    found = summary(graph)
    guessed = _guess(data or eval_, found.inputs)
    opened = {given: _open(given, found.inputs, guessed) for given in (data, eval_) if given is not None}
    dangers, samples = hazards(graph), ""
    if data is not None:
        try:
            ahead = look_ahead(model, data, targets[0], {}, cache, guessed)
            dangers, samples = ahead.hazards, f" over {ahead.samples}"
        except DeployError as e:  # the file is written all the same; the build says it again
            show_note(f"the samples were not looked at for hazards: {e.message}")
    text = render(model, found, targets, data, eval_, opened, guessed, dangers)
    _write(path, text)
    if data is None:
        show_note(
            "without calibration data a build stays float: put their path under [data] when you have them"
        )
    for name in guessed:
        show_note(
            f"[input.{name}] normalisation is a guess from the data's type: check it against your training"
        )
    write_line(("✓ ", "good"), f"wrote {path}")
    write_line()
    show_hazards(dangers)
    warned = len({hazard.kind for hazard in dangers if hazard.severity == "warning"})
    write_line(
        (f"{warned or 'no'} kind{'' if warned == 1 else 's'} of hazard to decide about{samples}", "quiet")
    )
    write_line()
    write_line(("next: ", "quiet"), ("deploy build", "strong"))


def render(
    model: Path,
    found: Summary,
    targets: Sequence[str],
    data: str | None,
    eval_: str | None,
    opened: Mapping[str, Dataset],
    guessed: Mapping[str, Normalisation],
    dangers: Sequence[Hazard],
) -> str:
    """The text of the file; what was not given stands there as a comment."""
    from deploy.bundle.report import figures

    macs = "" if found.macs is None else f", {figures.count(found.macs)} MACs"
    lines = [
        "# What `deploy build` makes in this folder. Paths start here; flags on the command line win.",
        "schema = 1",
        "",
        "[model]",
        f"path = {_string(str(model))}",
        f"# {figures.count(found.parameters)} parameters{macs}, {found.blocks} blocks.",
    ]
    lines += [f"# in   {_comment(str(spec))}" for spec in found.inputs]
    lines += [f"# out  {_comment(str(spec))}" for spec in found.outputs]
    lines += _shape_lines(found.inputs)
    lines += [
        "",
        "[data]",
        _role("calibration", data, opened, "find the ranges; need no labels"),
        '# validation = "validation.npz"  # samples that choose; without them the calibration samples do',
        _role("eval", eval_, opened, "accept or reject the result; want labels"),
        '# labels = "y"  # the labels\' array; several are "y.<name>"',
    ]
    for spec in found.inputs:
        lines += ["", *_input_lines(spec, guessed.get(spec.name))]
    lines += [
        "",
        "[metric]",
        'name = "auto"  # by the labels: top1, miou, mse; without labels agreement with the float model',
        "# Others: top5, macro_f1, psnr, auc, spearman, or python:package.module:function.",
        "",
        "[budget]",
        "max_drop = 0.01  # at most this much worse, in the metric's unit: 0.01 is one point of accuracy",
        "",
        "[quantize]",
        'precision = "auto"  # auto quantizes where it pays; `deploy build --help` lists the others',
        'observer = "mse"  # how a range is found: minmax, percentile, mse or kl',
        "samples = 512  # calibration samples used, at most",
        *_exclude_lines(dangers),
        "",
        "[build]",
        f"targets = [{', '.join(map(_string, targets))}]  # `deploy targets` lists them all",
        'out = "dist"',
        "seed = 0  # equal seeds give equal bundles",
        "threads = 1  # to run and to measure with",
    ]
    return "\n".join(lines) + "\n"


def _shape_lines(inputs: Sequence[TensorSpec]) -> list[str]:
    """How to fix free dimensions, those behind the batch above all."""
    free = [spec for spec in inputs if any(isinstance(size, str) for size in spec.shape)]
    if not free:
        return []
    examples = [
        f"{_key(spec.name)} = [{', '.join(str(s) if isinstance(s, int) else '1' for s in spec.shape)}]"
        for spec in free
    ]
    return [f"# shapes = {{ {', '.join(map(_comment, examples))} }}  # fixes free dimensions"]


def _role(key: str, path: str | None, opened: Mapping[str, Dataset], use: str) -> str:
    if path is None:
        return f'# {key} = "{key}.npz"  # samples that {use}'
    labels = "labelled" if opened[path].labelled else "without labels"
    return f"{key} = {_string(path)}  # {len(opened[path])} samples, {labels}: they {use.split(';')[0]}"


def _input_lines(spec: TensorSpec, guessed: Normalisation | None) -> list[str]:
    lines = [f"[input.{_key(spec.name)}]", f'layout = "{spec.layout}"  # NCHW, NHWC or any']
    if guessed is not None:
        lines.append(
            f"normalisation = {{ scale = {guessed.scale!r} }}  # a guess: 8-bit codes to [0, 1]. Check it."
        )
    else:
        lines.append("# Data are ready for the model. Otherwise (x * scale - mean) / std, by channel:")
        lines.append("# normalisation = { scale = 1.0, mean = [0.0], std = [1.0], folded = false }")
    return lines


def _exclude_lines(dangers: Sequence[Hazard]) -> list[str]:
    worth = list(dict.fromkeys(hazard.node for hazard in dangers if hazard.severity == "warning"))
    lines = ["exclude = []  # nodes to keep in float"]
    if worth:
        lines.append(f"# `deploy inspect` warns of: {_comment(', '.join(worth[:8]))}")
    return lines


def _guess(data: str | None, inputs: Sequence[TensorSpec]) -> dict[str, Normalisation]:
    """8-bit codes for a float input are mostly pixels, images always are; nothing else is guessed."""
    import numpy as np

    from deploy.spec.tensors import Normalisation

    if data is not None and Path(data).is_dir():
        return {s.name: Normalisation(scale=_PIXEL_SCALE) for s in inputs if s.dtype.startswith("float")}
    if data is None or Path(data).suffix != ".npz" or not Path(data).is_file():
        return {}
    from deploy.data.npz import open_npz

    columns = open_npz(Path(data)).columns
    return {
        spec.name: Normalisation(scale=_PIXEL_SCALE)
        for spec in inputs
        if spec.name in columns and columns[spec.name].dtype == np.uint8 and spec.dtype.startswith("float")
    }


def _open(path: str, inputs: Sequence[TensorSpec], guessed: Mapping[str, Normalisation]) -> Dataset:
    """Data that do not fit the model are refused now, not at the first build. Raises DataError."""
    from deploy.data.dataset import open_dataset

    return open_dataset(path, inputs, normalisation=guessed)


def _write(path: Path, text: str) -> None:
    from deploy.spec.document import parse_toml
    from deploy.spec.project import Project

    project: Project = parse_toml(Project, text, origin=path)
    del project  # what we write has to be readable, whatever the names in the model are
    try:
        path.write_bytes(text.encode())
    except UnicodeEncodeError as e:
        raise UsageError(
            f"{FILE} is UTF-8 text, which the name of the model or of the data is not",
            hint="rename the file or folder",
        ) from e
    except OSError as e:
        raise UsageError(
            f"{path.absolute()}: cannot be written: {e.strerror}", hint="go to a folder that you may write to"
        ) from e


def _string(text: str) -> str:
    """A TOML basic string: JSON's form, with the one control character that JSON leaves."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else _string(name)


def _comment(text: str) -> str:
    """One line without control characters, whatever a model's names hold."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
