"""One training step of each kind, ready to be timed, and the check of ours against the official."""

import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from adazeta import ZOTrainer, ZOTrainingArguments
from benchmarks.measure.harness import require
from benchmarks.subjects.reference_path import (
    ReferenceStep,
    as_reference,
    counter_noise_of,
    full_logits_loss,
)
from benchmarks.subjects.workload import Batch, Workload

# Small enough that hundreds of timed steps leave the model where it was.
LR = 1e-7
EPS = 1e-3
LORA_RANK = 8
CHECK_EPS = 1e-2  # far above the rounding of a float32 forward


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


@torch.no_grad()
def forward(work: Workload, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Losses of the examples."""
    return work.losses(model, batch)[0]


def check(work: Workload, placement: str) -> None:
    """Require that our step and the official one are the same estimate and the same update.

    The official step is given our directions. Projected gradients and updated parameters must then
    agree up to the rounding of the forward passes, which ``c`` divides by ``2 eps``.

    Raises:
        Refused: they do not agree.
    """
    for free in ("false", "true"):
        check_one(work, placement, padding_free=free)


def check_one(work: Workload, placement: str, **settings: Any) -> None:
    """Check our step with some settings.

    Raises:
        Refused: it is not the official one.
    """
    batch = work.batch(6)
    lr = 1e-3
    model = work.model(placement)
    ours = OurStep(work, model, batch, eps=str(CHECK_EPS), learning_rate=lr, **settings)
    twin = work.model(placement)
    if placement != "full":
        twin = as_reference(twin)
    official = ReferenceStep(
        twin,
        lambda model, inputs: full_logits_loss(model, inputs, work.candidates),
        eps=CHECK_EPS,
        lr=lr,
        noise=counter_noise_of(twin, ours.optimizer.space.distribution),
    )
    ours()
    probes = ours.optimizer.last
    assert probes is not None
    official.step(batch, seeds=probes.seeds.tolist())
    compare_steps(
        probes.projected.tolist(),
        official.projected,
        [p for p in ours.model.parameters() if p.requires_grad],
        [p for p in twin.parameters() if p.requires_grad],
        lr,
    )


def compare_steps(
    ours: list[float],
    official: list[float],
    our_parameters: list[nn.Parameter],
    official_parameters: list[nn.Parameter],
    lr: float,
) -> None:
    """Require that projected gradients and updated parameters agree.

    Raises:
        Refused: naming the difference.
    """
    noise = 1e-5 / CHECK_EPS  # of c: losses of about 1 agree to 1e-5, also through 30 layers
    for a, b in zip(ours, official, strict=True):
        require(
            abs(a - b) <= noise + 1e-3 * abs(b),
            f"our projected gradient {a:.6g} is not the reference's {b:.6g}; no time is reported",
        )
    # The largest of millions of normals is below 6; the rest is the rounding of +1, -2, +1.
    allowed = 6 * lr * (noise + 1e-3 * max(map(abs, official))) + 1e-6
    for p, q in zip(our_parameters, official_parameters, strict=True):
        worst = (p - q).abs().max().item()
        require(
            worst <= allowed,
            f"the updated parameters differ from the reference's by {worst:.2g} (allowed "
            f"{allowed:.2g}); no time is reported",
        )
