"""Atheris target for the parser of probe logs: any bytes are a log or a ``LogError``.

Not part of the test suite. With the ``atheris`` package installed (a minute is a good length)::

    python -m tests.fuzz.fuzz_probe_log -max_total_time=60
"""

import json
import sys

import atheris

with atheris.instrument_imports(
    include=[
        "adazeta.recording.header",
        "adazeta.recording.probe_log",
        "adazeta.recording.step_record",
    ]
):
    from adazeta.recording.probe_log import MAGIC, ProbeLog, frame
    from adazeta.recording.step_record import LogError, decode

HEADER = MAGIC + frame(json.dumps({"format": 1, "seed": 11, "first_step": 0}).encode())


def run(data: bytes) -> None:
    """Parse the bytes as a file, as records after a header, as a framed payload, as a record."""
    for content in (data, HEADER + data, HEADER + frame(data), MAGIC + frame(data)):
        try:
            list(ProbeLog(content))
        except LogError:
            pass
    try:
        decode(data, 11)
    except LogError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
