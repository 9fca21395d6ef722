"""Models whose parameters are read in unusual ways, and inputs for every model of the tests."""

import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests.helpers import tiny_models
from tests.helpers.tiny_models import BOS, EOS, PAD, VOCABULARY_SIZE, seeded

CAUSAL = {"task_type": TaskType.CAUSAL_LM}
CONFIGS = {
    "lora": LoraConfig(r=3, target_modules=["q_proj", "v_proj"], **CAUSAL),
    "dora": LoraConfig(r=3, target_modules=["o_proj"], use_dora=True, **CAUSAL),
    # Its factors lie in ParameterDicts, and PEFT reads them there.
    "lora of an embedding": LoraConfig(
        r=3, target_modules=["word_embeddings", "query"], task_type=TaskType.SEQ_CLS
    ),
    "trained modules": LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["norm"], **CAUSAL
    ),
    "ia3": IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
    ),
    "prompt": PromptTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "prefix": PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "projected prefix": PrefixTuningConfig(
        num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16, **CAUSAL
    ),
}


@seeded
def tiny_mixtral() -> MixtralForCausalLM:
    """Mixture of experts whose weights are fused in one parameter of the module around them."""
    config = MixtralConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return MixtralForCausalLM(config)


@seeded
def tiny_vit() -> ViTForImageClassification:
    """Class token and positions held by a module that also has modules with parameters."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
    )
    return ViTForImageClassification(config)


@seeded
def tiny_whisper() -> WhisperForConditionalGeneration:
    """Returns a view of a weight as a module's output, and reads another module's weight."""
    config = WhisperConfig(
        vocab_size=VOCABULARY_SIZE,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=8,
        max_source_positions=8,
        max_target_positions=32,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
    )
    return WhisperForConditionalGeneration(config).requires_grad_(True)


def token_inputs(rows: int = 3, width: int = 7) -> dict[str, Tensor]:
    ids = torch.arange(rows * width).view(rows, width) * 5 % 40 + len(tiny_models.SPECIAL_TOKENS)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    """Inputs of a transformers model, without labels."""
    generator = torch.Generator().manual_seed(8)
    kind = model.config.model_type
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    decoder = {"decoder_input_ids": torch.tensor([[BOS, 9, 10], [BOS, 11, 9]])}
    if kind == "whisper":
        return {"input_features": torch.randn(2, 8, 16, generator=generator), **decoder}
    inputs = token_inputs()
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[BOS, 9, 10], [BOS, 11, 9], [BOS, 8, 8]])
    else:
        inputs["use_cache"] = False
    return inputs


def logits_of(model: nn.Module) -> Tensor:
    inputs = inputs_of(model)
    dtype = next(model.parameters()).dtype
    inputs = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    return model(**inputs)["logits"]


TRANSFORMERS = {
    "bert": tiny_models.tiny_bert_mlm,
    "roberta": tiny_models.tiny_roberta,
    "opt": tiny_models.tiny_opt,
    "gpt2": tiny_models.tiny_gpt2,
    "llama": tiny_models.tiny_llama,
    "t5": tiny_models.tiny_t5,
    "bart": tiny_models.tiny_bart,
    "mixtral": tiny_mixtral,
    "vit": tiny_vit,
    "whisper": tiny_whisper,
}


class Toy(nn.Module):
    """Base of the models below: an input for them, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)

    def hidden(self) -> Tensor:
        return self.embed(torch.tensor([[1, 2, 2], [9, 0, 1]]))


class BorrowedWeight(Toy):
    """Multiplies with the embedding's weight without a call of the embedding."""

    def forward(self) -> Tensor:
        return functional.linear(self.hidden(), self.embed.weight).square().mean()


class BorrowedByChild(Toy):
    """A child reads the weight of a sibling, which it does not hold as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _Reader()
        self.head.source = (self.embed,)  # a tuple hides it from nn.Module

    def forward(self) -> Tensor:
        return self.head(self.hidden()).square().mean()


class _Reader(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.source[0].weight.data.t()


class Attention(Toy):
    """torch's own attention and encoder layer read the weights of their children."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self) -> Tensor:
        x = self.hidden()
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.lstm(self.layer(x))[0].square().mean()


class Containers(Toy):
    """Parameters in containers, in nested owners, one of them in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(2)])
        self.named = nn.ModuleDict({"inner": nn.ParameterDict({"a": torch.randn(4)})})
        self.outer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.norm.register_parameter("shared", self.outer.weight)
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self) -> Tensor:
        x = self.hidden() * self.scale
        for part in self.parts:
            x = self.norm(self.outer(x @ part)) + self.named["inner"]["a"]
        return (x @ self.norm.shared).square().mean()


class ReturnsItsWeight(Toy):
    """Modules that return their own weights, also in a structure; each is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _Prompt()
        self.second = _Prompt()

    def forward(self) -> Tensor:
        one, two = self.first(), self.second()
        again = self.first()
        total = one["views"][0] + 2 * two["views"][0] + 3 * again["views"][0]
        return (self.hidden() * total).square().mean()


class _Prompt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))

    def forward(self) -> dict[str, list[Tensor]]:
        return {"views": [self.weight[1:]]}


class Recursive(Toy):
    """Calls itself, so that one module is running twice at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, depth: int = 2) -> Tensor:
        if not depth:
            return self.hidden() @ self.weight
        return (self(depth - 1) @ self.weight).sin() if depth < 2 else self(1).square().mean()


TOYS = [
    BorrowedWeight,
    BorrowedByChild,
    Attention,
    Containers,
    ReturnsItsWeight,
    Recursive,
]
