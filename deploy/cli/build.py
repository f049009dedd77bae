"""``deploy build``: a model compiled for one or more targets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deploy.adapter.later import import_uncollected
from deploy.cli.options import (
    CacheFolder,
    Json,
    Quiet,
    Verbose,
    complete_target,
    parse_shapes,
    parse_size,
    parse_threads,
    settle,
)
from deploy.cli.project import FILE, Flags, requests
from deploy.cli.sources import MODEL_HELP
from deploy.errors import BudgetError

if TYPE_CHECKING:
    from deploy.bundle.read import Bundle
    from deploy.stages.request import Request

Precision = Literal["auto", "float", "fp16", "bf16", "int8", "mixed", "w8a16", "dynamic", "w8", "w4"]
IoType = Literal["uint8", "int8"]
IoLayout = Literal["NHWC", "NCHW"]
Observer = Literal["minmax", "percentile", "mse", "kl"]
Objective = Literal["latency", "size", "memory", "energy", "accuracy"]
Tune = Literal["off", "quick", "full"]
Preset = Literal["fast", "balanced", "smallest"]

_DATA, _QUALITY, _EFFORT, _OUTPUT = "Data", "Precision and budget", "Effort", "Output"


def build(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}; without it {FILE} here or above is read."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="NAME",
            autocompletion=complete_target,
            help="A device, or a profile's file; repeatable. `deploy targets` lists them.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", rich_help_panel=_DATA, help="Calibration samples: they find the ranges."
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=_DATA,
            help="Samples that the recipe's steps train on.",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            rich_help_panel=_DATA,
            help="Samples to choose by; without it the calibration samples.",
        ),
    ] = None,
    eval_: Annotated[
        str | None,
        typer.Option(
            "--eval",
            metavar="PATH",
            rich_help_panel=_DATA,
            help="Labelled samples that accept or reject the result.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_DATA,
            help="Names of the classes, one a line; without it those of an image folder.",
        ),
    ] = None,
    io_dtype: Annotated[
        IoType | None,
        typer.Option(
            metavar="TYPE",
            rich_help_panel=_DATA,
            help="Let the artifact take pixels: uint8, or int8 (the pixel less 128).",
        ),
    ] = None,
    io_layout: Annotated[
        IoLayout | None,
        typer.Option(
            metavar="LAYOUT", rich_help_panel=_DATA, help="Let the artifact take images as NHWC or NCHW."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZES",
            rich_help_panel=_DATA,
            help="Fix an input's sizes: x=1,3,224,224; repeatable.",
        ),
    ] = None,
    random_calibration: Annotated[
        bool,
        typer.Option(
            "--random-calibration",
            rich_help_panel=_DATA,
            help="Find ranges on noise. The bundle will say so.",
        ),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="DROP",
            rich_help_panel=_QUALITY,
            help="What may be lost, in the metric's unit. Default: 0.01, one point of accuracy.",
        ),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            metavar="MS", rich_help_panel=_QUALITY, help="What one inference may take, in milliseconds."
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", rich_help_panel=_QUALITY, help="What the artifact may weigh: 426kB, 1.5MB."
        ),
    ] = None,
    objective: Annotated[
        Objective | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_QUALITY,
            help="What is made best within these limits: latency (the default), size, memory, "
            "energy (where this machine counts joules) or accuracy.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_QUALITY,
            help="What is judged: top1, top5, macro_f1, mse, psnr, miou, auc, spearman, agreement, "
            "or python:module:function.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_QUALITY,
            help="What blocks compute in: auto (what pays), float, fp16, bf16, int8, mixed, w8a16 (INT16 "
            "activations), dynamic (INT8 without calibration), w8 or w4 (weights only).",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE", rich_help_panel=_QUALITY, help="A node to keep in float; repeatable."),
    ] = None,
    observer: Annotated[
        Observer | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_QUALITY,
            help="How ranges are found: mse, minmax, percentile or kl.",
        ),
    ] = None,
    tune: Annotated[
        Tune | None,
        typer.Option(
            metavar="HOW",
            rich_help_panel=_EFFORT,
            help="off: choose from what is known beforehand; quick (the default): search for about two "
            "minutes, time the few best, try options of the winner's runtime; full: for about 18, also "
            "train, time all that may be worth it, try longer.",
        ),
    ] = None,
    recipe: Annotated[
        Preset | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_EFFORT,
            help="What is taken away before quantization: fast (no training), balanced or smallest; instead "
            "of the steps that the file lists.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", rich_help_panel=_EFFORT, help="Calibration samples used, at most."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_EFFORT,
            help="Threads to run and measure with: a number, or auto for as many as are fastest here.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", rich_help_panel=_EFFORT, help="Equal seeds give equal bundles."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_EFFORT,
            help="Build for this runtime only, where the device has several. Default: the fastest.",
        ),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", rich_help_panel=_EFFORT, help="Do not time anything.")
    ] = False,
    cache: CacheFolder = None,
    lock: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_EFFORT,
            help="A deploy.lock: take its choices instead of searching again.",
        ),
    ] = None,
    pick: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=_EFFORT,
            help="Build point N of those that the bundle at DIR/TARGET lists, instead of searching again.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", rich_help_panel=_OUTPUT, help="Where bundles go: DIR/TARGET. Default: dist."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", rich_help_panel=_OUTPUT, help="Say what would be done; write nothing."),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            rich_help_panel=_OUTPUT,
            help="Say of each block why it is INT8 or float, in numbers.",
        ),
    ] = False,
    json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Compile a model: as small and fast as each target allows, within the accuracy budget, and proved.

    Ends with exit code 9 where the budget was missed; the bundle is written all the same.
    """
    import_uncollected("deploy.pipeline")
    from deploy.adapter.profiles import load_profile
    from deploy.stages.energy import check_objective
    from deploy.stages.recipe import check_targets

    quiet = settle(context, verbose, quiet)
    flags = Flags(
        model=model,
        targets=tuple(target or ()),
        data=data,
        validation=validation,
        train=train,
        eval=eval_,
        classes=classes,
        io_dtype=io_dtype,
        io_layout=io_layout,
        max_drop=max_drop,
        max_latency=max_latency,
        max_size=None if max_size is None else parse_size(max_size),
        objective=objective,
        tune=tune,
        recipe=recipe,
        metric=metric,
        out=out,
        shapes=parse_shapes(shape),
        precision=precision,
        exclude=tuple(exclude or ()),
        observer=observer,
        samples=samples,
        threads=None if threads is None else parse_threads(threads),
        seed=seed,
        runtime=runtime,
        measure=not no_measure,
        random_calibration=random_calibration,
        lock=lock,
        pick=pick,
        cache=cache,
    )
    wanted = requests(flags, Path.cwd())
    if model is not None and Path(FILE).is_file() and not quiet:
        from deploy.cli.terminal import show_note

        show_note(f"{FILE} is not read, since a model was named")
    check_targets(wanted[0].recipe, [request.target for request in wanted])
    if dry_run:
        _preview(wanted, json=json)
        return
    for request in wanted:  # what is wrong with a second target is told before the first is built
        load_profile(request.target)
        check_objective(request)
    bundles = [_build(request, json=json, quiet=quiet, explain=explain) for request in wanted]
    if json:
        from deploy.cli.explained import with_explanations
        from deploy.cli.result import as_json

        _write([with_explanations(as_json(bundle), bundle, explain) for bundle in bundles])
    if any(bundle.manifest.verdict.status == "missed" for bundle in bundles):
        raise typer.Exit(BudgetError.exit_code)


