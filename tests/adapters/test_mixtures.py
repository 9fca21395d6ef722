from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import CONFIG_NAME, save_pretrained
from adazeta.adapters.loading import from_pretrained
from adazeta.adapters.placement import Placement, find_placements
from adazeta.parameters.space import ParameterSpace
from adazeta.support.files import read_object
from tests.helpers.tiny_models import SIZES

GROUPED = {**SIZES, "num_key_value_heads": 2}
IDS = torch.arange(24).reshape(2, 12) + 5
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 6, "head_dim": 4, "n_group": 1, "topk_group": 1, "n_routed_experts": 4,
}  # fmt: skip
DBRX = {
    "vocab_size": 50, "d_model": 24, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
    "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 24},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
}  # fmt: skip
TWO = {"num_experts_per_tok": 2}

# Class, its configuration's settings, and what "block" must choose in the last block.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "mixtral": ("Mixtral", {**GROUPED, **TWO, "num_local_experts": 4}, ["self_attn.o_proj", "mlp"]),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **GROUPED, **TWO, "num_experts": 4, "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 20,
        },
        ["self_attn.o_proj", "mlp"],
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {**GROUPED, **TWO, "num_experts": 4, "moe_intermediate_size": 20, "head_dim": 6},
        ["self_attn.o_proj", "mlp"],
    ),
    "gpt_oss": (
        "GptOss",
        {**GROUPED, **TWO, "num_local_experts": 4, "head_dim": 6},
        ["self_attn.o_proj", "mlp"],
    ),
    "olmoe": ("Olmoe", {**GROUPED, **TWO, "num_experts": 4}, ["self_attn.o_proj", "mlp"]),
    "deepseek_v3": (
        "DeepseekV3",
        {**SIZES, **TWO, **LATENT, "moe_intermediate_size": 20, "first_k_dense_replace": 1},
        ["self_attn.o_proj", "mlp"],
    ),
    "granitemoe": (
        "GraniteMoe",
        {**GROUPED, **TWO, "num_local_experts": 4},
        ["self_attn.o_proj", "block_sparse_moe"],
    ),
    "granitemoeshared": (
        "GraniteMoeShared",
        {**GROUPED, **TWO, "num_local_experts": 4, "shared_intermediate_size": 20},
        ["self_attn.o_proj", "block_sparse_moe", "shared_mlp.output_linear"],
    ),
    "phimoe": (
        "Phimoe", {**GROUPED, **TWO, "num_local_experts": 4}, ["self_attn.o_proj", "mlp"]
    ),
    "dbrx": ("Dbrx", DBRX, ["norm_attn_norm.attn.out_proj", "ffn.experts"]),
    "glm4_moe": (
        "Glm4Moe",
        {
            **GROUPED, **TWO, "n_routed_experts": 4, "moe_intermediate_size": 20, "n_group": 1,
            "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 6,
        },
        ["self_attn.o_proj", "mlp"],
    ),
    "jamba": (
        "Jamba",
        {
            **GROUPED, **TWO, "num_experts": 4, "expert_layer_period": 2, "expert_layer_offset": 1,
            "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
            "mamba_d_state": 4,
        },
        ["self_attn.o_proj", "feed_forward"],
    ),
    "jetmoe": (
        "JetMoe",
        {
            "vocab_size": 50, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        ["mlp", "self_attention"],
    ),
}  # fmt: skip


