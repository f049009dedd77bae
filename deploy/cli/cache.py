"""``deploy cache``: how much is kept for the next build, and removing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from deploy.cli.options import CacheFolder, Json
from deploy.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.cache import Cache

app = typer.Typer(help="Show or clear what is kept for the next build.", no_args_is_help=False)


@app.command("info")
def info(cache: CacheFolder = None, json: Json = False) -> None:
    """Where the cache lies and how much it holds."""
    from deploy.bundle.report import figures
    from deploy.cli.terminal import write_facts, write_json

    store = _open(cache)
    found = store.info()
    if json:
        write_json({"folder": str(store.root), "entries": found["entries"], "bytes": found["bytes"]})
        return
    write_facts([
        ("folder", str(store.root)),
        ("entries", str(found["entries"])),
        ("size", figures.size(found["bytes"])),
    ])  # fmt: skip


@app.command("clear")
def clear(cache: CacheFolder = None, json: Json = False) -> None:
    """Remove every entry. The next build computes everything again, with the same results."""
    from deploy.bundle.report import figures
    from deploy.cli.terminal import write_json, write_line

    store = _open(cache)
    held = store.info()["bytes"]
    try:
        removed = store.clear()
    except OSError as e:
        raise UsageError(
            f"{store.root}: cannot be cleared: {e.strerror}", hint="check the folder's permissions"
        ) from e
    if json:
        write_json({"folder": str(store.root), "removed": removed, "bytes": held})
        return
    write_line(f"removed {figures.plural(removed, 'entry')} ({figures.size(held)}) from {store.root}")


def _open(folder: Path | None) -> Cache:
    from deploy.cache import Cache, default_root

    root = folder or default_root()
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: not a folder", hint="give the cache's folder with --cache")
    return Cache(root)
