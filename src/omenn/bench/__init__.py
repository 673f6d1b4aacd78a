"""``omenn bench``: models × methods × metrics, cell by cell, into one folder."""
