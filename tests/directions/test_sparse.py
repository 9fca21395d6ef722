"""Sparse-MeZO: the mask by magnitude, and that nothing but the chosen elements is touched."""

import math

import pytest
import torch
from torch import nn

from adazeta.directions.reparametrise import attached, merge, merged_state_dict
from adazeta.directions.sparse import SparseWeight, pack_bits, unpack_bits
from adazeta.directions.table import DIRECTIONS, space_for
from adazeta.kernels import gaussian
from adazeta.optim.adam import ZOAdam
from adazeta.optim.sgd import ZOSGD
from adazeta.support.seeds import derive_seed
from tests.helpers.tiny_models import tiny_gpt2, tiny_llama


@pytest.mark.parametrize("count", [1, 7, 8, 9, 131])
def test_bits_come_back(count):
    mask = torch.rand(count) < 0.3
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-count // 8)
    assert torch.equal(unpack_bits(bits, count), mask)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_holds_the_small_elements(sparsity, dtype):
    weight = torch.randn(13, 17).to(dtype)
    sparse = SparseWeight(weight, sparsity)
    mask = sparse.mask().view(13, 17)
    size = weight.abs().float()
    assert size[mask].max() <= size[~mask].min() if sparsity else mask.all()
    # Elements as large as the threshold all count: |theta| <= h.
    wanted = math.ceil((1 - sparsity) * weight.numel())
    assert wanted <= mask.sum() <= wanted + (0 if dtype == torch.float32 else 12)
    assert torch.equal(sparse(weight), weight) and sparse.values.dtype == dtype


def loss(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_equals_the_masked_reference_bit_for_bit_over_100_steps(rule):
    """Reference: whole tensors, ``theta + eps m z``, and an update in which z is masked as well."""
    torch.manual_seed(1)
    model, slow = nn.Linear(9, 7, bias=False), nn.Linear(9, 7, bias=False)
    slow.load_state_dict(model.state_dict())
    x = torch.randn(8, 9)
    eps, lr = 1e-2, 0.05
    space = space_for(model, "sparse", {"sparsity": 0.7}, seed=1)
    options = {"eps": eps, "check_eps": False, "seed": 1}
    if rule == "adam":
        optimizer = ZOAdam(space, lr=lr, **options)
    else:
        optimizer = ZOSGD(space, lr=lr, momentum=0.9 if rule == "momentum" else 0, **options)
    theta = slow.weight.data
    mask = theta.abs() <= theta.abs().flatten().kthvalue(math.ceil(0.3 * 63)).values
    first = theta.clone()
    plain = [torch.zeros_like(theta), 0.0]
    for step in range(100):
        z = torch.zeros_like(theta)
        z[mask] = gaussian(derive_seed(1, step, 0, 0), 0, int(mask.sum()))
        sides = []
        for sign in (eps, -eps):
            slow.weight.data = theta + sign * z
            sides.append(loss(slow, x).double())
        c = ((sides[0] - sides[1]) / (2 * eps)).float()
        optimizer.step(lambda: loss(model, x))
        if rule == "sgd":
            theta = theta + (c * -torch.tensor(lr)) * z
        elif rule == "momentum":
            plain[0] = torch.tensor(0.9) * plain[0] + c * z
            theta = theta - torch.tensor(lr) * plain[0]
        else:
            b1, b2 = torch.tensor(0.9), 0.999
            plain[0] = b1 * plain[0] + (1 - b1) * (c * z)
            plain[1] = b2 * plain[1] + (1 - b2) * c.item() ** 2
            unit = plain[0] / (1 - 0.9 ** (step + 1))
            theta = theta - lr * unit / math.sqrt(plain[1] / (1 - b2 ** (step + 1)))
        assert torch.equal(theta[~mask], first[~mask])
    found = merged_state_dict(model)["weight"]
    if rule == "adam":  # the bias corrections multiply by reciprocals there
        torch.testing.assert_close(found, theta, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found, theta)
    assert torch.equal(found[~mask], first[~mask])


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_models_keep_what_is_masked(build, dtype):
    model, before = build().to(dtype), build().to(dtype).state_dict()
    space = space_for(model, "sparse", seed=1)
    optimizer = ZOSGD(space, lr=1e-2, momentum=0.9, eps=1e-2, check_eps=False, seed=1)
    ids = torch.randint(5, 60, (2, 5))
    masks = {found.path.removesuffix("_sparse"): found.module.mask() for found in attached(model)}
    for _ in range(3):
        optimizer.step(lambda: model(ids).logits.float().square().mean())
    after = merged_state_dict(model)
    assert masks and after.keys() == before.keys()
    for name, mask in masks.items():
        changed = (after[name] != before[name]).flatten()
        assert not changed[~mask].any() and changed[mask].any(), name
    logits = model(ids).logits
    merge(model)
    assert torch.equal(model(ids).logits, logits) and not list(attached(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_streamed_perturbation_is_the_same():
    losses = []
    for perturbation in ("buffer", "streamed"):
        model = tiny_llama()
        space = space_for(model, "sparse", perturbation=perturbation, seed=1)
        optimizer = ZOSGD(space, lr=1e-2, eps=1e-2, check_eps=False, seed=1)
        ids = torch.arange(5, 15).view(2, 5)
        losses.append([optimizer.step(lambda m=model, i=ids: m(i).logits.square().mean())
                       for _ in range(3)])  # fmt: skip
    assert losses[0] == losses[1]


def test_memory_is_what_is_stated():
    model = tiny_gpt2()
    shapes = [tuple(p.shape) for p in model.parameters()]
    settings = DIRECTIONS["sparse"].settings
    stated = DIRECTIONS["sparse"].state_bytes(shapes, settings, 4)
    space = space_for(model, "sparse")
    new = sum(
        4 * found.module.values.numel() + found.module.bits.numel() for found in attached(model)
    )
    assert new == stated
    elements = sum(p.numel() for p in space.parameters)
    assert elements == DIRECTIONS["sparse"].trained(shapes, settings)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    model = tiny_gpt2()
    with pytest.raises(ValueError, match="sparsity must be in"):
        space_for(model, "sparse", {"sparsity": sparsity})
    assert not list(attached(model))


def test_an_exception_in_the_forward_leaves_the_matrix():
    model = tiny_gpt2()
    weights = [p.data_ptr() for p in model.parameters()]
    space_for(model, "sparse")
    with pytest.raises(IndexError):
        model(torch.tensor([[10**6]]))
    kept = {p.data_ptr() for name, p in model.named_parameters() if "sparse" not in name
            and p.dim() > 1}  # fmt: skip
    assert kept <= set(weights)
