"""A share of the adapters: between the base model and the trained one, whatever their form."""

import copy

import pytest
import torch

from adazeta import adapter_scale, merge_adapters, to_lora
from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from tests.helpers.bits import same_bits
from tests.helpers.tiny_models import tiny_bert_cls, tiny_llama

IDS = torch.arange(24).reshape(2, 12) % 90 + 5
FORMS = {
    "fused bottleneck": {"rank": 2, "bottleneck": 8, "activation": "relu"},
    "other activation": {"rank": 2, "bottleneck": 8, "activation": "mish"},
    "linear bottleneck": {"rank": 2, "bottleneck": 8, "activation": "linear", "bias": False},
    "lora": {"form": "lora", "rank": 3, "scale": 0.7},
    "informed": {"form": "informed", "components": 3, "answers": 2},
    "of its block": {"form": "informed", "components": 3, "answers": 2, "read_layers": []},
}


@torch.no_grad()
def adapted(form):
    """A model whose adapters add something, whatever they start with."""
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**FORMS[form]))
    torch.manual_seed(0)
    for _, adapter in attached_adapters(model):
        for tensor in (*adapter.parameters(), *adapter.buffers()):
            tensor.copy_(torch.randn_like(tensor) * 0.5)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("form", FORMS)
def test_none_is_the_base_and_all_is_the_trained_model_bit_for_bit(form):
    model = adapted(form)
    trained, base = logits(model), logits(tiny_llama().eval())
    assert (trained - base).abs().max() > 1e-3
    for alpha, expected in ((0.0, base), (-0.0, base), (1.0, trained)):
        with adapter_scale(model, alpha):
            assert same_bits(logits(model), expected)
    with adapter_scale(model, 0.5):
        half = logits(model)
    assert min((half - trained).abs().max(), (half - base).abs().max()) > 1e-4
    with adapter_scale(model, 2.0), adapter_scale(model, 0.25):
        assert same_bits(logits(model), half)
    with pytest.raises(RuntimeError, match="stop"), adapter_scale(model, 0.0):
        raise RuntimeError("stop")
    assert same_bits(logits(model), trained)


# An informed adapter that reads other blocks adds nothing by itself.
@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"informed"}))
def test_an_adapter_adds_just_its_share(form):
    model = adapted(form)
    _, adapter = next(attached_adapters(model))
    x = torch.randn(2, 3, model.config.hidden_size)
    width = adapter.shape.out_features if form == "lora" else model.config.hidden_size
    inputs = (torch.randn(2, 3, width), x) if form == "lora" else (x,)
    with torch.no_grad():
        whole = adapter(*inputs) - inputs[0]
        with adapter_scale(model, 0.3):
            part = adapter(*inputs) - inputs[0]
    torch.testing.assert_close(part, 0.3 * whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["lora", "linear bottleneck"])
def test_without_an_activation_it_is_the_mean_of_the_weights(form):
    model, base = adapted(form).double(), tiny_llama().double().state_dict()
    whole = merge_adapters(copy.deepcopy(model)).state_dict()
    for alpha in (0.25, 0.5):
        with adapter_scale(model, alpha):
            within = merge_adapters(copy.deepcopy(model)).state_dict()
            terms = to_lora(model).terms
        outside = merge_adapters(copy.deepcopy(model), alpha=alpha).state_dict()
        assert all(term.scale == pytest.approx(alpha * FORMS[form].get("scale", 1.0))
                   for term in terms.values())  # fmt: skip
        for name, tensor in within.items():
            expected = alpha * whole[name] + (1 - alpha) * base[name]
            # The sums of merging are float32.
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(outside[name], tensor, atol=1e-6, rtol=1e-6)


def test_a_head_in_tensor_train_form_gives_its_share_beside_the_linear():
    config = TTAdapterConfig(form="lora", rank=2, tt_head_rank=2)
    model = add_tt_adapters(tiny_bert_cls().eval(), config)
    trained, base = logits(model), logits(tiny_bert_cls().eval())
    assert (trained - base).abs().max() > 1e-4
    with adapter_scale(model, 0.0):
        assert same_bits(logits(model), base)
    with adapter_scale(model, 0.25):
        # The linear form starts with nothing added, so that only the head differs.
        expected = 0.25 * trained + 0.75 * base
        torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=1e-5)
        within = logits(merge_adapters(copy.deepcopy(model)))
    torch.testing.assert_close(within, expected, atol=1e-5, rtol=1e-5)
    assert same_bits(logits(model), trained)


def test_what_means_nothing_is_refused():
    with (
        pytest.raises(ValueError, match="must be finite, got nan"),
        adapter_scale(adapted("lora"), float("nan")),
    ):
        pass
    with pytest.raises(ValueError, match="no TT adapters"), adapter_scale(tiny_llama(), 0.5):
        pass
    config = TTAdapterConfig(form="lora", rank=2, modules_to_save=["lm_head"])
    model = add_tt_adapters(tiny_llama(), config)
    with adapter_scale(model, 1.0):
        logits(model)
    with pytest.raises(ValueError, match="modules_to_save"), adapter_scale(model, 0.5):
        pass
