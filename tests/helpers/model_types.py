"""Tiny random models of many types of transformers, by the names of their settings.

A type's configuration is made small by the names that its settings have (:data:`SIZES`); what more
a type needs stands in :data:`OWN`.
"""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

VOCABULARY_SIZE = 96
HIDDEN = 32

# Sizes that mean the same in every type that has a setting of this name.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "decoder_vocab_size": VOCABULARY_SIZE,
    "src_vocab_size": VOCABULARY_SIZE,
    "tgt_vocab_size": VOCABULARY_SIZE,
    "hidden_size": HIDDEN,
    "d_model": HIDDEN,
    "n_embd": HIDDEN,
    "dim": HIDDEN,
    "emb_dim": HIDDEN,
    "embedding_size": HIDDEN,
    "embed_dim": HIDDEN,
    "word_embed_proj_dim": HIDDEN,
    "true_hidden_size": HIDDEN,
    "intra_bottleneck_size": HIDDEN,
    "attention_hidden_size": HIDDEN,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "dff": 48,
    "n_inner": 48,
    "hidden_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "ffn_hidden_size": 48,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "kv_channels": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "top_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}

# What else a type needs. None: the type's own value, not the one of SIZES.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["axk1", "deepseek_v2", "deepseek_v3", "minicpm3"],
        {"num_key_value_heads": 4},
    ),
    "bamba": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "attn_layer_indices": [1],
    },
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_d_state": 8},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": HIDDEN},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 8,
        "num_experts": None,
        "top_k_experts": None,
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layer_types": ["mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 2,
        "mamba_d_state": 8,
        "num_key_value_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "ernie4_5_moe": {"moe_k": 2},
    "roc_bert": {
        "pronunciation_vocab_size": 10,
        "shape_vocab_size": 10,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "t5": {"decoder_start_token_id": 0},
    "longt5": {"decoder_start_token_id": 0},
    "switch_transformers": {"decoder_start_token_id": 0},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "led": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "pegasus_x": {"block_size": 4, "num_global_tokens": 2},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "longformer": {"attention_window": 4},
    "mobilebert": {"embedding_size": 16, "num_feedforward_networks": 1},
}


AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}


def config_of(kind: str) -> PreTrainedConfig:
    """Return a tiny configuration of a type."""
    known = AutoConfig.for_model(kind).to_dict()
    sizes = {name: size for name, size in SIZES.items() if name in known} | OWN.get(kind, {})
    return AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if v is not None})


def tiny_model(task: str, kind: str) -> PreTrainedModel:
    """Build a random model of a type; no weight, bias or scale is 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        model = getattr(transformers, AUTO[task]).from_config(config_of(kind))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


CAUSAL = """
    afmoe axk1 bamba bart bert biogpt blenderbot bloom codegen cohere cohere2 ctrl deepseek_v2
    deepseek_v3 diffllama doge electra ernie4_5_moe exaone4 falcon falcon_h1 falcon_mamba gemma
    gemma2 gemma3_text gemma3n_text gemma4_text glm gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj
    granite granitemoe jamba jetmoe lfm2 llama mamba minicpm3 mistral mixtral modernbert-decoder
    mpt nemotron olmo2 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    recurrent_gemma smollm3 stablelm whisper xglm xlm xlnet zamba
""".split()
MASKED = """
    albert bart bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert
    electra ernie esm eurobert flaubert fnet jina_embeddings_v3 layoutlm longformer luke mbart
    megatron-bert mobilebert modernbert mpnet mvp nomic_bert nystromformer rembert roberta
    roberta-prelayernorm roc_bert roformer tapas xlm xlm-roberta xlm-roberta-xl xmod yoso
""".split()
ENCODER_DECODER = """
    bart bigbird_pegasus blenderbot blenderbot-small led longt5 m2m_100 marian mbart mt5 mvp
    nllb-moe pegasus pegasus_x plbart seamless_m4t switch_transformers t5 umt5
""".split()
KINDS = [
    *(("causal", kind) for kind in CAUSAL),
    *(("masked", kind) for kind in MASKED),
    *(("encoder-decoder", kind) for kind in ENCODER_DECODER),
]
