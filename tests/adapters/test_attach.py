import copy
import pickle
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from adazeta.adapters.attach import (
    add_tt_adapters,
    disable_adapters,
    print_trainable_parameters,
    remove_adapters,
    trainable_parameters,
)
from adazeta.adapters.attached import attached_adapters, has_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import TTAdapter, TTLinear
from tests.helpers.bits import same_bits
from tests.helpers.tiny_models import (
    tiny_bert_cls,
    tiny_bert_mlm,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_roberta,
)

TINY = [tiny_bert_mlm, tiny_roberta, tiny_opt, tiny_gpt2, tiny_llama]
SMALL: dict[str, Any] = {"rank": 2, "bottleneck": 8}
IDS = torch.arange(24).reshape(2, 12) % 90 + 5


def adapters_of(model: nn.Module) -> list[TTAdapter]:
    adapters = [adapter for _, adapter in attached_adapters(model)]
    assert all(isinstance(adapter, TTAdapter) for adapter in adapters)
    return adapters  # type: ignore[return-value]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("builder", TINY)
def test_new_adapters_leave_the_logits_as_they_are(
    builder: Callable[[], PreTrainedModel], dtype: torch.dtype
) -> None:
    model = builder().to(dtype)
    keys = set(model.state_dict())
    before = logits(model)
    assert add_tt_adapters(model) is model
    assert same_bits(logits(model), before)
    added = set(model.state_dict()) - keys
    assert keys < set(model.state_dict())
    assert all(".tt_adapter." in key for key in added)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(trainable) == added
    assert {p.dtype for p in trainable.values()} == {torch.float32}


@pytest.mark.parametrize("target", ["block", "paper", "all-linear"])
@pytest.mark.parametrize("builder", TINY)
def test_random_adapters_act_and_can_be_switched_off_and_removed(
    builder: Callable[[], PreTrainedModel], target: str
) -> None:
    model = builder()
    keys, before = list(model.state_dict()), logits(model)
    add_tt_adapters(model, TTAdapterConfig(**SMALL, init="paper", target_modules=target))
    changed = logits(model)
    assert not torch.equal(changed, before)
    with disable_adapters(model):
        assert torch.equal(logits(model), before)
        with disable_adapters(model):
            pass
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), changed)
    remove_adapters(model)
    assert torch.equal(logits(model), before)
    assert list(model.state_dict()) == keys
    assert not has_adapters(model)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_adapters_act_on_the_chosen_side() -> None:
    model = add_tt_adapters(
        tiny_llama(), TTAdapterConfig(**SMALL, init="paper", target_modules="paper")
    )
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    x = torch.randn(1, 3, 32)
    gate = nn.functional.linear(mlp.gate_proj.tt_adapter(x), mlp.gate_proj.weight)
    torch.testing.assert_close(mlp.gate_proj(x), gate)
    y = torch.randn(1, 3, 64)
    down = mlp.down_proj.tt_adapter(nn.functional.linear(y, mlp.down_proj.weight))
    torch.testing.assert_close(mlp.down_proj(y), down)


def test_adapters_are_switched_on_again_after_an_error() -> None:
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL))
    with pytest.raises(RuntimeError, match="inside"), disable_adapters(model):
        raise RuntimeError("inside")
    assert all(adapter.enabled for _, adapter in attached_adapters(model))


def test_initial_values_depend_on_the_seed_alone() -> None:
    config = TTAdapterConfig(**SMALL, init="paper")
    one, two = (add_tt_adapters(tiny_llama(), config, seed=3) for _ in range(2))
    three = add_tt_adapters(tiny_llama(), config, seed=4)
    assert torch.equal(logits(one), logits(two))
    assert not torch.equal(logits(one), logits(three))
    cores = torch.stack([adapter.down.cores[0] for adapter in adapters_of(one)])
    assert len(torch.unique(cores)) == cores.numel()


def test_adding_twice_is_an_error_that_changes_nothing() -> None:
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL))
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"call remove_adapters\(model\) first"):
        add_tt_adapters(model)
    assert list(model.state_dict()) == keys
    add_tt_adapters(remove_adapters(model), TTAdapterConfig(**SMALL))


def test_a_configuration_that_does_not_fit_changes_nothing() -> None:
    for settings in ({"target_modules": ["x"]}, {"modules_to_save": ["x"]}, {"rank": [2]}):
        model = tiny_llama()
        with pytest.raises(ValueError, match="no module is named 'x'|need 5 inner ranks, got 1"):
            add_tt_adapters(model, TTAdapterConfig(**settings))
        assert all(p.requires_grad for p in model.parameters())
        assert not has_adapters(model)


