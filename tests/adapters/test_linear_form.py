"""The linear form: W x + s (x A) B, on every kind of linear, in every way of evaluating it."""

from dataclasses import asdict

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adazeta.adapters.attach import add_tt_adapters, disable_adapters, remove_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.files import save_pretrained
from adazeta.adapters.linear_form import TTLora
from adazeta.adapters.loading import from_pretrained
from adazeta.estimation.estimator import RandomizedGradientEstimator
from adazeta.forward.suffix import FrozenContext
from adazeta.forward.trunk import SharedTrunk
from adazeta.parameters.space import ParameterSpace
from tests.helpers.bits import same_bits
from tests.helpers.tiny_models import (
    tiny_bert_mlm,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_roberta,
    tiny_t5,
)

IDS = torch.arange(24).reshape(2, 12) % 90 + 5
MAKERS = [tiny_llama, tiny_gpt2, tiny_opt, tiny_bert_mlm, tiny_roberta, tiny_t5]
SEEDS, SCALES = torch.tensor([3, 4, 5]), torch.tensor([0.3, -0.2, 0.1])


def adapted(make=tiny_llama, **settings):
    return add_tt_adapters(make(), TTAdapterConfig(**{"form": "lora", "rank": 3, **settings}))


@torch.no_grad()
def logits(model, ids=IDS):
    if model.config.is_encoder_decoder:
        return model(ids, decoder_input_ids=ids).logits
    return model(ids).logits


