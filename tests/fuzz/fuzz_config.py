"""Atheris target for the parsers of configurations, data and JSON: bytes are read or refused.

Not part of the test suite. With the ``atheris`` package installed (a minute is a good length)::

    python -m tests.fuzz.fuzz_config -max_total_time=60
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["adazeta.support.settings", "adazeta.tasks.records", "adazeta.support.files"]
):
    from adazeta.support.files import read_object
    from adazeta.support.settings import build, read_yaml
    from adazeta.tasks.arguments import TaskArguments
    from adazeta.tasks.records import load_records

FOLDER = Path(tempfile.mkdtemp(prefix="adazeta-fuzz-"))


def run(data: bytes) -> None:
    """Read the bytes as each kind of file."""
    for name in ("c.yaml", "o.json", "d.jsonl", "d.csv", "d.tsv"):
        path = FOLDER / name
        path.write_bytes(data)
        try:
            if name == "c.yaml":
                build(TaskArguments, read_yaml(path))
            elif name == "o.json":
                read_object(path)
            else:
                load_records(path)
        except ValueError:
            pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
