"""``deploy verify``: a bundle is what it says, and computes what was decided. Works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.options import Json


def verify(
    bundle: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE", help="The folder that `deploy build` wrote; with --deep also one of several."
        ),
    ],
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Read the plan out of the artifact's file, and check each operation fed the right values.",
        ),
    ] = False,
    limit: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="With --deep: time for each bundle.")
    ] = 300.0,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --deep: the profile's file, where the target was named by one."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a bundle's hashes, then run its self-test; no network, no data needed."""
    if deep:
        from deploy.cli.deep import verify_deep

        if profile is not None:
            from deploy.adapter.profiles import load_profile

            load_profile(str(profile))  # known by its name from then on
        verify_deep(bundle, limit, json=json)
        return
    from deploy.bundle.read import load_bundle
    from deploy.bundle.report import figures
    from deploy.bundle.verify import verify_bundle
    from deploy.cli.terminal import write_facts, write_json, write_line

    manifest = load_bundle(bundle).manifest
    found = verify_bundle(bundle)
    if json:
        write_json({
            "bundle": str(bundle),
            "target": manifest.target,
            "files": len(manifest.files),
            "samples": found.samples,
            "error": found.error,
            "tolerance": found.tolerance,
            "executed_by": found.executed_by,
        })  # fmt: skip
        return
    write_line(("✓ verified", "good"), f"  {bundle}")
    write_facts(
        [
            (
                "files",
                f"{figures.plural(len(manifest.files), 'hash')} as recorded",
            ),
            ("self-test", f"{figures.plural(found.samples, 'sample')} through {found.executed_by}"),
            ("error", f"{found.error:.2g} of the outputs' magnitude, {found.tolerance:.2g} allowed"),
        ],
        indent=2,
    )
