import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.directions.table import space_for
from adazeta.forward.trunk import SharedTrunk
from adazeta.support.batches import repeat_rows
from tests.helpers.tiny_models import (
    CLASSES,
    LANGUAGE,
    tiny_bart,
    tiny_bert_mlm,
    tiny_llama,
    tiny_t5,
)
from tests.helpers.token_batches import batch, everything_of, losses_of

SMALL = {"rank": 2, "bottleneck": 8, "init": "paper"}


def adapted(make, layers="last:1", **options):
    return add_tt_adapters(make(), TTAdapterConfig(**SMALL, layers=layers, **options))


@pytest.mark.parametrize("make", LANGUAGE + CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharing_changes_no_bit(make, dtype):
    model = adapted(lambda: make().to(dtype))
    trunk, run = SharedTrunk(model), everything_of(model)
    inputs = batch(lengths=[7, 4, 6], classes=make in CLASSES)
    with torch.no_grad():
        whole, logits = run(inputs)
        assert whole.shape == (3,)
        for _ in range(2):
            with trunk.replay(trunk.run(run, inputs)):
                shared, shared_logits = run(inputs)
            assert torch.equal(shared, whole) and torch.equal(shared_logits, logits)
        assert trunk.depth == 1
        stack = repeat_rows(inputs, 2)
        twice, _ = run(stack)
        with trunk.replay(trunk.run(run, inputs), times=2):
            assert torch.equal(run(stack)[0], twice)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("make", LANGUAGE + CLASSES)
def test_keeping_equals_computing(make, kind, tmp_path):
    model = adapted(make)
    run = losses_of(model)
    trunk = SharedTrunk(model, cache=kind, cache_folder=tmp_path)
    inputs = batch(rows=4, tokens=32, lengths=[32, 5, 31, 17], classes=make in CLASSES)
    if make is tiny_bart:  # labels of as many columns as the text might be anything
        inputs["labels"] = inputs["labels"][:, :9]
    with torch.no_grad():
        whole = run(inputs)
        for _ in range(2):  # the second time from what was kept
            with trunk.replay(trunk.run(run, inputs)):
                shared = run(inputs)
            # The width of this batch is the one at which examples are computed for keeping, so
            # not a bit differs; at others the sums over keys are split elsewhere.
            assert torch.equal(shared, whole)
    assert trunk.depth == 1 and (trunk.cache.hits, trunk.cache.misses) == (4, 4)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_kept_does_not_depend_on_the_batch_it_came_in(kind, tmp_path):
    model = adapted(tiny_llama)
    run, inputs = losses_of(model), batch(rows=6, tokens=40, lengths=[40, 5, 3, 33, 32, 5])
    found = []
    for k, order in enumerate([[0, 1, 2, 3, 4, 5], [5, 3, 1], [2, 4, 0]]):
        trunk = SharedTrunk(model, cache=kind, cache_folder=tmp_path / str(k))
        width = max(int(inputs["attention_mask"][order].sum(-1).max()), 5)
        part = {name: value[order][:, :width] for name, value in inputs.items()}
        hidden = trunk.run(run, part)
        assert hidden.shape == (len(order), width, 32)
        rows = dict(zip(order, hidden, strict=True))
        lengths = inputs["attention_mask"].sum(-1).tolist()
        found.append({row: states[: lengths[row]] for row, states in rows.items()})
        padding = inputs["attention_mask"][order][:, :width] == 0
        assert (hidden[padding] == 0).all()
    for row, states in (found[1] | found[2]).items():
        torch.testing.assert_close(states, found[0][row], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        plain = SharedTrunk(model).run(run, inputs)
    for row, states in found[0].items():  # the same sums, split at another width
        torch.testing.assert_close(states, plain[row, : len(states)], atol=1e-6, rtol=1e-5)


def test_lower_blocks_run_once():
    model = adapted(tiny_llama)
    trunk, run, inputs = SharedTrunk(model), losses_of(model), batch()
    trunk.run(run, inputs)  # with the trial of the first batch
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    hidden = trunk.run(run, inputs)
    assert len(calls) == 1
    for _ in range(3):
        with trunk.replay(hidden):
            run(inputs)
    assert len(calls) == 1 and "forward" not in vars(model.model.layers[0])


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_kept_states_are_found_again_in_other_batches_and_runs(kind, tmp_path):
    model = adapted(tiny_llama)
    run, inputs = losses_of(model), batch(lengths=[7, 4, 6])
    part = {name: value[1:2, :4] for name, value in inputs.items()}
    trunk = SharedTrunk(model, cache=kind, cache_folder=tmp_path)
    expected = trunk.run(run, inputs)[1:2, :4]
    if kind == "disk":
        model = adapted(tiny_llama)
        run = losses_of(model)
        trunk = SharedTrunk(model, cache=kind, cache_folder=tmp_path)
        trunk.run(run, batch(rows=1, seed=1))  # the trial
    model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("ran again"))
    assert torch.equal(trunk.run(run, part), expected)


def test_a_changed_model_is_never_found(tmp_path):
    inputs = batch()

    def misses(model):
        trunk = SharedTrunk(model, cache="disk", cache_folder=tmp_path)
        trunk.run(losses_of(model), inputs)
        return trunk.cache.misses

    assert misses(adapted(tiny_llama)) == 3 and misses(adapted(tiny_llama)) == 0
    for change in (
        lambda m: m.model.layers[0].mlp.up_proj.weight.data.mul_(1.01),
        lambda m: m.model.embed_tokens.weight.data[7].add_(0.1),
        lambda m: m.bfloat16(),
    ):
        model = adapted(tiny_llama)
        change(model)
        assert misses(model) == 3
    assert misses(adapted(lambda: tiny_llama(layers=3), layers="last:1")) == 3
    assert misses(adapted(lambda: tiny_llama(layers=3), layers="last:2")) == 3
    # What lies above the trunk does not count, nor how it is trained.
    model = adapted(tiny_llama)
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.01)
    assert misses(model) == 0
    model = tiny_llama().requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    space_for(model, "subzero", {"rank": 2})
    assert misses(model) == 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_model_that_changes_within_the_run_is_noticed(kind, tmp_path):
    model = adapted(tiny_llama)
    trunk = SharedTrunk(model, cache=kind, cache_folder=tmp_path)
    run, inputs = losses_of(model), batch()
    before = trunk.run(run, inputs)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
        after = trunk.run(run, inputs)
        with trunk.replay(after):
            shared = run(inputs)
        torch.testing.assert_close(shared, run(inputs))
    assert not torch.allclose(before, after)


