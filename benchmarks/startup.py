"""Whole-process start-up time of the command line, and what a trivial Python process costs beside it.

python benchmarks/startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

DEPLOY = [sys.executable, "-m", "deploy"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "deploy --help": [*DEPLOY, "--help"],
    "deploy build --help": [*DEPLOY, "build", "--help"],
    "import deploy": [sys.executable, "-c", "import deploy"],
    "deploy targets": [*DEPLOY, "targets"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begin)
    print("| command | median, s | fastest, s |\n|---|---|---|")
    for name, taken in times.items():
        print(f"| `{name}` | {statistics.median(taken):.3f} | {min(taken):.3f} |")


if __name__ == "__main__":
    main()
