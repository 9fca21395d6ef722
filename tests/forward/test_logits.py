import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adazeta.forward.logits import candidate_logits
from tests.helpers.tiny_models import (
    VOCABULARY_SIZE,
    tiny_bert_mlm,
    tiny_gemma2,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_roberta,
)

MODELS = [tiny_llama, tiny_gpt2, tiny_opt, tiny_bert_mlm, tiny_roberta, tiny_gemma2]
CANDIDATES = torch.tensor([7, 50, 21])


def batch(rows: int = 4, width: int = 9) -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.randint(5, VOCABULARY_SIZE, (rows, width))
    lengths = torch.tensor([width, 3, 1, 6])[:rows]
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}, lengths - 1


def full(model: PreTrainedModel, inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
    logits = model(**inputs)["logits"]
    return logits[torch.arange(len(positions)), positions][:, CANDIDATES]


@pytest.mark.parametrize("build", MODELS)
def test_equals_the_full_logits(build):
    model = build()
    inputs, positions = batch()
    found = candidate_logits(model, inputs, positions, CANDIDATES)
    # Dot products of length 32 in another order of summation.
    torch.testing.assert_close(found, full(model, inputs, positions), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("build", [tiny_llama, tiny_bert_mlm])
def test_a_stacked_batch_gives_the_same_logits_for_each_copy(build):
    model = build()
    inputs, positions = batch()
    once = candidate_logits(model, inputs, positions, CANDIDATES)
    stack = {name: tensor.repeat(3, 1) for name, tensor in inputs.items()}
    thrice = candidate_logits(model, stack, positions.repeat(3), CANDIDATES)
    torch.testing.assert_close(thrice, once.repeat(3, 1), atol=1e-6, rtol=1e-5)


def test_only_the_candidates_are_computed():
    model = tiny_llama()
    inputs, positions = batch()
    shapes = []
    handle = model.register_forward_hook(lambda *call: shapes.append(call[2].logits.shape))
    candidate_logits(model, inputs, positions, CANDIDATES)
    handle.remove()
    assert shapes == [(4, 1, 3)]


def test_no_cache_of_keys_and_values_is_made():
    model = tiny_llama()
    inputs, positions = batch()
    caches = []
    handle = model.register_forward_hook(lambda *call: caches.append(call[2].past_key_values))
    candidate_logits(model, inputs, positions, CANDIDATES)
    handle.remove()
    assert caches == [None]


class CountingLinear(nn.Linear):
    """Stands for a quantised or otherwise special output embedding."""


def test_a_head_that_is_not_a_plain_linear_is_left_alone():
    model = tiny_llama()
    special = CountingLinear(32, VOCABULARY_SIZE, bias=False)
    model.lm_head = special
    inputs, positions = batch()
    found = candidate_logits(model, inputs, positions, CANDIDATES)
    assert torch.equal(found, full(model, inputs, positions))


def test_a_hooked_head_is_left_alone():
    model = tiny_llama()
    model.lm_head.register_forward_hook(lambda module, args, output: output + 1)
    inputs, positions = batch()
    found = candidate_logits(model, inputs, positions, CANDIDATES)
    assert torch.equal(found, full(model, inputs, positions))


def test_the_head_is_itself_again_after_an_error():
    model = tiny_llama()
    inputs, positions = batch()
    before = model(**inputs).logits
    with pytest.raises(IndexError):
        candidate_logits(model, inputs, positions + 100, CANDIDATES)
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(**inputs).logits, before)


def test_gradients_flow():
    model = tiny_llama()
    inputs, positions = batch()
    candidate_logits(model, inputs, positions, CANDIDATES).sum().backward()
    narrow = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    full(model, inputs, positions).sum().backward()
    wide = model.model.layers[0].mlp.up_proj.weight.grad
    torch.testing.assert_close(narrow, wide, atol=1e-6, rtol=1e-4)