def test_removing_from_a_model_without_adapters_is_an_error() -> None:
    with pytest.raises(ValueError, match="the model has no TT adapters"):
        remove_adapters(tiny_llama())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_adapters_of_their_own(duplicate: Callable) -> None:
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, init="paper"))
    before = logits(model)
    clone = duplicate(model)
    assert torch.equal(logits(clone), before)
    with torch.no_grad():
        for adapter in adapters_of(clone):
            adapter.up.cores[0].add_(1.0)
    assert not torch.equal(logits(clone), before)
    assert torch.equal(logits(model), before)
    remove_adapters(clone)
    assert torch.equal(logits(model), before)


def test_adapters_on_some_layers() -> None:
    model = add_tt_adapters(tiny_llama(layers=3), TTAdapterConfig(**SMALL, layers="last:1"))
    assert [name for name, _ in attached_adapters(model)] == [
        "model.layers.2.self_attn.o_proj.tt_adapter",
        "model.layers.2.mlp.down_proj.tt_adapter",
    ]


def test_extra_modules_are_trained_in_full() -> None:
    model = add_tt_adapters(
        tiny_bert_cls(), TTAdapterConfig(**SMALL, modules_to_save=["classifier"])
    )
    base = [n for n, p in model.named_parameters() if p.requires_grad and "tt_adapter" not in n]
    assert base == ["classifier.weight", "classifier.bias"]


def test_head_as_tensor_train() -> None:
    model = tiny_bert_cls(num_labels=3)
    before = logits(model)
    add_tt_adapters(model, TTAdapterConfig(**SMALL, tt_head_rank=2))
    head = model.get_submodule("classifier.tt_adapter")
    assert isinstance(head, TTLinear)
    assert head.bias is not None
    assert not torch.equal(logits(model), before)
    x = torch.randn(2, 32)
    torch.testing.assert_close(
        model.get_submodule("classifier")(x), x @ head.to_matrix() + head.bias
    )
    with disable_adapters(model):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(remove_adapters(model)), before)


def test_head_as_tensor_train_keeps_the_dtype_of_the_base() -> None:
    model = add_tt_adapters(tiny_bert_cls().bfloat16(), TTAdapterConfig(**SMALL, tt_head_rank=2))
    assert logits(model).dtype == torch.bfloat16
    assert model.get_parameter("classifier.tt_adapter.bias").dtype == torch.float32


def test_first_order_training_lowers_the_loss() -> None:
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=4, bottleneck=16))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_adapters_of_offloaded_linears_are_where_they_run() -> None:
    model = tiny_llama()
    before = logits(model)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert model.model.layers[0].mlp.down_proj.weight.is_meta
    add_tt_adapters(model, TTAdapterConfig(**SMALL))
    assert {p.device.type for a in adapters_of(model) for p in a.parameters()} == {"cpu"}
    assert torch.equal(logits(model), before)


def llama_2_7b() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=4096,
                intermediate_size=11008,
                num_hidden_layers=32,
                num_attention_heads=32,
            )
        )


def test_parameters_of_the_papers_llama() -> None:
    model = add_tt_adapters(llama_2_7b(), TTAdapterConfig(target_modules="paper"))
    adapters = adapters_of(model)
    assert len(adapters) == 96
    assert {adapter.num_parameters for adapter in adapters} == {6360}
    assert {p.device.type for p in model.parameters()} == {"meta"}
    trainable, total = trainable_parameters(model)
    assert trainable == 610_560
    assert total == 6_738_415_616 + trainable


@pytest.mark.parametrize("target", ["paper", "block"])
def test_parameters_of_the_papers_roberta(target: str) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    with torch.device("meta"):
        model = RobertaForMaskedLM(RobertaConfig(**sizes, intermediate_size=4096))
    config = TTAdapterConfig(target_modules=target, modes={1024: [8, 8, 16], 64: [8, 8]})
    add_tt_adapters(model, config)
    adapters = adapters_of(model)
    assert len(adapters) == 48
    assert {adapter.num_parameters for adapter in adapters} == {2848}
    assert {adapter.down.shape.num_parameters for adapter in adapters} == {880}
    assert trainable_parameters(model)[0] == 136_704


def test_printed_counts(capsys: pytest.CaptureFixture[str]) -> None:
    print_trainable_parameters(nn.Linear(9, 1))
    assert capsys.readouterr().out == (
        "trainable params: 10 || all params: 10 || trainable%: 100.0000\n"
    )


@pytest.mark.gpu
def test_initial_values_and_logits_on_the_accelerator(device: torch.device) -> None:
    config = TTAdapterConfig(**SMALL, init="paper")
    here = add_tt_adapters(tiny_llama(), config)
    there = add_tt_adapters(tiny_llama().to(device), config)
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert b.device.type == device.type
        assert torch.equal(a, b.cpu())
    with torch.no_grad():
        torch.testing.assert_close(there(IDS.to(device)).logits.cpu(), logits(here))
    plain = tiny_llama().to(device)
    with torch.no_grad():
        before = plain(IDS.to(device)).logits
        add_tt_adapters(plain)
        assert same_bits(plain(IDS.to(device)).logits, before)
