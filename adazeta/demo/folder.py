"""What a demo leaves in its folder for ``adazeta train`` to repeat it: data and settings."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adazeta.recording.folder import SETTINGS_NAME
from adazeta.support.yaml_values import dump_yaml

_SETTINGS_OF = {"train": "train_data", "dev": "validation_data", "test": "test_data"}


def write_folder(
    output: Path,
    data: Mapping[str, Iterable[Mapping[str, Any]]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the data and ``config.yaml``.

    Args:
        output: the folder; it is made if need be.
        data: records of ``"train"``, ``"dev"`` and ``"test"``, or some of these.
        settings: of the run, by name, but for the data and the folder.

    Returns:
        All settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, records in data.items():
        file = output / f"{name}.jsonl"
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[_SETTINGS_OF[name]] = str(file)
    whole = {**files, "output_dir": str(output), **settings}
    (output / SETTINGS_NAME).write_text(dump_yaml(whole), encoding="utf-8")
    return whole
