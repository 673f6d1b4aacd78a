"""``python -m tests.golden``: what differs from the records; ``--write`` then makes them anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest looks for them, too
from golden import recorded


def report(kind: str, every: bool) -> bool:
    """Print, for each part, whether it is the same to the bit; whether all numbers agree."""
    good = True
    for part in recorded.KINDS[kind]:
        found = recorded.changes(kind, part)
        wrong = [change for change in found if not change.kept]
        state = f"{len(wrong)} CHANGED" if wrong else "agrees" if found else "same to the bit"
        print(f"{state:>16}  {part}" + f" ({len(found)} differ by rounding)" * (state == "agrees"))
        for change in found if every else wrong:
            print(f"{'':>18}{change}")
        good = good and not wrong
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(recorded.KINDS)}; default: all")
    parser.add_argument("--write", action="store_true", help="record what is there now")
    parser.add_argument("--report", action="store_true", help="what differs (the default)")
    parser.add_argument("--all", action="store_true", help="name also what differs by rounding")
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(recorded.KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    kinds = given.kinds or list(recorded.KINDS)
    torch.set_num_threads(1)  # sums of several threads differ in their last bits
    agreed = [report(kind, given.all) for kind in kinds]
    if given.write:
        for kind in kinds:
            print(f"wrote {recorded.write(kind)}")
    return 0 if all(agreed) or given.write else 1


if __name__ == "__main__":
    sys.exit(main())
