"""What a command found out, as a table or as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print rows with the same keys as a table or as JSON (one row: an object)."""
    if as_json:
        print(json.dumps(rows if len(rows) > 1 else rows[0], ensure_ascii=False))
        return
    cells = [list(rows[0])]
    cells += [[_shown(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(one)}" for key, one in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)
