"""``omenn`` and ``python -m omenn``: from here on, Ctrl-C ends the command with one line.

NOTE [before anything is imported]
Importing the command line takes a moment. An interruption in the middle of an import leaves a
traceback, or the importing module swallows it. Nothing has been written by then, so the process
may simply end.
"""

import os
import signal
import sys

_LEFT = b"omenn: interrupted; nothing is left half-written\n"


def _end(number: int, frame: object) -> None:
    os.write(2, _LEFT)
    os._exit(2)


def main() -> int:
    """Run the command; the exit code, see :func:`omenn.cli.main`."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not if the parent process ignores it on purpose
        signal.signal(signal.SIGINT, _end)
    from omenn import cli

    return cli.main(begun=lambda: signal.signal(signal.SIGINT, before))


if __name__ == "__main__":
    sys.exit(main())
