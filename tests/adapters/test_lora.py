"""Adapters as a LoRA of PEFT, merged into weights, and as a GGUF file; and what is refused."""

import copy
import json
import subprocess
import sys

import gguf
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import adazeta
from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.attached import attached_adapters, has_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.gguf_lora import save_gguf_lora
from adazeta.adapters.lora import to_lora
from adazeta.adapters.merging import merge_adapters
from adazeta.forward.contexts import context_of
from adazeta.methods import make_optimizer
from tests.helpers.bits import same_bits
from tests.helpers.tiny_models import (
    tiny_bart,
    tiny_bert_cls,
    tiny_bert_mlm,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_t5,
)

# peft 0.21 asks transformers for what it has given another name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.arange(24).reshape(2, 12) % 90 + 5
MAKERS = [tiny_llama, tiny_gpt2, tiny_opt, tiny_bert_mlm, tiny_t5, tiny_bart]
FORMS = [
    {"form": "lora", "scale": 0.7},
    {"form": "lora", "target_modules": "all-linear"},
    {"activation": "linear", "bottleneck": 8},
    {"activation": "linear", "bottleneck": 8, "bias": False, "scale": 2.5},
]


def adapted(make=tiny_llama, **settings):
    config = TTAdapterConfig(**{"rank": 3, "init": "paper", **settings})
    return add_tt_adapters(make(), config)


@torch.no_grad()
def logits(model):
    if model.config.is_encoder_decoder:
        return model(input_ids=IDS, decoder_input_ids=IDS).logits
    return model(input_ids=IDS).logits


# What merge_adapters refuses itself.
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")
@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("make", MAKERS)
def test_peft_computes_what_the_adapters_do(make, settings, tmp_path):
    model = adapted(make, **settings)
    expected = logits(model)
    to_lora(model).save(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    # float32 sums in another order; T5's logits are ten times larger than the others'.
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
    assert same_bits(logits(model), expected)
    assert (expected - logits(make())).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [FORMS[0], FORMS[1], FORMS[3]])
@pytest.mark.parametrize("make", MAKERS)
def test_merged_weights_compute_what_the_adapters_do(make, settings):
    model = adapted(make, **settings)
    expected = logits(model)
    assert merge_adapters(model) is model
    assert not has_adapters(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert model.state_dict().keys() == make().state_dict().keys()


def test_inputs_of_linears_merge_as_well():
    model = adapted(activation="linear", bias=False, target_modules="paper")
    expected = logits(model)
    lora = to_lora(model)
    torch.testing.assert_close(logits(merge_adapters(model)), expected, atol=1e-5, rtol=1e-5)
    assert lora.config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]


def test_alpha_scales_what_is_added():
    model = adapted(form="lora")
    plain, whole = tiny_llama(), merge_adapters(copy.deepcopy(model))
    half = merge_adapters(copy.deepcopy(model), alpha=0.5)
    name = "model.layers.0.mlp.down_proj"
    one, other = (m.get_submodule(name).weight for m in (plain, whole))
    torch.testing.assert_close(half.get_submodule(name).weight, (one + other) / 2)
    assert same_bits(logits(merge_adapters(copy.deepcopy(model), alpha=0.0)), logits(plain))
    with pytest.raises(ValueError, match="alpha must be finite, got nan"):
        merge_adapters(model, alpha=float("nan"))


def test_a_tensor_train_head_is_merged():
    model = adapted(tiny_bert_cls, form="lora", tt_head_rank=3)
    expected = logits(model)
    with pytest.raises(ValueError, match="stands in for the whole linear"):
        to_lora(model)
    torch.testing.assert_close(logits(merge_adapters(model)), expected, atol=1e-5, rtol=1e-5)


def test_the_files_hold_exactly_the_factors(tmp_path):
    model = adapted(tiny_gpt2, form="lora", scale=0.5)
    to_lora(model).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 1.5)
    assert config["fan_in_fan_out"] and not config["lora_bias"]
    assert config["target_modules"] == ["c_proj"]
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert len(state) == 8
    name, adapter = next(attached_adapters(model))
    key = f"base_model.model.{name.removesuffix('.tt_adapter')}"
    a, b, _ = adapter.current_factors()
    assert torch.equal(state[f"{key}.lora_A.weight"], a.T)
    assert torch.equal(state[f"{key}.lora_B.weight"], b.T)


