"""The fuzz targets keep up with the code; atheris itself is not needed."""

import importlib
import random
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

SEEDS = [b"", b"AZPROBES", b'{"text": "x"}', b"a,b\n1,2\n", b"rank: [1", b"\xff\xfe\0"]


@pytest.mark.parametrize("name", ["fuzz_probe_log", "fuzz_config"])
def test_a_target_takes_any_bytes(monkeypatch, name):
    stub = SimpleNamespace(instrument_imports=lambda include: nullcontext())
    monkeypatch.setitem(sys.modules, "atheris", stub)
    target = importlib.import_module(f"tests.fuzz.{name}")
    draw = random.Random(0)
    for data in [*SEEDS, *(draw.randbytes(draw.randrange(80)) for _ in range(50))]:
        target.run(data)
