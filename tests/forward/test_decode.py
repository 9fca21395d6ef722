"""Population decoding: the texts of each member, whatever shares its batch."""

import pytest
import torch

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.adapters.attach import disable_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.forward.decode import Decoding, decode
from adazeta.forward.decode_check import check_decoding
from adazeta.forward.gumbel import gumbel
from adazeta.forward.prompt_states import PromptStates
from adazeta.parameters.space import ParameterSpace
from tests.helpers.tiny_models import CAUSAL, EOS, PAD, VOCABULARY_SIZE, tiny_llama, tiny_opt
from tests.helpers.token_batches import ENDS, PROMPTS, check_members_write_as_alone, left

SMALL = {"rank": 2, "bottleneck": 8, "init": "paper"}


def adapted(make=tiny_llama, **config):
    model = make(layers=3)
    with torch.no_grad():  # a new model repeats its last token; let the blocks have a say
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "emb" not in name and "wte" not in name:
                parameter.mul_(12)
    return add_tt_adapters(model, TTAdapterConfig(**SMALL, **config))


def on_answers_only(model, begin):
    """Let the adapters leave the tokens before ``begin`` as they are, the obvious way."""

    def keep_others(_, args, output):
        where = (torch.arange(output.shape[-2]) >= begin)[:, None]
        return torch.where(where, output, args[0])

    return [a.register_forward_hook(keep_others) for _, a in attached_adapters(model)]


@pytest.mark.parametrize("make", CAUSAL)
@pytest.mark.parametrize("ends", [(EOS,), ENDS])
def test_greedy_is_what_generate_of_transformers_writes(make, ends):
    model = make()
    ids, mask = left(PROMPTS)
    found = decode(model, ids, mask, Decoding(9, ends=ends))
    whole = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=9, do_sample=False,
        eos_token_id=list(ends), pad_token_id=PAD,
    )  # fmt: skip
    expected = []
    for row in whole[:, ids.shape[1] :].tolist():
        ended = [place for place, token in enumerate(row) if token in ends]
        expected.append(row[: ended[0]] if ended else row)
    assert found == expected
    assert len({len(row) for row in found}) > 1 or ends == (EOS,)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_member_writes_what_it_writes_alone(shared, temperature):
    model = adapted()
    space = ParameterSpace(model)
    ids, mask = left(PROMPTS)
    decoding = Decoding(12, temperature=temperature, ends=ENDS)
    noise = torch.arange(100, 100 + len(PROMPTS))
    members = [(3, 0.4), (3, -0.4), (8, 0.4)]
    if shared:
        seeds, scales = zip(*members, strict=True)
    else:  # each prompt of each member has a direction of its own
        seeds = [seed * 10 + row for seed, _ in members for row in range(len(PROMPTS))]
        scales = [scale for _, scale in members for _ in PROMPTS]
    with space.stacked(torch.tensor(seeds), torch.tensor(scales)):
        assert space.groups == len(seeds)
        found = decode(
            model, ids.repeat(3, 1), mask.repeat(3, 1), decoding, seeds=noise.repeat(3),
            groups=len(seeds), keep_groups=space.keep_groups,
        )  # fmt: skip
    assert space.groups == 1
    expected = []
    for member, (seed, scale) in enumerate(members):
        for row, prompt in enumerate(PROMPTS):
            with space.perturbed(seed if shared else seeds[4 * member + row], scale):
                alone = decode(model, *left([prompt]), decoding, seeds=noise[row : row + 1])
            expected += alone
    assert found == expected
    assert len({tuple(row) for row in found}) >= 5  # members do differ
    assert len({len(row) for row in found}) >= 3  # and rows left the batch at different times


