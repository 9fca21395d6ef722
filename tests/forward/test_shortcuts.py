import logging

import pytest
import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.forward.logits import candidate_logits, logits_at
from adazeta.forward.losses import losses_only
from adazeta.forward.shortcuts import findings
from adazeta.forward.trunk import SharedTrunk
from tests.helpers.packing import batch, trainer_of
from tests.helpers.runs import crash_after
from tests.helpers.tiny_models import VOCABULARY_SIZE, tiny_llama

WORDS = torch.tensor([7, 50, 21])
HEADS = {}


def head(function):
    HEADS[function.__name__] = function
    return function


@head
def plain(model, hidden):
    return model.head(hidden)


@head
def a_scale_after_it(model, hidden):
    return model.head(hidden) * 0.3


@head
def soft_capped(model, hidden):
    return torch.tanh(model.head(hidden) / 2) * 2


@head
def a_bias_of_the_vocabulary_after_it(model, hidden):
    return model.head(hidden) + model.bias


@head
def a_norm_over_the_vocabulary(model, hidden):
    return functional.layer_norm(model.head(hidden), (VOCABULARY_SIZE,))


@head
def a_second_projection(model, hidden):
    return model.head(hidden) @ model.second


@head
def words_that_are_forbidden(model, hidden):
    logits = model.head(hidden).clone()
    logits[..., 50] = -1e4
    return logits


@head
def a_bias_of_the_position(model, hidden):
    return model.head(hidden) + torch.arange(hidden.shape[1])[:, None]


@head
def positions_that_are_moved(model, hidden):
    return model.head(hidden).roll(1, 1)


@head
def its_weight_alone_is_used(model, hidden):
    return functional.linear(hidden, model.head.weight)


@head
def it_is_given_all_tokens_in_a_row(model, hidden):
    return model.head(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)


@head
def it_is_given_the_time_first(model, hidden):
    return model.head(hidden.transpose(0, 1)).transpose(0, 1)


@head
def it_is_called_twice(model, hidden):
    return model.head(hidden) + model.head(hidden.flip(-1))


@head
def it_is_called_by_name(model, hidden):
    return model.head(input=hidden)


