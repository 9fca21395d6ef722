import pytest
import torch
from torch import Tensor

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.forward.logits import candidate_logits
from adazeta.forward.losses import example_losses, losses_only
from adazeta.forward.trunk import SharedTrunk
from tests.helpers.model_types import KINDS, tiny_model

LENGTHS = [9, 4, 6, 7]
ANSWERS = [5, 3, 4, 2]
WORDS = torch.tensor([7, 30, 11])
# These feel how far a text is padded, so a batch is no reference for a text alone.
FEEL_PADDING = {"convbert", "fnet", "nystromformer", "yoso"}

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, on settings that no one trains with
]


def batch(task: str, seed: int = 0) -> dict[str, Tensor]:
    """Four texts, padded, with labels as transformers' own loss of the task takes them."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(9)
    mask = (columns < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(5, 90, (4, 9), generator=generator) * mask
    other = torch.randint(5, 90, (4, 9), generator=generator)
    if task == "causal":
        labels = ids.where((columns >= 2) & mask.bool(), -100)
    elif task == "masked":
        labels = other.where((columns % 3 == 1) & mask.bool(), -100)
    else:
        labels = other.where(columns < torch.tensor(ANSWERS)[:, None], -100)[:, :5].contiguous()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def alone(task: str, inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One text of the batch without its padding."""
    labels = ANSWERS[row] if task == "encoder-decoder" else LENGTHS[row]
    widths = {"input_ids": LENGTHS[row], "attention_mask": LENGTHS[row], "labels": labels}
    return {name: inputs[name][row : row + 1, :width] for name, width in widths.items()}


def scored(task: str) -> tuple[dict[str, Tensor], Tensor]:
    """A batch without labels, and a position of each text."""
    inputs = batch(task, seed=1)
    inputs.pop("labels")
    if task == "encoder-decoder":
        inputs["decoder_input_ids"] = batch(task, seed=2)["input_ids"][:, :5].clamp_min(3)
        return inputs, torch.tensor([4, 0, 2, 1])
    return inputs, torch.tensor(LENGTHS) - 1 if task == "causal" else torch.tensor([3, 1, 2, 4])


def close(found: Tensor, expected: Tensor) -> None:
    # Sums of float32 in another order, through two blocks of random weights.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("task", "kind"), KINDS)
@torch.no_grad()
def test_losses_are_the_models_own(task, kind):
    model, inputs = tiny_model(task, kind), batch(task)
    texts = [alone(task, inputs, row) for row in range(4)]
    own = torch.stack([model(**text).loss for text in texts])
    close(torch.cat([losses_only(model, text) for text in texts]), own)
    if kind not in FEEL_PADDING:
        close(losses_only(model, inputs), own)
        close(example_losses(model, inputs)[0], own)
    close(losses_only(model, inputs), example_losses(model, inputs)[0])


@pytest.mark.parametrize(("task", "kind"), KINDS)
@torch.no_grad()
def test_logits_are_the_models_own_and_adapters_leave_them(task, kind):
    model = tiny_model(task, kind)
    inputs, positions = scored(task)
    own = model(**inputs).logits[torch.arange(4), positions][:, WORDS]
    for _ in range(2):  # with the comparison and without
        close(candidate_logits(model, inputs, positions, WORDS), own)
    add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8))
    close(candidate_logits(model, inputs, positions, WORDS), own)


@pytest.mark.parametrize(("task", "kind"), KINDS)
@torch.no_grad()
def test_sharing_the_lower_blocks_changes_no_bit(task, kind):
    model = tiny_model(task, kind)
    add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers="last:1"))
    trunk = SharedTrunk(model)
    losses_only(model, batch(task))
    for seed in (0, 5):
        inputs = batch(task, seed)
        hidden = trunk.run(lambda part: losses_only(model, part), inputs)
        with trunk.replay(hidden):
            found = losses_only(model, inputs)
        assert torch.equal(found, losses_only(model, inputs))


@pytest.mark.parametrize("task", ["causal", "encoder-decoder"])
@torch.no_grad()
def test_a_loss_that_is_no_mean_cross_entropy_is_refused(task):
    model = tiny_model(task, "prophetnet")  # it predicts several tokens from one position
    with pytest.raises(ValueError, match="not the mean cross entropy of the labels: .* pass los"):
        losses_only(model, batch(task))