def test_rows_and_groups_that_have_ended_leave_the_batch():
    model = adapted()
    space = ParameterSpace(model)
    ids, mask = left(PROMPTS)
    sizes, seeds = [], torch.arange(4)
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[0])
    )
    with space.stacked(seeds, torch.full((4,), 0.4)):
        decode(model, ids, mask, Decoding(12, ends=ENDS), groups=4, keep_groups=space.keep_groups)
    handle.remove()
    assert sizes[0] == 4 and sizes[-1] < 4
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("make", CAUSAL)
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_adapters_on_the_answer_alone_equal_the_plain_forward(make, cache, tmp_path):
    model = adapted(make)
    states = PromptStates(model, cache=cache, folder=tmp_path)
    ids, mask = left(PROMPTS)
    seen: list[torch.Tensor] = []
    for _ in range(2):
        seen.clear()
        found = decode(model, ids, mask, Decoding(6), start=states, seen=seen)
    assert states.computed == len(PROMPTS)  # one prefill, whatever follows
    for row, prompt in enumerate(PROMPTS):
        handles = on_answers_only(model, len(prompt) - 1)
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([prompt + found[row]])).logits[0]
        for handle in handles:
            handle.remove()
        logits = torch.stack([each[row] for each in seen])
        # The same sums over keys in another order, and padding that is masked.
        expected = whole[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
        assert expected.argmax(-1).tolist() == found[row]
    with disable_adapters(model):
        assert decode(model, ids, mask, Decoding(6)) != found


def test_prompt_states_serve_members_and_directions_of_examples():
    model = adapted(layers="last:1")
    check_members_write_as_alone(model, ParameterSpace(model), PromptStates(model))


def test_sampling_does_not_depend_on_the_batch():
    model = tiny_opt()
    decoding = Decoding(8, temperature=1.0)
    seeds = torch.tensor([5, 6, 7, 5])
    whole = decode(model, *left(PROMPTS), decoding, seeds=seeds)
    for row, prompt in enumerate(PROMPTS):
        alone = decode(model, *left([prompt]), decoding, seeds=seeds[row : row + 1])
        assert alone == whole[row : row + 1]


def test_gumbel_noise_draws_from_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    noise = torch.cat([gumbel(torch.arange(500), place, 4) for place in range(20)])
    drawn = (logits + noise).argmax(-1).bincount(minlength=4) / len(noise)
    # Ten thousand draws: four standard errors are 0.02.
    torch.testing.assert_close(drawn, logits.softmax(-1), atol=0.02, rtol=0)


def test_gumbel_noise_of_a_position_is_its_own():
    seeds = torch.tensor([3, 9])
    first, second = (gumbel(seeds, place, VOCABULARY_SIZE) for place in (0, 1))
    assert torch.equal(gumbel(seeds[1:], 1, VOCABULARY_SIZE)[0], second[1])
    assert not torch.equal(first, second)


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens"):
        Decoding(0)
    with pytest.raises(ValueError, match="temperature"):
        Decoding(1, temperature=-1.0)
    ids, mask = left(PROMPTS)
    with pytest.raises(ValueError, match="seeds"):
        decode(tiny_llama(), ids, mask, Decoding(1, temperature=1.0))
    with pytest.raises(ValueError, match="left"):
        decode(tiny_llama(), ids.flip(1), mask.flip(1), Decoding(1))
    with pytest.raises(ValueError, match="adapt='all'"):
        PromptStates(tiny_llama())


@pytest.mark.parametrize("make", CAUSAL)
def test_the_first_batch_is_compared_with_whole_forwards(make, monkeypatch):
    model = adapted(make)
    ids, mask = left(PROMPTS)
    check_decoding(model, ids, mask, Decoding(6))
    check_decoding(model, ids, mask, Decoding(1), PromptStates(model))
    forward = model.forward

    def forgetful(*args, cache=None, **kwargs):
        """A model that goes on from a cache as if it were half as large."""
        if cache is not None and cache.get_seq_length():
            for layer in cache.layers:
                layer.values = layer.values * 0.5
        return forward(*args, cache=cache, **kwargs)

    monkeypatch.setattr(model, "forward", forgetful)
    with pytest.raises(ValueError, match="token by token"):
        check_decoding(model, ids, mask, Decoding(6))
