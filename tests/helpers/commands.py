"""Settings of a small run, and commands that must fail with one line."""

from pathlib import Path
from typing import Any

import pytest

from adazeta.cli import main

TEXTS = [
    ("the movie was great fun", 1),
    ("a bad dull film", 0),
    ("wonderful acting and music", 1),
    ("boring story , awful script", 0),
]


def settings(folder: Path) -> dict[str, Any]:
    return {
        "model": str(folder / "base"),
        "train_data": str(folder / "data.jsonl"),
        "validation_data": str(folder / "data.jsonl"),
        "template": "{text} it was",
        "label_words": {0: "terrible", 1: "great"},
        "rank": 2,
        "bottleneck": 8,
        "eps": 1e-2,
        "learning_rate": "1e-2",
        "lr_scheduler_type": "constant",
        "probes": "example",
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "group_by_length",
        "max_steps": 6,
        "logging_steps": 2,
        "save_steps": 3,
        "disable_tqdm": True,
        "output_dir": str(folder / "out"),
    }


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail with one line; return the line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("adazeta: error: ")
    assert captured.err.count("\n") == 1
    return captured.err