def test_frozen_adapters_that_are_switched_off_are_noticed():
    model = adapted(lambda: tiny_llama(layers=3), layers=[0, 2])
    lower = model.model.layers[0]
    lower.requires_grad_(False)
    trunk = SharedTrunk(model, cache="memory")
    assert trunk.depth == 2
    run, inputs = losses_of(model), batch()
    on = trunk.run(run, inputs)
    for module in lower.modules():
        if hasattr(module, "enabled"):
            module.enabled = False
    assert not torch.allclose(trunk.run(run, inputs), on)


def test_everything_the_model_is_given_tells_an_example():
    model = adapted(tiny_bert_mlm)
    trunk, run, inputs = SharedTrunk(model, cache="memory"), losses_of(model), batch()
    plain = trunk.run(run, inputs)
    segments = {**inputs, "token_type_ids": torch.ones_like(inputs["input_ids"])}
    assert not torch.allclose(trunk.run(run, segments), plain)
    positions = {**inputs, "position_ids": torch.arange(7).flip(0).expand(3, 7)}
    assert not torch.allclose(trunk.run(run, positions), plain)
    assert torch.equal(trunk.run(run, inputs), plain) and len(trunk.cache) == 9


def left_padded(inputs):
    inputs["attention_mask"][1, :2] = 0
    return inputs


@pytest.mark.parametrize(
    "change",
    [
        left_padded,
        lambda inputs: {**inputs, "input_ids": inputs["input_ids"].float()[..., None]},
        lambda inputs: {**inputs, "boxes": torch.zeros(3, 7, 4)},
        lambda inputs: {**inputs, "extra": [torch.zeros(1)]},
    ],
)
def test_what_cannot_be_told_apart_is_not_kept(change):
    model = adapted(tiny_llama)
    trunk = SharedTrunk(model, cache="memory")

    def run(inputs):
        ids = inputs["input_ids"]
        ids = ids if ids.dim() == 2 else ids[..., 0].long()
        return model(input_ids=ids, attention_mask=inputs["attention_mask"])[0]

    assert trunk.run(run, change(batch())) is not None and trunk.cache is None