def made(kind: str, sizes: dict[str, Any]) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def llama4() -> PreTrainedModel:
    sizes = {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 40,
        "interleave_moe_layer_step": 1, "head_dim": 6,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = transformers.Llama4TextConfig(**sizes)
        model = transformers.Llama4ForCausalLM(config).eval()
        for parameter in model.parameters():  # the experts are left uninitialised
            nn.init.normal_(parameter, std=0.02)
    return model


MADE = {name: (lambda k=k, s=s: made(k, s), e) for name, (k, s, e) in FAMILIES.items()}
MADE["llama4"] = (llama4, ["self_attn.o_proj", "feed_forward"])


@pytest.mark.parametrize("family", MADE)
def test_adapters_act_on_what_the_experts_make_together(family: str) -> None:
    build, expected = MADE[family]
    model = build()
    with torch.no_grad():
        before = model(IDS).logits
    add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8))
    names = [name.removesuffix(".tt_adapter") for name, _ in attached_adapters(model)]
    last = [name.rpartition(".1.")[2] for name in names if ".1." in name]
    assert last == expected
    called: list[str] = []
    for name, adapter in attached_adapters(model):
        adapter.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)  # a new adapter changes nothing
        assert sorted(called) == sorted(name for name, _ in attached_adapters(model))
        for name, adapter in attached_adapters(model):
            if name.endswith(f".1.{expected[-1]}.tt_adapter"):
                adapter.get_parameter("up.bias").fill_(0.5)
        assert not torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "llama4"])
def test_stacked_directions_compute_what_single_ones_do(family: str) -> None:
    model = MADE[family][0]()
    add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8, init="paper"))
    space = ParameterSpace(model)
    seeds, scales = torch.tensor([3, 3, 5]), torch.tensor([0.01, -0.01, 0.01])
    with torch.no_grad():
        with space.stacked(seeds, scales):
            together = model(IDS.repeat(3, 1)).logits.view(3, *IDS.shape, -1)
        for index, (seed, scale) in enumerate(zip(seeds, scales, strict=True)):
            with space.perturbed(int(seed), float(scale)):
                alone = model(IDS).logits
            # Sums over other numbers of rows round differently; float32 has 1e-7 of logits of 1.
            torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=1e-5)


def test_saved_adapters_come_back(tmp_path: Path) -> None:
    build = MADE["mixtral"][0]
    model = add_tt_adapters(build(), TTAdapterConfig(rank=2, bottleneck=8, init="paper"))
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(build(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("family", "expected"),
    [("mixtral", ["self_attn.o_proj"]), ("qwen2_moe", ["self_attn.o_proj", "mlp.shared_expert"])],
)
def test_adapters_of_earlier_versions_go_where_they_were(
    tmp_path: Path, family: str, expected: list[str]
) -> None:
    build = MADE[family][0]
    config = TTAdapterConfig(rank=2, bottleneck=8, init="paper", experts=False)
    model = add_tt_adapters(build(), config)
    save_pretrained(model, tmp_path)
    path = tmp_path / CONFIG_NAME
    text = path.read_text()
    assert '  "experts": false,\n' in text
    path.write_text(text.replace('  "experts": false,\n', ""))
    assert "experts" not in read_object(path)
    loaded = from_pretrained(build(), tmp_path)
    names = [name for name, _ in attached_adapters(loaded) if ".1." in name]
    assert [name.partition(".1.")[2].startswith(e) for name, e in zip(names, expected, strict=True)]
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_mixture_can_be_named() -> None:
    model = MADE["mixtral"][0]()
    assert find_placements(model, ["mlp"], [1]) == [Placement("model.layers.1.mlp", "output", 24)]
    with pytest.raises(ValueError, match="MixtralExperts, which is not linear"):
        find_placements(model, ["experts"])


def test_experts_side_by_side_are_a_mixture_and_blocks_are_not() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(8, 3)
            self.experts = nn.ModuleList([Expert() for _ in range(3)])

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Linear(8, 8)
            self.moe = Mixture()
            self.chain = nn.ModuleList([Expert(), Expert()])  # in the block itself: one by one

    model = nn.Module()
    model.layers = nn.ModuleList([Block(), Block()])
    chosen = [p for p in find_placements(model) if p.name.startswith("layers.1.")]
    assert chosen == [
        Placement("layers.1.moe", "output", 8),
        # The block may choose among them itself, so their rows are not stacked.
        Placement("layers.1.chain.1.down", "output", routed=True),
    ]
