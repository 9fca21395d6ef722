"""Small runs with rewards."""

import torch

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.tasks.reward import RewardTask
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

PROMPTS = ["the film was", "it is", "a dog and a cat in the", "the plot", "we", "great acting but"]
CONFIG = {"rank": 2, "bottleneck": 8, "init": "paper"}


def lively_llama():
    """A tiny model whose blocks have a say: a new one repeats its last token."""
    model = tiny_llama()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "emb" not in name:
                parameter.mul_(12)
    return add_tt_adapters(model, TTAdapterConfig(**CONFIG))


def vowels(prompts, completions, **columns):
    """Reward vowels, in [0, 1]."""
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def task(**options):
    defaults = {"max_new_tokens": 6}
    return RewardTask(tiny_tokenizer(add_special_tokens=False), **{**defaults, **options})


def data(count=12):
    return [{"prompt": PROMPTS[k % len(PROMPTS)], "place": k} for k in range(count)]


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 6,
        "learning_rate": 0.05, "probes": "example", "logging_steps": 1, "report_to": "none",
        "save_strategy": "steps", "save_steps": 2, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return ZOTrainingArguments(**{**defaults, **options})


def trainer(folder, reward=vowels, model=None, reward_task=None, rows=12, **options):
    return ZOTrainer(
        model or lively_llama(),
        arguments(folder, **options),
        reward_funcs=reward,
        reward_task=reward_task or task(),
        train_dataset=data(rows),
        eval_dataset=data(6),
    )
