"""A mixer's trunk and frozen contexts: each way to compute gives what the plain forward does."""

import pytest
import torch

from adazeta import FOTrainer, FOTrainingArguments, TTAdapterConfig, add_tt_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.readers import attached_readers
from adazeta.directions.table import space_for
from adazeta.estimation.findings import Findings
from adazeta.forward.batch_losses import BatchLosses
from adazeta.forward.decode import Decoding, decode
from adazeta.forward.losses import example_losses
from adazeta.forward.prompt_states import PromptStates
from adazeta.forward.suffix import FrozenContext
from adazeta.forward.trained_loss import TrainedLoss
from adazeta.forward.trunk import SharedTrunk
from adazeta.support.batches import repeat_rows
from tests.helpers.mixers import MODELS, SMALL, mixer_of, with_mixer
from tests.helpers.packing import batch as texts
from tests.helpers.runs import causal_data
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama, tiny_opt
from tests.helpers.token_batches import (
    LENGTHS,
    PROMPTS,
    batch,
    check_members_write_as_alone,
    everything_of,
    left,
    losses_of,
    on_last_tokens_only,
    prompts,
)

FEATURES = [0, 2, 3]


def no_batch(module, inputs):
    raise AssertionError("the loss is of the examples")


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("late", [1, 2])
@torch.no_grad()
def test_sharing_changes_no_bit(make, dtype, late):
    model = with_mixer(lambda layers: make(layers=layers).to(dtype), late=late, features=FEATURES)
    trunk, run = SharedTrunk(model), everything_of(model)
    inputs = batch(lengths=[7, 4, 6])
    whole, logits = run(inputs)
    for _ in range(2):
        hidden = trunk.run(run, inputs)
        assert trunk.depth == 6 - late and hidden.shape == (3, 7, 4 * 32)
        with trunk.replay(hidden):
            shared, shared_logits = run(inputs)
        assert torch.equal(shared, whole) and torch.equal(shared_logits, logits)
    stack = repeat_rows(inputs, 2)
    twice, _ = run(stack)
    with trunk.replay(hidden, times=2):
        assert torch.equal(run(stack)[0], twice)
    assert all(reader._kept is None for _, reader in attached_readers(model))


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("make", MODELS)
@torch.no_grad()
def test_keeping_equals_computing(make, kind, tmp_path):
    model = with_mixer(make, features=FEATURES)
    run, trunk = losses_of(model), SharedTrunk(model, cache=kind, cache_folder=tmp_path)
    inputs = batch(rows=4, tokens=32, lengths=[32, 5, 31, 17])
    whole = run(inputs)
    for _ in range(2):  # the second time from what was kept
        with trunk.replay(trunk.run(run, inputs)):
            torch.testing.assert_close(run(inputs), whole, atol=2e-6, rtol=2e-6)
    assert (trunk.cache.hits, trunk.cache.misses) == (4, 4)


@torch.no_grad()
def test_caches_of_other_features_do_not_mix(tmp_path):
    inputs, folders = batch(rows=4, tokens=32), []
    bottleneck = TTAdapterConfig(rank=2, bottleneck=8, layers="last:1", init="paper")
    for model in (
        with_mixer(features=[0, 2, 3]), with_mixer(features=[0, 1, 3]), with_mixer(features=[0]),
        with_mixer(features=[0], late=2), add_tt_adapters(tiny_llama(layers=6), bottleneck),
    ):  # fmt: skip
        run, trunk = losses_of(model), SharedTrunk(model, cache="disk", cache_folder=tmp_path)
        whole = run(inputs)
        with trunk.replay(trunk.run(run, inputs)):
            torch.testing.assert_close(run(inputs), whole, atol=2e-6, rtol=2e-6)
        assert trunk.cache.hits == 0
        folders.append({folder.name for folder in tmp_path.iterdir()})
    assert [len(names) for names in folders] == [1, 2, 3, 4, 5]
    # Without features there is nothing else in it than for adapters in the last block.
    model = with_mixer(features=[])
    trunk = SharedTrunk(model, cache="disk", cache_folder=tmp_path)
    trunk.run(losses_of(model), inputs)
    assert trunk.cache.hits == 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding_free": False},
        {"share_trunk": False},
        {"padding_free": False, "cache": "memory"},
    ],
)
@torch.no_grad()
def test_layouts_and_trunks_give_the_losses_of_the_plain_forward(options):
    model, inputs, found = with_mixer(features=FEATURES), texts(13, 3, 1, 6, 7), Findings()
    expected, _ = example_losses(model, inputs)
    losses = BatchLosses(model, TrainedLoss(example_losses, no_batch), **options)
    for times in (1, 3):
        value = losses.of(model, inputs, found)(repeat_rows(inputs, times))
        torch.testing.assert_close(value, expected.repeat(times), atol=2e-6, rtol=2e-6)
    shares, packs = options.get("share_trunk", True), options.get("padding_free", "auto")
    assert found.shortcuts.get("shared trunk") == (True if shares else None)
    assert found.packs == (True if packs == "auto" else None)


