"""`python -m deploy`: the command line, where no script is on the path."""

from __future__ import annotations

from deploy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
