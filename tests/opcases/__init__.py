"""The database of operators, one module per module of the frozen table."""
