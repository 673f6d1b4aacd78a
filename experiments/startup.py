"""How long ``omenn --help`` takes, beside an interpreter that does nothing.

python -m experiments.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "omenn --help": [sys.executable, "-m", "omenn", "--help"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        low, mid, high = statistics.quantiles(values, n=4)
        print(f"{name:16s} median {mid:.3f} s (quartiles {low:.3f}–{high:.3f})")


if __name__ == "__main__":
    main()
