import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adazeta.support.tensor_files import save_tensors
from tests.helpers.bits import same_bits
from tests.helpers.paths import ROOT

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a.weight": torch.tensor([[float("nan"), -0.0]]),
    "c": torch.empty(0, 4),
    "steps \u00e9": torch.tensor(7),
}
METADATA = {name: f'{name} "quoted" \u4e2d \n' for name in ("format", "widths", "z", "a", "m")}

WRITE = """
import sys
from adazeta.adapters.files import save_pretrained
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.attach import add_tt_adapters
from tests.helpers.tiny_models import tiny_llama
for index in range(8):
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=2, bottleneck=8, init="paper"))
    save_pretrained(model, f"{sys.argv[1]}/{index}")
"""


def test_adapters_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", WRITE, str(folder)],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
            found |= {(name, (folder / str(i) / name).read_bytes()) for i in range(8)}
    assert len(found) == 3


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    path, other = tmp_path / "sorted", tmp_path / "plain"
    save_tensors(TENSORS, path, METADATA)
    save_file(TENSORS, other, METADATA)
    assert len(path.read_bytes()) == len(other.read_bytes())
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    assert all(same_bits(read[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == METADATA
    save_tensors(TENSORS, path)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() is None


def test_many_writings_give_one_file(tmp_path: Path) -> None:
    found = set()
    for order in range(30):
        names = list(METADATA)[order % 5 :] + list(METADATA)[: order % 5]
        reversed_too = dict(reversed(TENSORS.items())) if order % 2 else TENSORS
        save_tensors(reversed_too, tmp_path / "file", {name: METADATA[name] for name in names})
        found.add((tmp_path / "file").read_bytes())
    assert len(found) == 1