def names(model):
    return [name.removesuffix(".tt_adapter") for name, _ in attached_adapters(model)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", MAKERS)
def test_a_new_one_leaves_the_bits_of_the_logits(make, dtype):
    before = logits(make().to(dtype))
    model = add_tt_adapters(make().to(dtype), TTAdapterConfig(form="lora"))
    assert same_bits(logits(model), before)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    assert all(".tt_adapter.cores." in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("make", MAKERS)
def test_equals_the_dense_product(make):
    model = adapted(make, init="paper", scale=0.7, target_modules="all-linear")
    found = logits(model)
    plain = make()
    for name, adapter in attached_adapters(model):
        assert isinstance(adapter, TTLora)
        linear = plain.get_submodule(name.removesuffix(".tt_adapter"))
        change = 0.7 * adapter.to_matrix().detach()
        linear.weight.data += change if isinstance(linear, Conv1D) else change.T
    # The same sums in another order.
    torch.testing.assert_close(found, logits(plain), atol=2e-5, rtol=1e-4)
    with disable_adapters(model):
        assert same_bits(logits(model), logits(make()))
    assert same_bits(logits(remove_adapters(model)), logits(make()))


@pytest.mark.parametrize("make", MAKERS)
def test_stacked_evaluations_are_the_single_ones(make):
    model = adapted(make, target_modules="all-linear")
    space = ParameterSpace(model)
    with space.stacked(SEEDS, SCALES):
        stacked = logits(model, IDS.repeat(3, 1)).view(3, *logits(make()).shape)
    for k in range(3):
        with space.perturbed(int(SEEDS[k]), float(SCALES[k])):
            torch.testing.assert_close(logits(model), stacked[k], atol=1e-5, rtol=1e-4)
    assert (stacked[0] - stacked[1]).abs().max() > 1e-3


def test_each_example_can_have_its_direction():
    model = adapted()
    found = []
    for together in (1, 4):
        estimator = RandomizedGradientEstimator(
            ParameterSpace(model), eps=1e-2, probes="example", probes_per_forward=together
        )

        def losses(batch):
            return model(batch["input_ids"]).logits.square().mean((1, 2))

        found.append(estimator(losses, {"input_ids": IDS}))
    assert len(found[0].seeds) == 2
    assert torch.equal(found[0].seeds, found[1].seeds)
    torch.testing.assert_close(found[0].coefficients, found[1].coefficients, rtol=1e-3, atol=1e-5)


def test_blocks_below_are_shared_and_the_suffix_context_serves():
    model = adapted(lambda: tiny_llama(layers=3), layers="last:1", init="paper")
    trunk = SharedTrunk(model)
    assert trunk.depth == 2
    mask = torch.ones_like(IDS)
    context = FrozenContext(model, 2)
    with torch.no_grad(), context.inputs(IDS, mask) as inputs:
        found = model(**inputs)[0]

    def only_the_last(adapter, args, output):
        y = args[0].clone()
        y[:, -2:] = output[:, -2:]
        return y

    for _, adapter in attached_adapters(model):
        adapter.register_forward_hook(only_the_last)
    torch.testing.assert_close(found, logits(model)[:, -2:], atol=2e-6, rtol=1e-5)


def test_default_targets_are_the_last_linears_of_attention_and_mlp():
    assert names(adapted(tiny_gpt2))[:2] == ["transformer.h.0.attn.c_proj",
                                             "transformer.h.0.mlp.c_proj"]  # fmt: skip
    assert names(adapted(tiny_gpt2, target_modules=["c_attn"], layers=[1])) == [
        "transformer.h.1.attn.c_attn"
    ]
    fused = adapted(tiny_gpt2, target_modules=["c_attn"])
    assert {a.shape.out_features for _, a in attached_adapters(fused)} == {96}
    paper = adapted(target_modules="paper", layers=[0])
    assert [n.rpartition(".")[2] for n in names(paper)] == ["gate_proj", "up_proj", "down_proj"]


class _Block(nn.Module):
    """A block whose experts are linears, to which each token is routed."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(32, 32))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 32)) for _ in range(2)
        )

    def forward(self, x):
        x = x + self.attention(x)
        chosen = (x[..., 0] > x.median()).long()
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y[chosen == number] = expert(x[chosen == number])
        return x + y


class _Routed(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layers = nn.ModuleList([_Block(), _Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_linears_of_experts_are_adapted_and_not_stacked():
    model = add_tt_adapters(_Routed(), TTAdapterConfig(form="lora", rank=2))
    ends = {name.partition(".")[2].partition(".")[2] for name in names(model)}
    assert ends == {"attention.0", "experts.0.2", "experts.1.2"}
    # The rows of an expert are those of several evaluations, mixed.
    assert not ParameterSpace(model).stackable
    bottlenecks = TTAdapterConfig(rank=2, bottleneck=8, target_modules="all-linear")
    assert not ParameterSpace(add_tt_adapters(_Routed(), bottlenecks)).stackable
    assert ParameterSpace(
        add_tt_adapters(_Routed(), TTAdapterConfig(form="lora", target_modules=["attention.0"]))
    ).stackable


def test_rows_that_are_no_batch_are_refused_under_a_stack():
    model = adapted()
    adapter = next(a for _, a in attached_adapters(model))
    with ParameterSpace(model).stacked(SEEDS, SCALES):
        x = torch.zeros(1, 9, 32)
        with pytest.raises(ValueError, match="does not read the rows of a batch"):
            adapter(x, x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 32}, "bottleneck=32 means nothing with form='lora'"),
        ({"activation": "gelu"}, "activation='gelu' means nothing"),
        ({"bias": False}, "bias=False means nothing"),
        ({"form": "lorra"}, "'informed' or 'mixer', got 'lorra'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TTAdapterConfig(**{"form": "lora", **settings})


def test_a_mixture_of_experts_is_no_linear():
    class Model(_Routed):
        pass

    with pytest.raises(ValueError, match="which is not linear"):
        add_tt_adapters(Model(), TTAdapterConfig(form="lora", target_modules=["experts"]))


def test_files_and_configuration_come_back(tmp_path):
    model = adapted(tiny_gpt2, init="paper", target_modules=["c_attn"], modes={96: [8, 12]})
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tiny_gpt2(), tmp_path)
    assert same_bits(logits(loaded), logits(model))
    config = TTAdapterConfig(form="lora", rank=4)
    assert TTAdapterConfig.saved(asdict(config)) == config


def test_gradients_are_those_of_the_dense_product():
    model = adapted(init="paper")
    model(IDS).logits.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients and all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)
