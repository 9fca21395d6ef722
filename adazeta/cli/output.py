"""What several commands print, and the options that they share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adazeta.support.settings import OneLineParser

# The run fills these in, or they mean nothing in it.
NOT_SET_BY_USERS = {
    "task_type",
    "base_model_name_or_path",
    "auto_mapping",
    "inference_mode",
    "num_labels",
    "tt_head_rank",
}


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
    if isinstance(value, tuple):
        return " to ".join(map(_shown, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def add_folder(parser: OneLineParser) -> None:
    """Add the options of commands that use the folder of a run."""
    parser.add_argument("folder", help="output_dir of a training run")
    parser.add_argument("--model", help="base model, if it is no longer where it was")
    parser.add_argument("--dtype", default="auto", help="of the base model (default: auto)")
    parser.add_argument("--quantise", help="of the base model (default: as in training)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_scale(parser: OneLineParser) -> None:
    """Add the share of the adapters that a command takes."""
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="ALPHA",
        help="share of what the adapters add (default: 1, all of it)",
    )