@pytest.mark.parametrize("init", ["zero", "paper"])
@torch.no_grad()
def test_a_stack_of_evaluations_is_each_alone(init):
    model = with_mixer(features=FEATURES, init=init)
    space = space_for(model)
    assert space.stackable
    inputs, run = batch(), losses_of(model)
    seeds, scales = torch.tensor([5, 6, 7]), torch.tensor([0.05, -0.05, 0.1])
    trunk = SharedTrunk(model)
    hidden = trunk.run(run, inputs)
    with space.stacked(seeds, scales):
        together = run(repeat_rows(inputs, 3))
        with trunk.replay(hidden, times=3):
            assert torch.equal(run(repeat_rows(inputs, 3)), together)
    alone = []
    for seed, scale in zip(seeds.tolist(), scales.tolist(), strict=True):
        with space.perturbed(seed, scale):
            alone.append(run(inputs))
    assert (alone[0] - alone[1]).abs().max() > 1e-4
    # The same products, in matrices of another size.
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_opt])
@pytest.mark.parametrize("late", [1, 2])
@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@torch.no_grad()
def test_a_frozen_context_equals_the_whole_model_mixed_at_the_last_tokens(
    make, late, cache, tmp_path
):
    model = with_mixer(make, features=FEATURES, late=late)
    ids, mask = prompts()
    context = FrozenContext(model, 2, cache=cache, folder=tmp_path)
    for _ in range(2):  # the second time from what was kept
        with context.inputs(ids, mask) as inputs:
            found = model(**inputs)[0]
    hooks = on_last_tokens_only(model, 2)
    for row, length in enumerate(LENGTHS):
        expected = model(input_ids=ids[row : row + 1, :length])[0][0, -2:]
        torch.testing.assert_close(found[row], expected, atol=3e-6, rtol=1e-5)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_frozen_contexts_of_other_features_do_not_mix(tmp_path):
    ids, mask = prompts()
    for number, features in enumerate([[0, 2, 3], [0, 1, 3], [0], []], 1):
        model = with_mixer(features=features)
        with FrozenContext(model, 2, cache="disk", folder=tmp_path).inputs(ids, mask) as inputs:
            found = model(**inputs)[0]
        hooks = on_last_tokens_only(model, 2)
        expected = model(input_ids=ids[:1])[0][0, -2:]
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(found[0], expected, atol=3e-6, rtol=1e-5)
        assert len(list(tmp_path.iterdir())) == number


def saved_bytes(layers, share):
    """Bytes that a backward pass keeps of a mixer above so many blocks, which have no graph."""
    model = with_mixer(layers=layers, features=[0, 1])
    graphs = [
        block.register_forward_hook(lambda _, args, out: below.append(out.grad_fn))
        for block in model.model.layers[:-1]
    ]
    below, kept = [], {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    inputs, run = batch(), losses_of(model)
    trunk = SharedTrunk(model)
    hidden = trunk.run(run, inputs) if share else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), trunk.replay(hidden):
        loss = run(inputs).mean()
    for handle in graphs:
        handle.remove()
    loss.backward()
    assert all(p.grad is not None for p in mixer_of(model).parameters())
    assert all(reader._kept is None for _, reader in attached_readers(model))
    assert below and all(graph is None for graph in below)
    return sum(size for where, size in kept.items() if where not in weights)


@pytest.mark.parametrize("share", [True, False])
def test_the_early_blocks_have_no_graph_and_add_nothing_to_what_is_saved(share):
    few, many = saved_bytes(4, share), saved_bytes(12, share)
    assert 0 < many <= few


@pytest.mark.parametrize("init", ["zero", "paper"])
def test_first_order_learns_and_resumes_bit_for_bit(tmp_path, init):
    def trainer(folder, steps=12):
        model = add_tt_adapters(
            tiny_llama(layers=4), TTAdapterConfig(**SMALL, init=init, features=[0, 2])
        )
        arguments = FOTrainingArguments(
            output_dir=str(folder), max_steps=steps, per_device_train_batch_size=12,
            learning_rate=0.05, lr_scheduler_type="constant", save_strategy="steps", save_steps=6,
            logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, seed=3,
        )  # fmt: skip
        return FOTrainer(model, arguments, train_dataset=causal_data(12))

    whole = trainer(tmp_path / "whole")
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.03
    trainer(tmp_path / "parts", steps=6).train()
    again = trainer(tmp_path / "parts")
    again.train(resume_from_checkpoint=True)
    for (name, one), (_, other) in zip(
        attached_adapters(whole.model), attached_adapters(again.model), strict=True
    ):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q), name


def test_a_trained_module_below_shortens_the_trunk():
    config = TTAdapterConfig(**SMALL, features=[0, 1, 3, 4], modules_to_save=["layers.3.mlp"])
    model = add_tt_adapters(tiny_llama(layers=6), config)
    trunk, run, inputs = SharedTrunk(model), everything_of(model), batch()
    with torch.no_grad():
        whole, logits = run(inputs)
        hidden = trunk.run(run, inputs)
        # Of the four, two lie in the trunk, and one is what it hands on anyway.
        assert trunk.depth == 3 and hidden.shape == (3, 7, 3 * 32)
        with trunk.replay(hidden):
            shared, shared_logits = run(inputs)
    assert torch.equal(shared, whole) and torch.equal(shared_logits, logits)


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_a_population_writes_with_its_mixer_on_the_answers_alone(cache, tmp_path):
    model = lively(features=FEATURES)
    states = PromptStates(model, cache=cache, folder=tmp_path)
    check_members_write_as_alone(model, space_for(model), states)
    ids, mask = left(PROMPTS)
    texts = decode(model, ids, mask, Decoding(6), start=states)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        mixer = mixer_of(model)
        begin = len(prompt) - 1
        hook = mixer.register_forward_hook(
            lambda _, args, out, begin=begin: torch.cat([args[0][:, :begin], out[:, begin:]], 1)
        )
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([prompt + text])).logits[0]
        hook.remove()
        assert whole[begin:-1].argmax(-1).tolist() == text
    if cache == "disk":
        assert states.computed == len(PROMPTS)


def lively(**config):
    """A model that does not just repeat its last token."""

    def make(layers):
        model = tiny_llama(layers=layers)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and "emb" not in name:
                    parameter.mul_(12)
        return model

    return with_mixer(make, **config)
