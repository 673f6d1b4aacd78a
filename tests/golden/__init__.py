"""What omenn gave before: numbers, signatures and words that a rebuilt omenn must give again.

``python -m tests.golden --report`` tells what differs, ``--write`` records what is there now.
"""