def _build(request: Request, *, json: bool, quiet: bool, explain: bool) -> Bundle:
    """Build for one target and show the result at once, so that it is seen if the next target fails."""
    from deploy.bundle.report.summary import reasons
    from deploy.cli.explained import show_explained
    from deploy.cli.result import show_result
    from deploy.cli.terminal import show_error, stages, write_line
    from deploy.pipeline import run

    with stages(f"{request.source_path} → {request.target}", quiet=quiet) as progress:
        bundle = run(request, progress)
    verdict = bundle.manifest.verdict
    if not (json or quiet):
        write_line()
        show_result(bundle)
        write_line()
        if explain:
            show_explained(bundle)
            write_line()
    elif verdict.status == "missed":
        show_error(BudgetError(f"{bundle.folder}: budget missed: {'; '.join(reasons(bundle))}"))
    return bundle


def _preview(wanted: list[Request], *, json: bool) -> None:
    from deploy.cli.preview import preview_json, show_preview
    from deploy.cli.terminal import write_line
    from deploy.pipeline import dry_run

    previews = [dry_run(request) for request in wanted]
    if json:
        _write([preview_json(preview) for preview in previews])
        return
    for preview in previews:
        show_preview(preview)
        write_line()


def _write(objects: list[dict[str, object]]) -> None:
    """One target's object as it is; several in a list."""
    from deploy.cli.terminal import write_json

    write_json(objects[0] if len(objects) == 1 else {"builds": objects})
