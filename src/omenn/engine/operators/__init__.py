"""All that is known of the operators of torch: one record each.

Each module has the records of one kind; ``table.py`` puts them together. ``OPERATORS`` are those
with a ``rule`` (what the operator becomes at constant coefficients) and a ``placer`` (where its
output lies on the input, for the constants). An operator without is not supported, and says so;
``unruled.py`` has what is known of functions that are none. Another operator is one record here and
one case in ``tests/opcases``.
"""
