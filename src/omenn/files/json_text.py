"""JSON that every parser accepts: without NaN, and with printable text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from omenn.files.printable import printable


def as_json(content: Any, indent: int = 1) -> str:
    """One JSON document; NaN and the infinities, which JSON does not have, become null.

    >>> as_json({"a": [1.5, float("nan")]}, indent=0).split()
    ['{', '"a":', '[', '1.5,', 'null', ']', '}']
    """
    return json.dumps(finite(content), ensure_ascii=False, indent=indent, allow_nan=False)


def finite(content: Any) -> Any:
    """The content with None for numbers that are not finite, and with printable text."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, Mapping):
        return {finite(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
