"""AdaLomo of first order: against Adafactor, its invariances, and the fused backward pass."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Adafactor

from adazeta import AdaLomo, fuse_into_backward
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.tiny_models import tiny_llama

SHAPES = [(7,), (5, 9), (3, 4, 5), (1, 6), (), (2, 1, 3, 4)]


def tensors(seed=0, scale=1.0, shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def parameters(**options):
    return [nn.Parameter(tensor) for tensor in tensors(**options)]


def run(optimizer, over, steps, first=0, scale=1.0):
    for step in range(first, first + steps):
        found = tensors(seed=100 + step, scale=scale, shapes=[p.shape for p in over])
        for parameter, gradient in zip(over, found, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def assert_near(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_adafactor_without_momentum_for_50_steps(decay):
    ours, theirs = parameters(), parameters()
    run(AdaLomo(ours, lr=1e-2, weight_decay=decay), ours, 50)
    other = Adafactor(
        theirs, lr=1e-2, weight_decay=decay, scale_parameter=True, relative_step=False,
        warmup_init=False, beta1=None,
    )  # fmt: skip
    run(other, theirs, 50)
    assert_near([p.data for p in ours], [p.data for p in theirs], 1e-6)


def test_a_constant_decay_is_as_the_paper_prints_it():
    (parameter,) = parameters(shapes=[(4, 6)])
    before = parameter.detach().clone()
    optimizer = AdaLomo([parameter], lr=0.1, beta=0.75, clip=1e9)
    run(optimizer, [parameter], 1)
    square = parameter.grad.double().square()
    row, column = 0.25 * square.mean(1), 0.25 * square.mean(0)
    update = parameter.grad / torch.sqrt(torch.outer(row, column) / row.mean())
    expected = before - 0.1 * before.square().mean().sqrt() * update
    torch.testing.assert_close(parameter.data, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3.0, 1e-5])
def test_the_first_step_along_a_gradient_of_rank_one_is_its_sign(size):
    parameter = nn.Parameter(size * torch.ones(4, 6))
    left, right = torch.tensor([1.0, -2, 3, -4]), torch.tensor([5.0, 1, -1, 2, -7, 0.5])
    parameter.grad = torch.outer(left, right)
    before = parameter.detach().clone()
    AdaLomo([parameter], lr=0.1).step()
    expected = -0.1 * max(1e-3, size) * parameter.grad.sign()
    torch.testing.assert_close(parameter - before, expected, rtol=1e-4, atol=0)


def test_the_size_of_gradients_does_not_matter():
    plain, scaled = parameters(), parameters()
    run(AdaLomo(plain), plain, 10)
    run(AdaLomo(scaled), scaled, 10, scale=2.0**20)
    assert_near([p.data for p in scaled], [p.data for p in plain], 1e-6)


def test_no_step_is_larger_than_clip():
    over = parameters()
    optimizer = AdaLomo(over, lr=0.1, clip=0.5)
    for step in range(5):
        before = [p.detach().clone() for p in over]
        run(optimizer, over, 1, first=step, scale=10.0 ** (3 * step))
        for parameter, old in zip(over, before, strict=True):
            change = (parameter - old).square().mean().sqrt()
            limit = 0.1 * 0.5 * max(1e-3, old.square().mean().sqrt())
            assert change <= limit * (1 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_state_that_is_loaded_goes_on_bit_for_bit(dtype):
    whole = parameters(dtype=dtype)
    optimizer = AdaLomo(whole, lr=1e-2, weight_decay=0.1, seed=5)
    run(optimizer, whole, 5)
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    saved = copy.deepcopy(optimizer.state_dict())
    run(optimizer, whole, 5, first=5)
    again = AdaLomo(resumed)
    again.load_state_dict(saved)
    run(again, resumed, 5, first=5)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert torch.equal(ours, theirs)
    kept = {t.dtype for s in again.state.values() for t in s.values() if torch.is_tensor(t)}
    assert kept == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_bfloat16_parameters_move_by_less_than_their_spacing():
    coarse = nn.Parameter(torch.ones(300, 1000, dtype=torch.bfloat16))
    optimizer = AdaLomo([coarse], lr=1e-4, seed=1)
    for _ in range(10):
        coarse.grad = torch.ones_like(coarse)
        optimizer.step()
    # 0.0039 below 1 is the next bfloat16; a thousandth in all is made by a quarter of the elements.
    assert coarse.float().mean().item() == pytest.approx(1 - 10e-4, abs=1e-4)
    other = nn.Parameter(torch.ones_like(coarse))
    optimizer = AdaLomo([other], lr=1e-3, seed=2)
    other.grad = torch.ones_like(other)
    optimizer.step()
    first = other.detach().clone()
    other.data.fill_(1)
    optimizer = AdaLomo([other], lr=1e-3, seed=2)
    optimizer.step()
    assert torch.equal(first, other) and len(first.unique()) == 2


def test_the_state_is_small():
    over = [nn.Parameter(torch.randn(shape)) for shape in ((1536, 576), (576, 576), (576,))]
    optimizer = AdaLomo(over)
    run(optimizer, over, 1)
    held = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t))
    assert held <= 0.01 * sum(p.nbytes for p in over)


def tied_model():
    model = tiny_llama()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    return model


def train(model, optimizer, steps=4):
    losses = []
    for step in range(steps):
        ids = torch.randint(5, 60, (3, 6), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_fused_is_unfused_bit_for_bit_with_tied_embeddings():
    plain, fused = tied_model(), tied_model()
    expected = train(plain, AdaLomo(plain.parameters(), lr=1e-2, weight_decay=0.1))
    optimizer = AdaLomo(fused.parameters(), lr=1e-2, weight_decay=0.1)
    handle = fuse_into_backward(optimizer)
    assert train(fused, optimizer) == expected
    assert_same_bits(fused, bits(plain))
    handle.remove()
    train(plain, AdaLomo(plain.parameters()), 1)
    before = bits(fused)
    fused(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()
    assert_same_bits(fused, before)


def test_only_the_gradient_of_one_tensor_lives_at_a_time():
    model = tied_model()
    alive = []

    def watch(parameter):
        alive.append(sum(p.grad.numel() for p in model.parameters() if p.grad is not None))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(watch)
    optimizer = AdaLomo(model.parameters())
    fuse_into_backward(optimizer)
    train(model, optimizer, 2)
    assert len(alive) == 2 * len(list(model.parameters()))
    assert max(alive) == max(p.numel() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_second_gradient_in_a_step_is_refused():
    model = nn.Linear(3, 3)
    optimizer = AdaLomo(model.parameters())
    handle = fuse_into_backward(optimizer)
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="optimizer.step.. after each backward"):
        model(torch.ones(2, 3)).sum().backward()
    handle.remove()
    fuse_into_backward(optimizer)
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        y = checkpoint(model, x, use_reentrant=True)
        checkpoint(model, y, use_reentrant=True).sum().backward()


def test_what_cannot_be_fused_or_is_out_of_range_is_refused():
    over = parameters()
    with pytest.raises(TypeError, match="SGD has no update_parameter"):
        fuse_into_backward(torch.optim.SGD(over, lr=0.1))
    for options, message in [
        ({"lr": -1.0}, "lr must be 0 or more, got -1.0"), ({"clip": 0.0}, "clip must be above 0"),
        ({"decay_rate": 0.5}, "decay_rate must be below 0"), ({"beta": 1.0}, "beta must be in"),
        ({"epsilon": 0.0}, "epsilon must be above 0"), ({"floor": -1.0}, "floor must be 0"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            AdaLomo(over, **options)
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        AdaLomo(table.parameters()).step()
