"""The feature mixer: its equations, its start, its places, its files, and what it refuses."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from adazeta import (
    TTAdapterConfig,
    add_tt_adapters,
    disable_adapters,
    merge_adapters,
    remove_adapters,
    to_lora,
)
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.block_placement import find_mixer
from adazeta.adapters.files import load_config, save_pretrained
from adazeta.adapters.loading import from_pretrained
from adazeta.adapters.mixer import FeatureMixer, Gate, aggregate, redundancy, weights
from adazeta.adapters.readers import InputReader, attached_readers
from adazeta.adapters.scaling import adapter_scale
from tests.helpers.bits import same_bits
from tests.helpers.mixers import MODELS, SMALL, mixer_of, with_mixer
from tests.helpers.tiny_models import tiny_bert_cls, tiny_llama, tiny_t5

IDS = torch.arange(3, 3 + 4 * 9).view(4, 9) % 60


@torch.no_grad()
def logits(model, ids=IDS):
    return model(ids).logits


def random_features(count=5, width=8, tokens=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count + 1, tokens, width, generator=generator)
    return drawn[:-1], drawn[-1]


def gate_of(width=8, seed=2):
    gate = Gate(width, residual=False)
    with torch.no_grad():
        gate.weight.copy_(torch.randn(width, generator=torch.Generator().manual_seed(seed)))
    return gate


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [None, [], [0, 2]])
def test_a_new_mixer_changes_no_bit(make, dtype, features):
    base = make(layers=6).to(dtype)
    expected = logits(base)
    model = add_tt_adapters(base, TTAdapterConfig(**SMALL, features=features))
    assert torch.equal(logits(model), expected)
    hidden = torch.tensor([-0.0, 0.0, 1.0, -3.5]).repeat(8).view(1, 1, 32).to(dtype)
    mixer = FeatureMixer(32, TTAdapterConfig(**SMALL))
    assert same_bits(mixer(hidden), hidden)


def test_the_gate_of_a_new_mixer_is_open():
    features, guide = random_features()
    raw = Gate(8, residual=False)(features, guide)
    assert torch.equal(raw, torch.ones(5, 6))
    shares = 1 / redundancy(features)
    torch.testing.assert_close(weights(features, raw), shares / (shares.sum(0) + 1e-6))


def test_two_tokens_of_three_features_by_hand():
    z = torch.tensor(
        [[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]]]
    )
    q = torch.tensor([[2.0, 1.0], [1.0, -1.0]])
    gate = Gate(2, residual=False)
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([1.0, 0.5]))
        gate.bias.fill_(0.25)
    half = 1 / math.sqrt(2)
    rho = [[1 + half, 1 + half, 1.0], [1.0, 2.0, 2.0]]  # of each token
    torch.testing.assert_close(redundancy(z), torch.tensor(rho).T)
    # w . (z * q) + b: 2.25, 2.75, -1.75 and -0.75, 1.25, 1.25
    a = [[2.25 / (1 + half), 2.75 / (1 + half), 0.0], [0.0, 0.625, 0.625]]
    alpha = torch.tensor([[x / (sum(row) + 1e-6) for x in row] for row in a]).T
    raw = gate(z, q)
    torch.testing.assert_close(weights(z, raw), alpha)
    expected = torch.stack(
        [
            alpha[0, 0] * z[0, 0] + alpha[1, 0] * z[1, 0],
            alpha[1, 1] * z[1, 1] + alpha[2, 1] * z[2, 1],
        ]
    )
    torch.testing.assert_close(aggregate(z, raw), expected)


@pytest.mark.parametrize("copies", [2, 3, 7])
def test_a_feature_that_is_there_several_times_counts_once(copies):
    q, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))
    z = q[:4].unsqueeze(1)  # orthogonal
    _, guide = random_features(tokens=1)
    gate = gate_of()
    with torch.no_grad():
        gate.bias.fill_(2.0)  # all of them alive
    whole = aggregate(z, gate(z, guide))
    more = torch.cat([z, z[1:2].expand(copies - 1, -1, -1)])
    assert redundancy(more)[1].item() == pytest.approx(copies)
    torch.testing.assert_close(aggregate(more, gate(more, guide)), whole, atol=2e-6, rtol=1e-5)
    raw = gate(more, guide)
    without = ((raw / (raw.sum(0) + 1e-6))[..., None] * more).sum(0)
    assert (without - whole).abs().max() > 0.05


def test_weights_are_shares_unless_all_are_dead():
    features, guide = random_features(tokens=200)
    gate = gate_of()
    with torch.no_grad():
        gate.bias.fill_(-1.0)
    raw = gate(features, guide)
    alpha = weights(features, raw)
    dead = (raw == 0).all(0)
    assert 0 < dead.sum() < 200
    assert (alpha >= 0).all() and (alpha.sum(0) <= 1 + 1e-6).all()
    alive = raw.amax(0) > 1  # 1e-6 is small beside it
    torch.testing.assert_close(alpha.sum(0)[alive], torch.ones(int(alive.sum())), atol=1e-5, rtol=0)
    assert torch.equal(alpha.sum(0)[dead], torch.zeros(int(dead.sum())))
    rho = redundancy(features)
    assert (rho >= 1).all() and (rho <= 5).all()


def test_all_dead_leaves_the_guide_alone():
    model = with_mixer()
    mixer = mixer_of(model)
    with torch.no_grad():
        mixer.gate.bias.fill_(-1e4)
    seen = {}
    mixer.up.register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
    mixer.downs[-1].register_forward_hook(lambda _, args, out: seen.update(guide=out))
    logits(model)
    guide = functional.layer_norm(seen["guide"], (8,))
    assert torch.equal(seen["mixed"], guide.relu())


def test_features_of_zeros_are_no_division_by_zero():
    features = torch.zeros(3, 2, 8)
    assert torch.equal(redundancy(features), torch.ones(3, 2))
    assert torch.equal(aggregate(features, torch.ones(3, 2)), torch.zeros(2, 8))


@pytest.mark.parametrize("make", MODELS)
def test_what_is_mixed_is_what_the_blocks_were_given(make):
    model = with_mixer(make, features=[0, 2, 3], late=2)
    name, _, _ = next(iter(dict(attached_adapters(model)))).rpartition(".")
    stack = model.get_submodule(name.rpartition(".")[0])
    assert name.endswith(".4")
    given = {}
    for index in (0, 2, 3, 4):
        stack[index].register_forward_pre_hook(
            lambda _, args, kwargs, index=index: given.update(
                {index: args[0] if args else kwargs["hidden_states"]}
            ),
            prepend=True,
            with_kwargs=True,
        )
    mixer = mixer_of(model)
    results = []
    mixer.register_forward_hook(lambda _, args, out: results.append(out))
    logits(model)
    z = [
        functional.layer_norm(down(given[k]), (8,))
        for down, k in zip(mixer.downs, (0, 2, 3, 4), strict=True)
    ]
    features = torch.stack(z[:-1])
    mixed = aggregate(features, mixer.gate(features, z[-1])) + z[-1]
    torch.testing.assert_close(results[0], given[4] + mixer.up(mixed.relu()), atol=1e-6, rtol=1e-6)


def test_places():
    (place,) = find_mixer(tiny_llama(layers=30))
    assert (place.name, place.side) == ("model.layers.29", "mixer")
    assert place.reads == tuple(f"model.layers.{k}" for k in (0, 6, 12, 18, 24))
    (place,) = find_mixer(tiny_llama(layers=6), "every:2", 2)
    assert (place.name, place.reads) == ("model.layers.4", ("model.layers.0", "model.layers.2"))
    (place,) = find_mixer(tiny_llama(layers=2))
    assert place.reads == ("model.layers.0",)
    (place,) = find_mixer(tiny_llama(layers=6), [3, 1, 3])
    assert place.reads == ("model.layers.1", "model.layers.3")


def test_numbers_that_are_trained():
    model = with_mixer(moved=False, layers=30)
    mixer = mixer_of(model)
    one, up = mixer.downs[0].num_parameters, mixer.up.num_parameters
    assert mixer.num_parameters == 6 * one + up + 8 + 1
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(list(mixer.parameters()))
    config = TTAdapterConfig(form="mixer", rank=2, bias=False)
    readers = [InputReader() for _ in range(5)]
    assert FeatureMixer(576, config, readers, device="meta").num_parameters == 933
    alone = mixer_of(with_mixer(features=[]))
    assert alone.gate is None and alone.num_parameters == one + up


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": "last:1"}, "layers='last:1' means nothing with form='mixer'"),
        ({"target_modules": "paper"}, "target_modules='paper' means nothing with form='mixer'"),
        ({"drop": 0.1}, "a mixer works alone"),
        ({"features": "every:0"}, "features must be a list of block indices, 'every:N' or null"),
        ({"features": [1.5]}, "features must be a list"),
        ({"features": [True]}, "features must be a list"),
        ({"late": 0}, "late must be an integer of at least 1, got 0"),
        ({"form": "bottleneck", "late": 2}, "late=2 means nothing with form='bottleneck'"),
        ({"form": "lora", "features": []}, "means nothing"),
        ({"form": "informed", "features": [1]}, "features=.1. means nothing with form='informed'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config, message):
    if config.get("form") in ("lora", "informed"):
        config = {"rank": 2, **config}
    else:
        config = {**SMALL, **config}
    with pytest.raises(ValueError, match=message):
        TTAdapterConfig(**config)


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (tiny_llama, {"features": [5]}, "asks for the input of block 5"),
        (tiny_llama, {"features": [-1]}, "asks for the input of block -1"),
        (tiny_llama, {"late": 6}, "late=6 leaves no block below the mixer"),
        (tiny_t5, {}, "a feature mixer needs a model with one stack of blocks"),
        (tiny_llama, {"activation": "no"}, "activation 'no' is unknown"),
    ],
)
def test_places_that_are_not_there_are_refused(make, config, message):
    model = make(layers=6)
    with pytest.raises(ValueError, match=message):
        add_tt_adapters(model, TTAdapterConfig(**SMALL, **config))
    assert not list(attached_readers(model)) and not list(attached_adapters(model))


@pytest.mark.parametrize("init", ["zero", "paper"])
def test_shares_run_from_the_base_to_the_trained_model(init):
    model = with_mixer(init=init)
    base, whole = logits(tiny_llama(layers=6)), logits(model)
    with adapter_scale(model, 0):
        assert torch.equal(logits(model), base)
    with adapter_scale(model, 1):
        assert torch.equal(logits(model), whole)
    mixer = mixer_of(model)
    seen = []
    mixer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    logits(model)
    with adapter_scale(model, 0.5):
        logits(model)
    (hidden, full), (_, half) = seen
    torch.testing.assert_close(half, (hidden + full) / 2, atol=1e-6, rtol=1e-5)


def test_the_start_of_the_paper_has_the_residual_path_off():
    model = with_mixer(init="paper", moved=False)
    mixer = mixer_of(model)
    assert mixer.starts_closed and not with_mixer().tt_adapter_config.init == "paper"
    seen = []
    mixer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    logits(model)
    with torch.no_grad():
        mixer.gate.gamma.fill_(10.0)  # tanh is one
    logits(model)
    (hidden, closed), (_, opened) = seen
    torch.testing.assert_close(opened - closed, hidden, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        for parameter in mixer.up.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits(model), logits(tiny_llama(layers=6)), atol=0, rtol=0)


def test_it_is_switched_off_removed_and_copied():
    model = with_mixer()
    base, whole = logits(tiny_llama(layers=6)), logits(model)
    assert not torch.equal(base, whole)
    with disable_adapters(model):
        assert torch.equal(logits(model), base)
    assert all(reader._kept is None for _, reader in attached_readers(model))
    other = copy.deepcopy(model)
    for parameter in other.model.layers[1].parameters():
        parameter.data *= 2
    moved = logits(other)
    assert torch.equal(logits(model), whole) and not torch.equal(moved, whole)
    assert mixer_of(other).readers == [reader for _, reader in attached_readers(other)]
    assert all(isinstance(reader, InputReader) for reader in mixer_of(other).readers)
    remove_adapters(model)
    assert not list(attached_readers(model)) and torch.equal(logits(model), base)


@pytest.mark.parametrize(
    "config", [{}, {"features": [], "late": 2}, {"init": "paper", "bias": True}]
)
def test_saved_mixers_load_to_the_same_bits(tmp_path, config):
    model = with_mixer(**config)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tiny_llama(layers=6), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    read = load_config(tmp_path)
    assert (read.features, read.late) == (config.get("features"), config.get("late", 1))
    with pytest.raises(ValueError, match="do not fit this"):
        from_pretrained(tiny_llama(layers=6, hidden=64), tmp_path)
    if not config:  # a fifth of ten blocks gives another number of features
        with pytest.raises(ValueError, match="is missing in the file|has no place for"):
            from_pretrained(tiny_llama(layers=4), tmp_path)


def test_first_values_depend_on_the_seed_alone():
    one, other, third = (
        add_tt_adapters(tiny_llama(layers=6), TTAdapterConfig(**SMALL), seed=seed)
        for seed in (1, 1, 2)
    )
    same, different = (
        [torch.equal(p, q) for p, q in zip(mixer_of(one).parameters(), mixer_of(m).parameters(),
                                          strict=True)]
        for m in (other, third)
    )  # fmt: skip
    assert all(same) and not all(different)
    first, second = (list(mixer_of(one).downs[k].parameters()) for k in (0, 1))
    assert not any(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_a_trained_head_goes_with_it():
    model = tiny_bert_cls(layers=3)
    base = logits(model)
    config = TTAdapterConfig(**SMALL, modules_to_save=["classifier"])
    add_tt_adapters(model, config)
    assert torch.equal(logits(model), base)
    assert model.classifier.weight.requires_grad


def test_no_weight_can_stand_for_a_mixer():
    for export in (merge_adapters, to_lora):
        with pytest.raises(ValueError, match="a mixer adds what the inputs of several blocks give"):
            export(with_mixer())


def test_peft_has_no_place_for_it():
    pytest.importorskip("peft")
    from adazeta import TTConfig

    with pytest.raises(ValueError, match="form='mixer' is not possible under PEFT"):
        TTConfig(**SMALL)
