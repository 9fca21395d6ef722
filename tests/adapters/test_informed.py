import copy

import pytest
import torch

from adazeta import TTAdapterConfig, add_tt_adapters, disable_adapters, remove_adapters
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.block_placement import find_blocks
from adazeta.adapters.files import save_pretrained
from adazeta.adapters.informed import InformedAdapter, inform
from adazeta.adapters.loading import from_pretrained
from adazeta.adapters.readers import attached_readers
from adazeta.forward.contexts import context_of
from adazeta.forward.trunk import SharedTrunk
from tests.helpers.tiny_models import tiny_llama

IDS = torch.arange(3, 3 + 4 * 9).view(4, 9) % 60


def informed(layers=None, read=None, blocks=6, seed=0):
    """A model with informed adapters whose cores are not zero."""
    model = tiny_llama(layers=blocks)
    config = TTAdapterConfig(
        form="informed", components=5, answers=2, layers=layers, read_layers=read
    )
    add_tt_adapters(model, config)
    adapters = [adapter for _, adapter in attached_adapters(model)]
    inform(adapters, lambda ids: model(ids), [IDS], model.get_output_embeddings().weight[3:6])
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters:
        adapter.core.data = torch.randn(adapter.core.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model, ids=IDS):
    return model(ids).logits


def test_blocks_that_are_written_and_read():
    placements = find_blocks(tiny_llama(layers=30))
    assert [(p.name, [int(r.rpartition(".")[2]) for r in p.reads]) for p in placements] == [
        ("model.layers.20", [12, 15, 18]),
        ("model.layers.25", [12, 15, 18, 21, 24]),
        ("model.layers.29", [12, 15, 18, 21, 24, 27]),
    ]
    (one,) = find_blocks(tiny_llama(layers=6), [4], [-1, 1, 4])
    assert one.reads == ("model.layers.1",)
    (alone,) = find_blocks(tiny_llama(layers=6), [4], [])
    assert alone.reads == ()
    with pytest.raises(ValueError, match="block 6"):
        find_blocks(tiny_llama(layers=6), [4], [6])


def test_what_is_read_is_what_the_blocks_returned():
    model = informed([4], [1, 3])
    ((_, adapter),) = attached_adapters(model)
    outputs = {}
    for k in (1, 3, 4):
        model.model.layers[k].register_forward_hook(
            lambda block, args, output, k=k: outputs.update({k: output}), prepend=True
        )
    with adapter.offset(None) as seen:
        logits(model)
    expected = [
        (outputs[k] - mean) @ inputs
        for k, mean, inputs in zip((1, 3, 4), adapter.mean, adapter.inputs, strict=True)
    ]
    ones = torch.ones(*IDS.shape, 1)
    assert torch.equal(seen[0], torch.cat([*expected, ones], -1))


def test_components_have_the_same_variance_in_all_blocks():
    model = informed([4], [1, 3])
    ((_, adapter),) = attached_adapters(model)
    adapter.core.data.zero_()
    whole = TTAdapterConfig(form="informed", components=32, layers=[4], read_layers=[1, 3])
    model = add_tt_adapters(remove_adapters(model), whole)
    ((_, adapter),) = attached_adapters(model)
    rows = model.get_output_embeddings().weight[3:5]
    inform([adapter], lambda ids: model(ids), [IDS], rows)
    with adapter.offset(None) as seen:
        logits(model)
    variances = seen[0][..., :-1].flatten(0, 1).var(0, correction=0).view(3, 32)
    # With as many components as numbers nothing is left out.
    assert torch.allclose(variances.sum(-1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("read", [[], [1], [0, 2, 4]])
def test_a_frozen_context_gives_what_the_whole_model_does(read):
    # The last block's output moves no key or value, so there the adapter may act on all tokens.
    model = informed([5], read)
    mask = torch.ones_like(IDS)
    with torch.no_grad(), context_of(model, 2).inputs(IDS, mask) as tokens:
        found = model(**tokens).logits
    assert torch.allclose(found, logits(model)[:, -2:], atol=1e-5)
    with disable_adapters(model):
        assert not torch.allclose(found, logits(model)[:, -2:], atol=1e-2)


def test_a_shared_trunk_ends_below_the_lowest_block_that_is_read():
    assert SharedTrunk(informed([4], [])).depth == 4
    assert SharedTrunk(informed([4], [2, 3])).depth == 2


def test_a_block_that_was_skipped_is_not_read():
    model = informed([4], [2])
    ((_, adapter),) = attached_adapters(model)
    logits(model)
    with pytest.raises(RuntimeError, match="there is nothing where"):
        adapter(torch.zeros(4, 9, 32))


def test_nothing_is_kept_after_a_forward():
    model = informed([3, 5], [1])
    logits(model)
    with disable_adapters(model):
        logits(model)
    assert all(reader._kept is None for _, reader in attached_readers(model))


def test_copies_read_their_own_blocks():
    model = informed([4], [1])
    before = logits(model)
    other = copy.deepcopy(model)
    for parameter in other.model.layers[1].parameters():
        parameter.data *= 2
    assert torch.equal(logits(model), before)
    moved = logits(other)
    assert not torch.equal(moved, before)
    ((_, adapter),), ((_, reader),) = attached_adapters(other), attached_readers(other)
    assert adapter.readers == [reader]


def test_adapters_are_removed_with_their_readers():
    model = informed([4], [1])
    remove_adapters(model)
    assert not list(attached_readers(model))
    assert torch.equal(logits(model), logits(tiny_llama(layers=6)))


def test_saved_adapters_load_to_the_same_bits(tmp_path):
    model = informed([2, 4], [1, 3])
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tiny_llama(layers=6), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert all(isinstance(adapter, InformedAdapter) for _, adapter in attached_adapters(loaded))
