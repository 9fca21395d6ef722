"""One training step of each kind, as a function without arguments, ready to be timed."""

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from adazeta import ZOTrainer, ZOTrainingArguments
from benchmarks.reference_path import ReferenceStep, as_reference, full_logits_loss
from benchmarks.workload import Batch, Workload

# Small enough that hundreds of timed steps leave the model where it was.
LR = 1e-7
EPS = 1e-3
LORA_RANK = 8


class OurStep:
    """A step of :class:`adazeta.ZOTrainer` on one batch: estimate and update.

    Args:
        work: the workload.
        model: a model of the workload with trainable parameters.
        batch: the batch.
        **settings: of :class:`adazeta.ZOTrainingArguments`.
    """

    def __init__(self, work: Workload, model: nn.Module, batch: Batch, **settings: Any) -> None:
        self.model = model
        self.batch = batch
        values: dict[str, Any] = {
            "method": "mezo",
            "learning_rate": LR,
            "eps": str(EPS),
            "probe_log": False,  # a training run writes it; a step alone has no run
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": work.base.device.type == "cpu",
            **settings,
        }
        with tempfile.TemporaryDirectory() as folder:
            arguments = ZOTrainingArguments(output_dir=folder, **values)
            self.trainer = ZOTrainer(model, arguments, loss_fn=work.losses)
        self.trainer.create_optimizer()
        self.optimizer = self.trainer.zo_optimizer
        # The official step does not check its eps either.
        self.optimizer.estimator.check_eps = False
        # transformers sets this at the start of its training loop.
        self.trainer.current_gradient_accumulation_steps = 1

    def __call__(self) -> float | None:
        """Do one step."""
        self.trainer.training_step(self.model, dict(self.batch))
        return self.optimizer.step()

    def stack(self) -> int:
        """Return how many evaluations share a forward."""
        return self.optimizer.estimator.stack.of(self.batch)


def reference_step(
    work: Workload, model: nn.Module, batch: Batch, *, queries: int, lr: float = LR
) -> ReferenceStep:
    """Return the official step on a twin of a model (on the model itself if all is trainable)."""
    frozen = any(not p.requires_grad for p in model.parameters())
    twin = as_reference(model) if frozen else model

    def loss(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return full_logits_loss(module, inputs, work.candidates)

    return ReferenceStep(twin, loss, eps=EPS, lr=lr, queries=queries)


class FirstOrderStep:
    """Loss, backward and AdamW on one batch, with the label words' logits only.

    Args:
        work: the workload.
        model: a model of the workload with trainable parameters.
        batch: the batch.
        lr: learning rate.
    """

    def __init__(self, work: Workload, model: nn.Module, batch: Batch, lr: float = LR) -> None:
        self.work = work
        self.model = model
        self.batch = batch
        trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0)

    def __call__(self) -> float:
        """Do one step."""
        with torch.enable_grad():
            loss = self.work.losses(self.model, self.batch)[0].mean()
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def lora_model(work: Workload, *, seed: int = 0, last: int | None = None) -> nn.Module:
    """Return the workload's model with LoRA of rank 8 on the query and value projections (PEFT).

    Args:
        work: the workload.
        seed: of the new matrices.
        last: adapt so many of the last blocks only.
    """
    depth = work.base.config.num_hidden_layers
    config = LoraConfig(
        r=LORA_RANK, lora_alpha=16, target_modules=["q_proj", "v_proj"],
        layers_to_transform=None if last is None else list(range(depth - last, depth)),
    )  # fmt: skip
    twin = work.model("bare")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, twin)
    return twin.eval()
