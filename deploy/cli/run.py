"""``deploy run``: arrays in, arrays out, through a bundle's artifact."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import Json
from deploy.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_BATCH = 64


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `deploy build` wrote.")],
    data: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="Samples, named by input, as calibration data are: .npz, .npy."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .npz to write, replaced as a whole.")
    ],
    labels: Annotated[str, typer.Option(help="Arrays of this name, or NAME.*, are labels: not fed.")] = "y",
    json: Json = False,
) -> None:
    """Feed samples to a bundle and save its outputs by name.

    Data are treated as calibration data were: normalised as the bundle's manifest says, unless the graph does
    that itself. Any number of samples will do.
    """
    from deploy.adapter.batching import fixed_batch, run_samples
    from deploy.bundle.read import load_bundle, open_bundle
    from deploy.bundle.report import figures
    from deploy.cli.terminal import show_note, write_facts, write_json, write_line
    from deploy.data.dataset import open_dataset

    manifest = load_bundle(bundle).manifest
    inputs = manifest.artifact.inputs
    _refuse_unwritable(output)
    dataset = open_dataset(data, inputs, labels=labels)
    if dataset.labelled:
        show_note(f"label arrays ('{labels}') are not fed to the model")
    if manifest.deferred:
        show_note("the artifact is finished on the device: here a stand-in computes, as in `deploy verify`")
    with open_bundle(bundle) as runner:
        size = fixed_batch(inputs) or _BATCH
        parts = [run_samples(runner, batch.feeds, size) for batch in dataset.batches(size)]
    outputs = _joined(parts)
    _write(output, outputs)
    if json:
        shapes = {name: {"dtype": str(a.dtype), "shape": list(a.shape)} for name, a in outputs.items()}
        write_json({"bundle": str(bundle), "samples": len(dataset), "output": str(output), "arrays": shapes})
        return
    write_line(("✓ ", "good"), f"{figures.plural(len(dataset), 'sample')} → {output}")
    write_facts(
        [(name, f"{array.dtype} {figures.shape(array.shape)}") for name, array in outputs.items()], indent=2
    )


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
