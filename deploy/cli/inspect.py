"""``deploy inspect``: what a model is and what will be hard about it, or what a bundle holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import CacheFolder, Json, complete_target, parse_shapes
from deploy.cli.sources import MODEL_HELP, open_model
from deploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploy.frontend.onnx_file import Source
    from deploy.graph.hazards import Hazard
    from deploy.graph.summary import Summary

_OPERATIONS_SHOWN = 12
_PLACES_SHOWN = 3
_MODELS = (".onnx", ".pt2")
_SENSITIVITY = "Sensitivity"


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|BUNDLE", help=f"{MODEL_HELP}; a .tflite file or .mlpackage; or a bundle's folder."
        ),
    ],
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SIZES", help="Count with these input sizes: x=1,3,224,224; repeatable."),
    ] = None,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity",
            rich_help_panel=_SENSITIVITY,
            help="What the outputs lose when one block alone is rounded, made sparse or pruned.",
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Samples, without labels: the first ones show more hazards."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", rich_help_panel=_SENSITIVITY, help="Samples looked at. Default: 128."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            rich_help_panel=_SENSITIVITY,
            help="Predict by one backward pass and measure nothing; needs PyTorch.",
        ),
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Judge for this device: hazards and latency on all its runtimes, sensitivity on the first.",
            autocompletion=complete_target,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_SENSITIVITY, help="Draw it: .png, .svg or .pdf."),
    ] = None,
    cache: CacheFolder = None,
    json: Json = False,
) -> None:
    """Show parameters, MACs, size, operations and hazards; or what a bundle or a runtime's own file holds."""
    if sensitivity:
        from deploy.cli.sensitivity import inspect_sensitivity
        from deploy.stages.request import Request

        request = Request(
            source=path, target=target or "", data=data, shapes=parse_shapes(shape), cache=cache
        )
        inspect_sensitivity(request, samples=samples, quick=quick, picture=picture, json=json)
        return
    _refuse_alone(samples=samples, quick=quick or None, picture=picture)
    if _inspect_file(path, json=json):
        return
    if path.is_dir():
        _inspect_bundle(path, json=json)
    else:
        _inspect_model(path, parse_shapes(shape), cache, data, target, json=json)


def _refuse_alone(**given: object) -> None:
    """Raises UsageError for an option that only sensitivity reads."""
    alone = next((name for name, value in given.items() if value is not None), None)
    if alone is not None:
        raise UsageError(
            f"--{alone} belongs to --sensitivity", hint="give --sensitivity, too, or leave it out"
        )


def _inspect_bundle(path: Path, *, json: bool) -> None:
    from deploy.bundle.read import load_bundle
    from deploy.cli.result import contents_json, show_contents
    from deploy.cli.terminal import write_json

    bundle = load_bundle(path)
    if json:
        write_json(contents_json(bundle))
    else:
        show_contents(bundle)


def _inspect_file(path: Path, *, json: bool) -> bool:
    """Whether it is a file, or a folder, in a runtime's own format, and so was shown."""
    if path.suffix.lower() in ("", *_MODELS) or not path.exists():
        return False
    from deploy.adapter.discover import find_inspector
    from deploy.cli.contents import contents_json, show_contents
    from deploy.cli.terminal import write_json

    inspector = find_inspector(path.suffix)
    if inspector is None:
        return False
    found = inspector.contents(path)
    if json:
        write_json(contents_json(path, found))
    else:
        show_contents(path, found)
    return True


