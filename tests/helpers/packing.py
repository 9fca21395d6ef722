"""Batches of texts of several lengths, and trainers over such texts."""

from pathlib import Path

import torch
from torch import nn

from adazeta import ZOTrainer, ZOTrainingArguments


def batch(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    labels = torch.where(mask.bool(), ids, -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def collate(rows):
    width = max(len(row["labels"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    pad = nn.functional.pad
    return {
        name: torch.stack([pad(r[name], (0, width - len(r[name])), value=v) for r in rows])
        for name, v in fill.items()
    }


def trainer_of(model: nn.Module, folder: Path, **options: str | int) -> ZOTrainer:
    data = [{k: v[0] for k, v in batch(n, seed=n).items()} for n in (13, 3, 2, 6, 7, 4, 5, 11)]
    settings: dict[str, object] = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "eps": "0.01",
        "method": "mezo", "queries": 2, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "use_cpu": True, **options,
    }  # fmt: skip
    arguments = ZOTrainingArguments(output_dir=str(folder), **settings)
    return ZOTrainer(model, arguments, train_dataset=data, data_collator=collate)