class Model(nn.Module):
    """An embedding, and what a head makes of it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(VOCABULARY_SIZE, 16)
            self.head = nn.Linear(16, VOCABULARY_SIZE)
            self.bias = nn.Parameter(torch.randn(VOCABULARY_SIZE))
            self.second = nn.Parameter(torch.randn(VOCABULARY_SIZE, VOCABULARY_SIZE))
        self.tail = HEADS[name]
        self.forwards = 0

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, input_ids: Tensor) -> CausalLMOutput:
        self.forwards += 1
        return CausalLMOutput(logits=self.tail(self, self.embed(input_ids).cumsum(1)))


@pytest.mark.parametrize("width", [4, 9])  # as many tokens as texts: a transposed shape fits too
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_logits_are_the_models_own_whatever_follows_its_head(name, width):
    model = Model(name)
    ids = torch.randint(5, VOCABULARY_SIZE, (4, width))
    rows, positions = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 0, 2])
    own = model(ids).logits[rows, positions]
    for _ in range(2):
        # A product of 16 terms in another order.
        found = candidate_logits(model, {"input_ids": ids}, positions, WORDS)
        torch.testing.assert_close(found, own[:, WORDS], atol=2e-5, rtol=1e-5)
        found = logits_at(model, {"input_ids": ids}, rows, positions)
        torch.testing.assert_close(found, own, atol=2e-5, rtol=1e-5)
    before = model.forwards
    candidate_logits(model, {"input_ids": ids}, positions, WORDS)
    assert model.forwards == before + 1  # it is compared once
    assert "forward" not in vars(model.head)


def test_what_is_left_out_is_said_once(caplog):
    model, ids = Model("positions_that_are_moved"), torch.randint(5, 90, (4, 9))
    with caplog.at_level(logging.INFO, logger="adazeta.forward.shortcuts"):
        for _ in range(3):
            candidate_logits(model, {"input_ids": ids}, torch.tensor([3, 1, 0, 2]), WORDS)
    assert caplog.text.count("computed in full") == 1


@torch.no_grad()
def test_more_logits_than_tokens_are_refused():
    model = Model("plain")
    model.tail = lambda model, hidden: model.head(functional.pad(hidden, (0, 0, 2, 0)))
    with pytest.raises(ValueError, match="not known which belong to which; pass loss_fn"):
        candidate_logits(model, {"input_ids": torch.ones(2, 5).long()}, torch.tensor([1, 2]), WORDS)


@pytest.mark.parametrize("upper", [False, True])
def test_a_resumed_run_takes_the_findings_over(upper, tmp_path, monkeypatch):
    def make(folder):
        model = tiny_llama()
        if upper:
            add_tt_adapters(
                model, TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers="last:1")
            )
        return trainer_of(model, tmp_path / folder, save_strategy="steps", save_steps=2)

    whole = make("whole")
    whole.train()
    first = make("parts")
    crash_after(first, 2)

    def never(*args, **kwargs):
        raise AssertionError("compared again")

    monkeypatch.setattr("adazeta.forward.trunk.attempt", never)
    monkeypatch.setattr("adazeta.forward.logits.attempt", never)
    monkeypatch.setattr("adazeta.forward.losses.attempt", never)
    second = make("parts")
    second.train(resume_from_checkpoint=True)
    kept = second.zo_optimizer.estimator.findings.shortcuts
    assert kept == whole.zo_optimizer.estimator.findings.shortcuts and all(kept.values())
    assert ("shared trunk" in kept) == upper
    assert findings(second.model).items() <= kept.items()
    for one, other in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


class Remembering(nn.Module):
    """A block that leaves its input where the next one finds it."""

    def __init__(self, memory: list[Tensor], reads: bool) -> None:
        super().__init__()
        self.linear, self.memory, self.reads = nn.Linear(16, 16), memory, reads

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.reads:
            return self.linear(hidden_states + self.memory[-1])
        self.memory.append(hidden_states)
        return self.linear(hidden_states)


@torch.no_grad()
def test_what_lower_blocks_leave_behind_is_no_trunk(caplog):
    memory: list[Tensor] = []
    model = nn.Module()
    model.blocks = nn.ModuleList([Remembering(memory, False), Remembering(memory, True)])
    model.blocks[0].requires_grad_(False)
    trunk = SharedTrunk(model)

    def losses(batch):
        hidden = batch["x"]
        for block in model.blocks:
            hidden = block(hidden)
        return hidden.square().mean(-1)

    with caplog.at_level(logging.INFO, logger="adazeta.forward.trunk"):
        assert trunk.run(losses, {"x": torch.randn(4, 16)}) is None
    assert "the result changes" in caplog.text and trunk.depth == 0


@torch.no_grad()
def test_labels_of_the_same_token_and_of_the_next():
    ids = torch.randint(5, VOCABULARY_SIZE, (3, 6))
    inputs = {"input_ids": ids, "labels": ids}

    class Own(Model):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> CausalLMOutput:
            outputs = super().forward(input_ids)
            if labels is not None:
                cut = -1 if self.next else None
                outputs.loss = functional.cross_entropy(
                    outputs.logits[:, :cut].flatten(0, 1), labels[:, int(self.next) :].flatten()
                )
            return outputs

    for after in (False, True):
        model = Own("plain")
        model.next = after
        own = torch.stack([model(row[None], row[None]).loss for row in ids])
        # Sums of 112 exponentials in another order.
        torch.testing.assert_close(losses_only(model, inputs), own, atol=1e-5, rtol=1e-5)
        both = losses_only(model, inputs, shift=not after)
        assert not torch.allclose(both, own, atol=1e-2)


PEFT = [
    LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("config", PEFT, ids=lambda config: config.peft_type.value)
@torch.no_grad()
def test_virtual_tokens_are_no_tokens_of_the_text(config):
    model = get_peft_model(tiny_llama(), config).eval()
    inputs = {k: v for k, v in batch(9, 4, 6).items() if k != "positions"}
    inputs["labels"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    widths = inputs["attention_mask"].sum(-1).tolist()
    texts = [{k: v[row : row + 1, :n] for k, v in inputs.items()} for row, n in enumerate(widths)]
    own = torch.stack([model(**text).loss for text in texts])
    # Sums of 112 exponentials, and over padded keys, in another order.
    torch.testing.assert_close(losses_only(model, inputs), own, atol=1e-5, rtol=1e-5)
    last = [model(**text).logits[0, -1, WORDS] for text in texts]
    tokens = {k: v for k, v in inputs.items() if k != "labels"}
    found = candidate_logits(model, tokens, torch.tensor(widths) - 1, WORDS)
    torch.testing.assert_close(found, torch.stack(last), atol=1e-5, rtol=1e-5)
