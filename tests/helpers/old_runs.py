"""Runs written by version 0.1.0 of the package, in ``tests/data/old_runs``, and their base model.

``python -m tests.helpers.old_runs FOLDER`` writes such runs with the version at hand. The committed
ones stay as they are: what they show is that later versions read them.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.kernels import gaussian
from adazeta.recording.identity import fingerprint_of_state
from tests.helpers.paths import ROOT
from tests.helpers.tiny_models import tiny_llama

FOLDER = ROOT / "tests" / "data" / "old_runs"
ADAPTERS = {"rank": 2, "bottleneck": 8, "init": "paper", "layers": "last:1"}
RUNS = {
    "adapters": {"probes": "example", "queries": 2, "weight_decay": 0.1},
    "helene": {"method": "helene", "method_settings": {"hessian_every": 2}},
    "sgd_bfloat16": {"method": "zo-momentum", "learning_rate": 1e-3},
    "subspace": {"method": "subzero", "method_settings": {"rank": 2}, "learning_rate": 1e-3},
}
WHOLE = ("sgd_bfloat16", "subspace")  # these train all weights; the others have adapters


def base_of(name):
    """Return the model a run began with: the same bits on every machine, whatever torch draws."""
    model = tiny_llama(hidden=16, layers=2)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            drawn = gaussian(seed, 0, parameter.numel()).view(parameter.shape)
            parameter.copy_(drawn * 0.1 + (parameter.dim() == 1))
    if name == "sgd_bfloat16":
        model = model.to(torch.bfloat16)
    return model if name in WHOLE else add_tt_adapters(model, TTAdapterConfig(**ADAPTERS))


def trainer_of(name, folder):
    rows = torch.arange(96).view(16, 6) % 50 + 5
    arguments = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "eps": "1e-2", "seed": 3,
        **RUNS[name],
    }  # fmt: skip
    data = [{"input_ids": row, "labels": row.clone()} for row in rows]
    return ZOTrainer(base_of(name), ZOTrainingArguments(**arguments), train_dataset=data)


def write(folder):
    for name in RUNS:
        place = Path(folder) / name
        shutil.rmtree(place, ignore_errors=True)
        trainer = trainer_of(name, place)
        trainer.train()
        trainer.save_model()
        state = fingerprint_of_state(trainer.zo_optimizer)
        (place / "end.json").write_text(json.dumps({"state": state}) + "\n")
        for path in place.rglob("*"):
            if path.name in ("training_args.bin", "README.md") or path.name == "checkpoint-6":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    write(sys.argv[1])