def test_ranks_may_differ(tmp_path):
    # The rank at the cut: the second of 8 * 16 on 5 * 8, the first of 7 on 7 * 9.
    settings = {"rank": [2, 3, 4], "target_modules": ["o_proj", "down_proj"],
                "modes": {32: [4, 8], 64: [8, 8]}}  # fmt: skip
    model = adapted(form="lora", **settings, scale=0.3)
    extra = next(attached_adapters(model))[1]
    extra.shape = type(extra.shape).of(32, 32, [2, 1, 4], [4, 8], [4, 8])
    extra.cores = nn.ParameterList(torch.randn(s) for s in extra.shape.core_shapes)
    expected = logits(model)
    lora = to_lora(model)
    assert lora.config["rank_pattern"] == {"model.layers.0.self_attn.o_proj": 1}
    lora.save(tmp_path)
    found = logits(peft.PeftModel.from_pretrained(tiny_llama(), tmp_path))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_modules_to_save_go_along(tmp_path):
    model = adapted(tiny_bert_cls, form="lora", modules_to_save=["classifier"], task_type="SEQ_CLS")
    model.classifier.weight.data += 0.3
    to_lora(model).save(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_bert_cls(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)


class _Quantised(nn.Linear):
    """A linear whose weight is no floating tensor, as quantised ones are."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight / scale).round().char(), requires_grad=False)
        self.step = scale

    def forward(self, x):
        return x @ (self.weight.float() * self.step).T


def quantised(**settings):
    model = tiny_llama()
    for layer in model.model.layers:
        layer.mlp.down_proj = _Quantised(layer.mlp.down_proj)
    return add_tt_adapters(model, TTAdapterConfig(rank=3, init="paper", **settings))


REFUSED = [
    (lambda: adapted(), "have the activation 'relu' between"),
    (lambda: adapted(form="informed"), "informed adapters act on what a whole block returns"),
    (lambda: quantised(activation="linear", bias=False), "a _Quantised, is quantised"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_is_no_low_rank_term_is_refused_with_the_reason(make, message):
    model = make()
    before = logits(model)
    for write in (to_lora, merge_adapters):
        with pytest.raises(ValueError, match=message):
            write(model)
    assert has_adapters(model) and same_bits(logits(model), before)


def test_adapters_on_the_last_tokens_are_refused():
    model = adapted(form="lora")
    context_of(model, 2)
    for write in (to_lora, merge_adapters):
        with pytest.raises(ValueError, match="the end of a prompt only .its last 2 tokens"):
            write(model)


def test_a_lora_on_quantised_weights_is_exported_but_not_merged():
    model = quantised(form="lora")
    assert len(to_lora(model).terms) == 4
    with pytest.raises(ValueError, match="is quantised: there is no exact sum"):
        merge_adapters(model)


def test_shared_weights_are_not_merged():
    model = adapted(form="lora", target_modules=["lm_head"])
    with pytest.raises(ValueError, match="lm_head is shared with another module"):
        merge_adapters(model)


def test_a_bias_needs_a_place():
    model = adapted(activation="linear")
    with pytest.raises(ValueError, match="adds a bias and this Linear has none; train with bias: "):
        merge_adapters(model)
    with pytest.raises(ValueError, match="no place for the bias"):
        save_gguf_lora(to_lora(model), model.config, "unused")


def test_a_gguf_file_has_llama_cpps_names_and_order(tmp_path):
    model = adapted(form="lora", scale=0.5, target_modules="all-linear")
    lora = to_lora(model)
    save_gguf_lora(lora, model.config, tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "llama" and values["general.type"] == "adapter"
    assert values["adapter.type"] == "lora" and values["adapter.lora.alpha"] == 1.5
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert len(tensors) == 2 * len(lora.terms)
    down = lora.terms["model.layers.1.mlp.down_proj"]
    assert torch.equal(tensors["blk.1.ffn_down.weight.lora_a"], down.a.T)
    assert torch.equal(tensors["blk.1.ffn_down.weight.lora_b"], down.b.T)
    # Rotary pairs: transformers has (first halves, second halves) of a head, llama.cpp pairs.
    keys = lora.terms["model.layers.0.self_attn.k_proj"].b.T
    found = tensors["blk.0.attn_k.weight.lora_b"]
    assert torch.equal(found[0::2][:4], keys[:4]) and torch.equal(found[1::2][:4], keys[4:8])
    with pytest.raises(ValueError, match="a model of the type 'bert' cannot be written"):
        bert = adapted(tiny_bert_mlm, form="lora")
        save_gguf_lora(to_lora(bert), bert.config, tmp_path / "b.gguf")


_ELSEWHERE = """
import json, sys, torch, peft, transformers
worst = {}
for folder, kind in json.loads(sys.argv[1]).items():
    expected = torch.load(folder + "/logits.pt")
    ids = torch.arange(24).reshape(2, 12) % 90 + 5
    make = getattr(transformers, kind).from_pretrained
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(make(folder + "/base"), folder + "/lora").eval()
        merged = make(folder + "/merged").eval()
        for model in (loaded, merged):
            worst[f"{kind} {type(model).__name__}"] = float(
                (model(input_ids=ids).logits - expected).abs().max()
            )
assert not any(name.partition(".")[0] == "adazeta" for name in sys.modules)
print(json.dumps(worst))
"""


@pytest.mark.slow
def test_a_new_process_without_this_package_gets_the_same_logits(tmp_path):
    families = {
        "AutoModelForCausalLM": tiny_llama,
        "GPT2LMHeadModel": tiny_gpt2,
        "AutoModelForMaskedLM": tiny_bert_mlm,
    }
    folders = {}
    for kind, make in families.items():
        folder = tmp_path / kind
        make().save_pretrained(folder / "base")
        model = add_tt_adapters(make(), TTAdapterConfig(form="lora", rank=3))
        optimizer = make_optimizer(model, "zo-adam", lr=0.05, eps=1e-2)
        for _ in range(20):
            optimizer.step(lambda model=model: model(input_ids=IDS, labels=IDS).loss)
        expected = logits(model)
        assert (expected - logits(make())).abs().max() > 1e-2  # it was trained
        torch.save(expected, folder / "logits.pt")
        to_lora(model).save(folder / "lora")
        merge_adapters(model).save_pretrained(folder / "merged")
        folders[str(folder)] = kind
    found = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, json.dumps(folders)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    worst = json.loads(found.stdout.splitlines()[-1])
    assert len(worst) == 6 and max(worst.values()) < 1e-5, worst


def test_public_names():
    assert adazeta.to_lora is to_lora and adazeta.merge_adapters is merge_adapters
