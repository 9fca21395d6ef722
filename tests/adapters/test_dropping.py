"""Adapters that are left out at random: masks, scales, and what is refused."""

import pytest
import torch

from adazeta import TTAdapterConfig, ZOAdam, add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.layers import TTAdapter
from adazeta.adapters.linear_form import TTLora
from adazeta.parameters.dropping import droppables, dropping
from tests.helpers.bits import same_bits
from tests.helpers.tiny_models import tiny_bert_cls, tiny_llama

IDS = torch.arange(24).reshape(2, 12) % 90 + 5
FORMS = {
    "bottleneck": {"rank": 2, "bottleneck": 8, "init": "paper"},
    "lora": {"form": "lora", "rank": 2, "init": "paper", "scale": 0.7},
}


def adapted(form, layers=3, drop=0.5):
    model = tiny_llama(layers=layers).eval()
    return add_tt_adapters(model, TTAdapterConfig(**FORMS[form], drop=drop))


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def masks(modules, seeds):
    found = []
    for seed in seeds:
        with dropping(modules, seed):
            found.append([module.enabled for module in modules])
    return torch.tensor(found)


@pytest.mark.parametrize("drop", [0.2, 0.5])
def test_the_mean_over_both_masks_is_what_is_added_without(drop):
    # Not the fused activation, so that all is computed in float64.
    config = TTAdapterConfig(rank=2, bottleneck=8, activation="mish", init="paper", drop=drop)
    adapter = TTAdapter(32, config).double()
    x = torch.randn(3, 32, dtype=torch.float64)
    found = {}
    for seed in range(40):
        with dropping([adapter], seed) as kept:
            found[kept] = adapter(x) if adapter.enabled else x
    mean = (1 - drop) * found[True] + drop * found[False]
    torch.testing.assert_close(mean, adapter(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_one_that_is_left_out_returns_its_input_and_others_add_more(form):
    model = adapted(form)
    modules = droppables(model)
    assert [m for _, m in attached_adapters(model)] == modules and len(modules) == 6
    before, scales = logits(model), [m.scale for m in modules]
    base = logits(tiny_llama(layers=3).eval())
    found = set()
    for seed in range(8):
        with dropping(modules, seed) as kept:
            mask = tuple(m.enabled for m in modules)
            assert kept == any(mask)
            found.add(mask)
            for module, scale, stays in zip(modules, scales, mask, strict=True):
                assert module.scale == (scale / 0.5 if stays else scale)
            assert same_bits(logits(model), base) is (not kept)
    assert len(found) > 4
    with pytest.raises(RuntimeError, match="stop"), dropping(modules, 1):
        raise RuntimeError("stop")
    assert same_bits(logits(model), before)
    for module in modules:
        module.drop = 1 - 2**-53
    with dropping(modules, 0) as kept:
        assert not kept and same_bits(logits(model), base)


def test_each_is_left_out_as_often_as_it_should_be_and_by_itself():
    modules = droppables(adapted("bottleneck", drop=0.2))
    stays = masks(modules, range(2000)).double()
    assert torch.equal(stays, masks(modules, range(2000)).double())
    assert (stays.mean(0) - 0.8).abs().max() < 0.05
    correlation = torch.corrcoef(stays.T) - torch.eye(len(modules))
    assert correlation.abs().max() < 0.1


def test_frozen_adapters_and_heads_stay():
    config = TTAdapterConfig(rank=2, bottleneck=8, tt_head_rank=2, drop=0.5, layers="last:1")
    model = add_tt_adapters(tiny_bert_cls(), config)
    found = droppables(model)
    assert found and all(isinstance(module, TTAdapter | TTLora) for module in found)
    found[0].requires_grad_(False)
    assert droppables(model) == found[1:]
    assert droppables(adapted("bottleneck", drop=0.0)) == []


def batch():
    return {"input_ids": IDS.repeat(2, 1), "labels": torch.arange(4) + 5}


def estimate(together, drop=0.5, steps=3, seen=None):
    model = adapted("bottleneck", drop=drop)
    modules = [m for _, m in attached_adapters(model)]

    def losses(inputs):
        if seen is not None:
            seen.append([module.enabled for module in modules])
        rows = model(inputs["input_ids"]).logits[:, -1]
        return torch.nn.functional.cross_entropy(rows, inputs["labels"], reduction="none")

    optimizer = ZOAdam(
        model, lr=0.0, eps=1e-2, check_eps=False, queries=2, probes_per_forward=together, seed=3
    )
    return [optimizer.accumulate(losses, batch()).projected for _ in range(steps)]


def test_all_evaluations_of_an_estimate_see_one_mask_and_the_next_sees_another():
    seen = []
    estimate(1, seen=seen)
    assert len(seen) == 12
    steps = [seen[start : start + 4] for start in (0, 4, 8)]
    assert all(mask == step[0] for step in steps for mask in step)
    assert len({tuple(step[0]) for step in steps}) == 3
    seen = []
    estimate(1, drop=0.0, seen=seen)
    assert all(all(mask) for mask in seen)


def test_stacked_evaluations_are_those_one_after_another():
    for stacked, single in zip(estimate(4), estimate(1), strict=True):
        torch.testing.assert_close(stacked, single, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(estimate(1)[0], estimate(1, drop=0.0)[0], rtol=1e-2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"drop": 1.0}, "drop must be 0 .off. or more and less than 1, got 1.0"),
        ({"drop": -0.1}, "drop must be 0"),
        ({"drop": float("nan")}, "drop must be 0"),
        ({"drop": 0.2, "form": "informed"}, "an informed one works alone"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TTAdapterConfig(**options)
