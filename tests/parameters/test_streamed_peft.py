"""PEFT models stream like any other: MeZO-LoRA, prefix and prompt tuning need no special case."""

import copy

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn

from adazeta import ParameterSpace
from adazeta.kernels import add_noise_
from tests.helpers import tiny_models
from tests.helpers.bits import assert_same_bits, bits, same_bits
from tests.helpers.streaming_models import CAUSAL, CONFIGS, token_inputs

# Names of transformers that PEFT still uses.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_peft_model_streams_bit_for_bit(name):
    config = copy.deepcopy(CONFIGS[name])
    classifies = config.task_type == TaskType.SEQ_CLS
    base = tiny_models.tiny_bert_cls() if classifies else tiny_models.tiny_llama()
    model = get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:  # LoRA starts with zeros
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    space = ParameterSpace(model, perturbation="streamed")
    before = bits(model)

    def loss(module: nn.Module) -> Tensor:
        return module(**token_inputs())["logits"]

    plain = loss(model)
    for seed in (1, 2, 1):
        twin = copy.deepcopy(model)
        for own, offset in zip(space.names, space.offsets, strict=True):
            add_noise_([twin.get_parameter(own).data], [seed], [0.05], offsets=[offset])
        with space.perturbed(seed, 0.05):
            result = loss(model)
        assert same_bits(result, loss(twin)) and not torch.equal(result, plain)
        assert_same_bits(model, before)


def test_factors_that_peft_ties_by_memory_are_refused():
    config = LoraConfig(r=3, target_modules=["embed_tokens"], ensure_weight_tying=True, **CAUSAL)
    model = get_peft_model(tiny_models.tiny_llama(), config)
    with pytest.raises(ValueError, match="lora_embedding_.* share memory but are two parameters"):
        ParameterSpace(model)