def _inspect_model(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    cache: Path | None,
    data: str | None,
    target: str | None,
    *,
    json: bool,
) -> None:
    from deploy.cli.expected import expect, expected_json, show_expected
    from deploy.cli.outlook import look_ahead
    from deploy.cli.terminal import write_json, write_line
    from deploy.graph.hazards import hazards
    from deploy.graph.shapes import infer, pin
    from deploy.graph.summary import summary

    source = open_model(path, shapes, cache)
    graph = infer(pin(source.model, shapes) if shapes else source.model)
    found = summary(graph)
    ahead = None if data is None and target is None else look_ahead(path, data, target, shapes, cache)
    dangers = hazards(graph) if ahead is None else ahead.hazards
    takes = None if target is None else expect(path, target, shapes, cache)
    if json:
        write_json({
            "latency": None if takes is None else expected_json(takes),
            "model": str(path),
            "sha256": source.given_sha256 or source.sha256,
            "bytes": source.bytes,
            "opset": source.opset,
            "made_by": dict(source.made_by),
            "parameters": found.parameters,
            "macs": found.macs,
            "uncounted": list(found.uncounted),
            "weight_bytes": found.weight_bytes,
            "peak_activation_bytes": found.peak_activation_bytes,
            "inputs": [spec.model_dump(mode="json") for spec in found.inputs],
            "outputs": [spec.model_dump(mode="json") for spec in found.outputs],
            "operations": dict(found.operations),
            "blocks": found.blocks,
            "samples": None if ahead is None else ahead.samples,
            "hazards": [asdict(hazard) for hazard in dangers],
        })  # fmt: skip
        return
    _show(path, source, found, dangers)
    if ahead is not None:
        write_line()
        write_line((f"over {ahead.samples}, by the rules of {ahead.target}", "quiet"))
    if takes is not None:
        show_expected(takes)


def _show(path: Path, source: Source, found: Summary, dangers: list[Hazard]) -> None:
    from deploy.bundle.report import figures
    from deploy.cli.terminal import Cell, write_facts, write_line

    origin = f"PyTorch {source.made_by['torch']}, captured as " if "torch" in source.made_by else ""
    write_line((str(path), "strong"), (f"  {origin}ONNX, opset {source.opset}", "quiet"))
    write_line()
    activations = found.peak_activation_bytes
    facts: list[tuple[str, Cell]] = [("input", str(spec)) for spec in found.inputs]
    facts += [("output", str(spec)) for spec in found.outputs]
    facts += [
        ("parameters", figures.count(found.parameters)),
        ("MACs", _macs(found)),
        ("file", figures.size(source.bytes)),
        (
            "activations",
            "unknown" if activations is None else f"{figures.size(activations)} at the peak, one sample",
        ),
        ("blocks", f"{found.blocks} whose precision can be chosen"),
        ("operations", _operations(found)),
    ]
    write_facts(facts, indent=2)
    write_line()
    show_hazards(dangers)


def show_hazards(dangers: list[Hazard]) -> None:
    """The hazards on stdout, each kind once with the nodes it is true of."""
    from deploy.cli.terminal import Cell, write_facts, write_line

    if not dangers:
        write_line(("✓ ", "good"), "no quantization hazards")
        return
    places: dict[tuple[str, str, str], list[str]] = {}
    for hazard in dangers:
        places.setdefault((hazard.severity, hazard.kind, hazard.text), []).append(hazard.node)
    write_line(("quantization hazards", "strong"))
    rows: list[tuple[str, Cell]] = []
    for (severity, kind, text), nodes in sorted(places.items(), key=lambda item: item[0][0] != "warning"):
        more = len(nodes) - _PLACES_SHOWN
        listed = ", ".join(nodes[:_PLACES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        rows += [(kind, (listed, "middling" if severity == "warning" else "name")), ("", text)]
    write_facts(rows, indent=2)


def _macs(found: Summary) -> str:
    from deploy.bundle.report import figures

    if found.macs is not None:
        return f"{figures.count(found.macs)} for one sample"
    first, more = found.uncounted[0], len(found.uncounted) - 1
    free = any(isinstance(size, str) for spec in found.inputs for size in spec.shape)
    where = f"unknown for '{first}'{f' and {more} more' if more else ''}"
    return f"{where}: fix the sizes with --shape" if free else where


def _operations(found: Summary) -> str:
    from deploy.bundle.report import figures

    shown = [f"{number} {op}" for op, number in found.operations[:_OPERATIONS_SHOWN]]
    more = len(found.operations) - len(shown)
    return ", ".join(shown) + (f" and {figures.plural(more, 'other kind')}" if more > 0 else "")
