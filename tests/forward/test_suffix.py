import pytest
import torch

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.forward.suffix import FrozenContext
from adazeta.tasks.prompt import PromptTask
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_opt, tiny_tokenizer
from tests.helpers.token_batches import LENGTHS, on_last_tokens_only, prompts

SMALL = {"rank": 2, "bottleneck": 8, "init": "paper"}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_opt])
@pytest.mark.parametrize("layers", [None, "last:2"])
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_equals_the_whole_model_with_adapters_on_the_last_tokens(make, layers, cache, tmp_path):
    model = add_tt_adapters(make(layers=3), TTAdapterConfig(**SMALL, layers=layers))
    ids, mask = prompts()
    context = FrozenContext(model, 2, cache=cache, folder=tmp_path)
    with torch.no_grad():
        for _ in range(2):  # the second time from what was kept
            with context.inputs(ids, mask) as inputs:
                found = model(**inputs)[0]
        hooks = on_last_tokens_only(model, 2)
        for row, length in enumerate(LENGTHS):
            expected = model(input_ids=ids[row : row + 1, :length])[0][0, -2:]
            # The same sums over keys in another order, and padding that is masked.
            torch.testing.assert_close(found[row], expected, atol=2e-6, rtol=1e-5)
        for hook in hooks:
            hook.remove()
        everywhere = model(input_ids=ids[:1])[0][0, -2:]
    assert (everywhere - found[0]).abs().max() > 1e-4  # it does make a difference


def test_contexts_are_computed_once():
    model = add_tt_adapters(tiny_llama(layers=3), TTAdapterConfig(**SMALL, layers="last:1"))
    ids, mask = prompts()
    context = FrozenContext(model, 2)
    with context.inputs(ids, mask):
        pass
    below = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: below.append(1))
    with torch.no_grad(), context.inputs(ids.repeat(2, 1), mask.repeat(2, 1)) as inputs:
        assert model(**inputs)[0].shape[:2] == (8, 2)
    assert not below and "forward" not in vars(model.model.layers[0])


def test_what_is_kept_does_not_depend_on_the_batch(tmp_path):
    model = add_tt_adapters(tiny_llama(layers=3), TTAdapterConfig(**SMALL, layers="last:1"))
    ids, mask = prompts()
    alone = FrozenContext(model, 2)
    found = alone._examples(ids, mask)
    for row, length in enumerate(LENGTHS):
        (single,) = alone._run(
            *(
                torch.nn.functional.pad(x[row : row + 1, :length], (0, 16 - length))
                for x in (ids, mask)
            )
        )
        assert torch.equal(single.cache, found[row].cache)
        assert torch.equal(single.hidden, found[row].hidden)


def test_contexts_on_disk_serve_the_next_run(tmp_path):
    model = add_tt_adapters(tiny_llama(layers=3), TTAdapterConfig(**SMALL, layers="last:1"))
    ids, mask = prompts()
    first = FrozenContext(model, 2, cache="disk", folder=tmp_path)._examples(ids, mask)
    again = FrozenContext(model, 2, cache="disk", folder=tmp_path)
    again._run = None  # not to be called
    for one, other in zip(first, again._examples(ids, mask), strict=True):
        assert torch.equal(one.cache, other.cache) and torch.equal(one.hidden, other.hidden)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    changed = FrozenContext(model, 2, cache="disk", folder=tmp_path)
    assert not torch.equal(changed._examples(ids, mask)[0].cache, first[0].cache)


def test_an_exception_leaves_the_model_whole():
    model = add_tt_adapters(tiny_llama(layers=3), TTAdapterConfig(**SMALL, layers="last:1"))
    ids, mask = prompts()
    with torch.no_grad():
        before = model(input_ids=ids)[0]
        with pytest.raises(ZeroDivisionError):
            with FrozenContext(model, 2).inputs(ids, mask):
                raise ZeroDivisionError
        assert torch.equal(model(input_ids=ids)[0], before)


def test_task_with_adapters_on_the_suffix():
    words = {0: "terrible", 1: "great"}
    task = PromptTask(tiny_tokenizer(), "{text} it was", words, adapt="suffix")
    plain = PromptTask(tiny_tokenizer(), "{text} it was", words)
    records = [{"text": "a dull film", "label": 0}, {"text": "funny", "label": 1}]
    inputs = task.collate([task.encode(record) for record in records])
    model = tiny_llama(layers=3)
    with torch.no_grad():
        base = plain.logits(model, inputs)
        assert torch.equal(task.logits(model, inputs), base)  # no adapters: nothing to restrict
        add_tt_adapters(model, TTAdapterConfig(**{**SMALL, "init": "zero"}))
        torch.testing.assert_close(task.logits(model, inputs), base, atol=1e-6, rtol=1e-5)
    assert task.to_dict()["adapt"] == "suffix"


@pytest.mark.parametrize(
    "template, adapt, message",
    [
        ("{text} it was", "prefix", "prefix"),
        ("it was {text}", "suffix", "no text after a column"),
        ("{text} it was {mask}", "suffix", "no text after a column"),
    ],
)
def test_templates_without_a_suffix(template, adapt, message):
    with pytest.raises(ValueError, match=message):
        PromptTask(tiny_tokenizer(), template, ["terrible", "great"], adapt=adapt)


def test_bad_suffix_length():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL))
    with pytest.raises(ValueError, match="got 0"):
        FrozenContext(model, 0)
