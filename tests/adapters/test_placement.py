from collections.abc import Callable

import pytest
import transformers
from torch import nn
from transformers import PreTrainedModel

from adazeta.adapters.placement import Placement, find_head, find_placements
from adazeta.models.structure import linear_widths
from tests.helpers.tiny_models import (
    SIZES,
    tiny_bert_cls,
    tiny_bert_mlm,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_roberta,
)

GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
T5_SIZES = {
    "vocab_size": 50, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4
}  # fmt: skip
BART_SIZES = {
    "vocab_size": 50, "d_model": 24, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "eos_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
DISTILBERT_SIZES = {"vocab_size": 50, "dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4}


def build(model: str, config: str, **sizes: object) -> Callable[[], PreTrainedModel]:
    def builder() -> PreTrainedModel:
        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return builder


# Model, and what the "block" preset must choose in each block of each stack.
BLOCKS = {
    "llama": (tiny_llama, {"model.layers": ["self_attn.o_proj", "mlp.down_proj"]}),
    "bert": (tiny_bert_mlm, {"bert.encoder.layer": ["attention.output.dense", "output.dense"]}),
    "roberta": (
        tiny_roberta,
        {"roberta.encoder.layer": ["attention.output.dense", "output.dense"]},
    ),
    "opt": (tiny_opt, {"model.decoder.layers": ["self_attn.out_proj", "fc2"]}),
    "gpt2": (tiny_gpt2, {"transformer.h": ["attn.c_proj", "mlp.c_proj"]}),
    "gpt-neox": (
        build("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZES),
        {"gpt_neox.layers": ["attention.dense", "mlp.dense_4h_to_h"]},
    ),
    "qwen2": (
        build("Qwen2ForCausalLM", "Qwen2Config", **SIZES, num_key_value_heads=2),
        {"model.layers": ["self_attn.o_proj", "mlp.down_proj"]},
    ),
    # Its attention is wider than its residual stream.
    "gemma": (
        build("GemmaForCausalLM", "GemmaConfig", **GROUPED),
        {"model.layers": ["self_attn.o_proj", "mlp.down_proj"]},
    ),
    "mistral": (
        build("MistralForCausalLM", "MistralConfig", **GROUPED),
        {"model.layers": ["self_attn.o_proj", "mlp.down_proj"]},
    ),
    "phi": (
        build("PhiForCausalLM", "PhiConfig", **SIZES),
        {"model.layers": ["self_attn.dense", "mlp.fc2"]},
    ),
    "distilbert": (
        build("DistilBertForMaskedLM", "DistilBertConfig", **DISTILBERT_SIZES),
        {"distilbert.transformer.layer": ["attention.out_lin", "ffn.lin2"]},
    ),
    "t5": (
        build("T5ForConditionalGeneration", "T5Config", **T5_SIZES),
        {
            "encoder.block": ["layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"],
            "decoder.block": [
                "layer.0.SelfAttention.o",
                "layer.1.EncDecAttention.o",
                "layer.2.DenseReluDense.wo",
            ],
        },
    ),
    "bart": (
        build("BartForConditionalGeneration", "BartConfig", **BART_SIZES),
        {
            "model.encoder.layers": ["self_attn.out_proj", "fc2"],
            "model.decoder.layers": ["self_attn.out_proj", "encoder_attn.out_proj", "fc2"],
        },
    ),
    # No attention at all: only the last linear that writes to the residual stream.
    "mamba": (
        build("MambaForCausalLM", "MambaConfig", **SIZES),
        {"backbone.layers": ["mixer.out_proj"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BLOCKS)
def test_block_preset_finds_the_residual_writers(case: str) -> None:
    builder, expected = BLOCKS[case]
    model = builder()
    names = [
        f"{stack}.{index}.{name}"
        for stack, members in expected.items()
        for index in range(len(model.get_submodule(stack)))
        for name in members
    ]
    assert find_placements(model, "block") == [Placement(name, "output") for name in names]


@pytest.mark.parametrize(
    ("builder", "prefix", "expected"),
    [
        (
            tiny_llama,
            "model.layers.1.mlp.",
            {"gate_proj": "input", "up_proj": "input", "down_proj": "output"},
        ),
        (tiny_opt, "model.decoder.layers.1.", {"fc1": "input", "fc2": "output"}),
        (tiny_gpt2, "transformer.h.1.", {"mlp.c_fc": "input", "mlp.c_proj": "output"}),
        (
            tiny_bert_mlm,
            "bert.encoder.layer.1.",
            {"attention.output.dense": "output", "output.dense": "output"},
        ),
        (
            BLOCKS["gpt-neox"][0],
            "gpt_neox.layers.1.mlp.",
            {"dense_h_to_4h": "input", "dense_4h_to_h": "output"},
        ),
    ],
)
def test_paper_preset(
    builder: Callable[[], PreTrainedModel], prefix: str, expected: dict[str, str]
) -> None:
    chosen = find_placements(builder(), "paper")
    assert len(chosen) == 2 * len(expected)
    assert {p.name: p.side for p in chosen if ".1." in p.name} == {
        prefix + name: side for name, side in expected.items()
    }


def test_all_linear_leaves_out_output_embedding_and_head() -> None:
    llama = [p.name for p in find_placements(tiny_llama(), "all-linear")]
    assert len(llama) == 14
    assert "lm_head" not in llama
    bert = [p.name for p in find_placements(tiny_bert_cls(), "all-linear")]
    assert "bert.pooler.dense" in bert
    assert "classifier" not in bert


def test_suffixes_and_regular_expressions_as_in_peft() -> None:
    model = tiny_llama()
    by_suffix = find_placements(model, ["q_proj", "mlp.down_proj"])
    by_expression = find_placements(model, r".*\.(q_proj|down_proj)")
    assert by_suffix == by_expression
    assert len(by_suffix) == 4
    assert {p.side for p in by_suffix} == {"output"}


def test_layers_restrict_every_way_to_choose() -> None:
    model = tiny_llama(layers=3)
    for target in ("block", "paper", "all-linear", ["o_proj"], r".*o_proj"):
        names = [p.name for p in find_placements(model, target, "last:2")]
        assert names
        assert all(name.startswith(("model.layers.1.", "model.layers.2.")) for name in names)
        assert find_placements(model, target, [2, 1]) == find_placements(model, target, "last:2")
        assert find_placements(model, target, [0]) == find_placements(model, target, [-3])


def test_shared_blocks_are_taken_once() -> None:
    block = nn.ModuleDict({"attention": nn.Linear(8, 8), "mlp": nn.Linear(8, 8)})
    model = nn.Module()
    model.layers = nn.ModuleList([block, block])
    assert [p.name for p in find_placements(model, "all-linear")] == [
        "layers.0.attention",
        "layers.0.mlp",
    ]
    assert [p.name for p in find_placements(model)] == ["layers.0.mlp"]


def test_quantised_linears_count_by_their_widths() -> None:
    class Quantised(nn.Module):
        in_features = 8
        out_features = 6

    assert linear_widths(Quantised()) == (8, 6)
    assert linear_widths(nn.Embedding(8, 6)) is None
    # Its weight is used without a call, so a hook on it would never run.
    assert linear_widths(nn.MultiheadAttention(8, 2).out_proj) is None


@pytest.mark.parametrize(
    ("target", "layers", "message"),
    [
        (["nothing"], None, "no module is named 'nothing'"),
        (r"nothing.*", None, r"'lm_head'. Name the ones to adapt: target_modules="),
        (["mlp"], None, "selects 'model.layers.0.mlp', a LlamaMLP, which is not linear"),
        ("block", "last:3", "asks for block -3 of 'model.layers', which has 2"),
        ("block", [2], "asks for block 2 of 'model.layers', which has 2"),
        (["lm_head"], [0], r"with layers=\[0\] selects no linear"),
        ("block", [], "selects no linear"),
    ],
)
def test_errors_name_the_value_and_the_remedy(
    target: str | list[str], layers: str | list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_placements(tiny_llama(), target, layers)


def test_model_without_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match="some of its 1 linears are '0'"):
        find_placements(model)
    with pytest.raises(ValueError, match="has no nn.ModuleList of blocks"):
        find_placements(model, ["0"], "last:1")
    with pytest.raises(ValueError, match="no linear at all"):
        find_placements(nn.ReLU())


def test_head_of_a_classifier() -> None:
    assert find_head(tiny_bert_cls()) == [Placement("classifier", "head")]
    with pytest.raises(ValueError, match="leave tt_head_rank unset"):
        find_head(tiny_llama())