def test_without_a_mask_every_token_counts():
    model = adapted(tiny_llama)
    trunk, run, inputs = SharedTrunk(model, cache="memory"), losses_of(model), batch()
    del inputs["attention_mask"]
    first = trunk.run(run, inputs)
    assert torch.equal(trunk.run(run, inputs), first) and trunk.cache.hits == 3


def test_a_full_cache_computes_the_rest():
    model = adapted(tiny_llama)
    room = 2.5 * 7 * 32 * 4 / 2**30
    trunk = SharedTrunk(model, cache="memory", cache_limit=room)
    run, inputs = losses_of(model), batch()
    first = trunk.run(run, inputs)
    assert torch.equal(trunk.run(run, inputs), first) and len(trunk.cache) == 2


def test_nothing_is_shared_where_everything_trains():
    model = tiny_llama()
    trunk = SharedTrunk(model)
    assert trunk.depth == 0 and trunk.run(losses_of(model), batch()) is None
    with trunk.replay(None):
        losses_of(model)(batch())


def test_a_trainable_embedding_forbids_sharing():
    model = adapted(tiny_llama)
    model.get_input_embeddings().weight.requires_grad_(True)
    assert SharedTrunk(model).depth == 0


def test_blocks_that_pass_on_more_than_hidden_states_are_not_skipped():
    model = adapted(tiny_t5)
    trunk, run, inputs = SharedTrunk(model), losses_of(model), batch(lengths=[7, 4, 6])
    with torch.no_grad():
        before = run(inputs)
        assert trunk.depth == 1 and trunk.run(run, inputs) is None and trunk.depth == 0
        assert torch.equal(run(inputs), before)


class Branches(nn.Module):
    """Two lists of modules, neither a chain: their results are added, or one reads an early one."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.config = PretrainedConfig()
        self.embed = nn.Embedding(50, 8)
        self.first = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.second = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.parallel = parallel
        self.requires_grad_(False)
        self.second[2].requires_grad_(True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.first:
            x = torch.tanh(block(x))
        if self.parallel:
            return sum(block(x) for block in self.second)
        early = x = self.second[0](x)
        for block in self.second[1:]:
            x = torch.tanh(block(x))
        return x + early


@pytest.mark.parametrize("parallel", [False, True])
def test_lists_that_are_no_chain_are_found_out(parallel):
    model = Branches(parallel)
    trunk = SharedTrunk(model)
    assert trunk.blocks == list(model.second) and trunk.depth == 2
    inputs = {"input_ids": torch.arange(12).view(3, 4)}
    assert trunk.run(lambda batch: model(**batch), inputs) is None and trunk.depth == 0


def test_a_loss_that_runs_the_model_twice_is_found_out():
    model = adapted(tiny_llama)
    trunk, run = SharedTrunk(model), losses_of(model)
    assert trunk.run(lambda batch: run(batch) + run(batch), batch()) is None


def test_running_out_of_memory_is_not_taken_for_a_reason():
    model = adapted(tiny_llama)
    calls = []

    def run(inputs):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return losses_of(model)(inputs)

    with pytest.raises(torch.OutOfMemoryError):
        SharedTrunk(model).run(run, batch())


def test_the_model_is_whole_again_after_an_exception():
    model = adapted(tiny_llama)
    trunk, run, inputs = SharedTrunk(model), losses_of(model), batch()
    before = run(inputs)
    with pytest.raises(ZeroDivisionError):
        with trunk.replay(trunk.run(run, inputs)):
            raise ZeroDivisionError
    assert torch.equal(run(inputs), before)


def test_two_forwards_in_one_replay_are_refused():
    model = adapted(tiny_llama)
    trunk, run, inputs = SharedTrunk(model), losses_of(model), batch()
    with pytest.raises(RuntimeError, match="share_trunk=False"):
        with trunk.replay(trunk.run(run, inputs)):
            run(inputs)
            run(inputs)
