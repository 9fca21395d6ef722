"""Training with SubZero and LOZO against slow references from the equations."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from adazeta.directions.bases import gaussian_basis, haar_basis
from adazeta.directions.reparametrise import attached, merge, merged_state_dict
from adazeta.directions.subspace import subspace_factors
from adazeta.directions.table import DIRECTIONS, space_for
from adazeta.kernels import gaussian
from adazeta.optim.sgd import ZOSGD
from adazeta.support.seeds import derive_seed


class Net(nn.Module):
    """A small classifier with a bias-free linear, an embedding and a norm's vector."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def normal(*size):
            return nn.Parameter(torch.randn(*size, generator=generator) / 2)

        self.embedding = nn.Embedding(11, 6, _weight=normal(11, 6).data)
        self.first = nn.Linear(6, 7, bias=False)
        self.first.weight = normal(7, 6)
        self.second = nn.Linear(7, 3)
        self.second.weight, self.second.bias = normal(3, 7), normal(3)

    def forward(self, ids):
        return self.second(torch.tanh(self.first(self.embedding(ids).mean(-2))))


def batch():
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 11, (24, 3), generator=generator)
    return ids, ids.sum(1) % 3


def loss(model):
    ids, labels = batch()
    return cross_entropy(model(ids), labels)


EPS, STEPS, REFRESH = 1e-2, 100, 23


def slow_run(kind, rank, momentum, lr):
    """SubZero and LOZO as their papers have them: dense float64 matrices, moved in every step."""
    model = Net().double()
    names = ["embedding.weight", "first.weight", "second.weight"]
    matrices = [model.get_parameter(name) for name in names]
    # The index space: the parameters as the model lists them, the biases as they are.
    space = space_for(copy.deepcopy(Net()), kind, {"rank": rank, "refresh": REFRESH}, seed=9)
    offsets = dict(zip(space.names, space.offsets, strict=True))
    states = {name: 0.0 for name in space.names}
    for step in range(STEPS):
        seed = derive_seed(9, step, 0, 0)
        directions, pushes = [], []
        for number, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
            (m, n), r = matrix.shape, min(rank, *matrix.shape)
            drawn = [derive_seed(9, -3, number, step // REFRESH, side) for side in (0, 1)]
            if kind == "subzero":
                u = haar_basis(drawn[0], m, r, "cpu").double()
                v = haar_basis(drawn[1], n, r, "cpu").double()
                z = gaussian(seed, offsets[f"{name}_subspace.core"], r * r).view(r, r).double()
                mu = math.sqrt(m * n / r**2)
                directions.append(mu * u @ z @ v.mT)
                pushes.append((z, lambda z, mu=mu, u=u, v=v: mu * u @ z @ v.mT))
            else:
                v = gaussian_basis(drawn[1], n, r, "cpu").double()
                z = gaussian(seed, offsets[f"{name}_subspace.core"], m * r).view(m, r).double()
                directions.append(z @ v.mT / math.sqrt(r))
                pushes.append((z, lambda z, v=v, r=r: z @ v.mT / math.sqrt(r)))
        bias = model.second.bias
        directions.append(gaussian(seed, offsets["second.bias"], 3).double())
        pushes.append((directions[-1], lambda z: z))
        parameters = [*matrices, bias]
        sides = []
        for sign in (1, -1):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data.add_(direction, alpha=sign * EPS)
            sides.append(loss(model).item())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.data.sub_(direction, alpha=sign * EPS)
        c = (sides[0] - sides[1]) / (2 * EPS)
        keys = [*(f"{name}_subspace.core" for name in names), "second.bias"]
        for key, parameter, (z, push) in zip(keys, parameters, pushes, strict=True):
            states[key] = momentum * states[key] + c * z
            parameter.data.sub_(push(states[key]), alpha=lr)
        if (step + 1) % REFRESH == 0:
            for number, (name, matrix) in enumerate(zip(names, matrices, strict=True)):
                (m, n), r = matrix.shape, min(rank, *matrix.shape)
                make = haar_basis if kind == "subzero" else gaussian_basis
                both = [[make(derive_seed(9, -3, number, index, side), size, r, "cpu").double()
                         for side, size in enumerate((m, n))]
                        for index in (step // REFRESH, step // REFRESH + 1)]  # fmt: skip
                key = f"{name}_subspace.core"
                if kind == "subzero":
                    (u, v), (u2, v2) = both
                    states[key] = u2.mT @ u @ states[key] @ v.mT @ v2
                else:
                    states[key] = states[key] @ both[0][1].mT @ both[1][1] / n
    return model


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("kind", "rank"), [("subzero", 2), ("subzero", 5), ("lozo", 2)])
def test_equals_the_slow_reference_for_100_steps_over_refreshes(kind, rank, momentum):
    model, start, lr = Net(), Net(), 0.02 * (1 - momentum)
    space = space_for(model, kind, {"rank": rank, "refresh": REFRESH}, seed=9)
    optimizer = ZOSGD(space, lr=lr, momentum=momentum, eps=EPS, check_eps=False, seed=9)
    for _ in range(STEPS):
        optimizer.step(lambda: loss(model))
    merge(model)
    expected = slow_run(kind, rank, momentum, lr)
    for (name, p), q, p0 in zip(
        model.named_parameters(), expected.parameters(), start.parameters(), strict=True
    ):
        moved = (q - p0).norm()
        # Losses in float32 err by 1e-7, projected gradients by 1e-7 / (2 eps) = 5e-6 a step.
        assert (p - q).norm() <= 1e-3 * moved, name


def test_lozo_the_update_moves_along_the_perturbation_also_at_a_refresh():
    """LOZO's code draws V from the seeded stream at refreshes only, and so updates another U."""
    model = nn.Linear(5, 4, bias=False)
    space = space_for(model, "lozo", {"rank": 2, "refresh": 3}, seed=1)
    optimizer = ZOSGD(space, lr=0.01, eps=1e-3, check_eps=False, seed=1)
    (found,) = attached(model)
    x = torch.randn(6, 5)
    for step in range(9):
        before, bases = merged_state_dict(model)["weight"], found.module.right.clone()
        z = gaussian(derive_seed(1, step, 0, 0), 0, 8).view(4, 2)
        optimizer.step(lambda: model(x).square().mean())
        change = (merged_state_dict(model)["weight"] - before).flatten()
        direction = (z @ bases.mT).flatten()
        cosine = change @ direction / change.norm() / direction.norm()
        assert abs(abs(cosine.item()) - 1) < 1e-4, step


def test_lozo_has_the_one_over_r_in_the_update():
    """Paper: ``X -= lr c U V^T / r`` at perturbation ``eps U V^T``; here ``eps sqrt(r)`` is eps."""
    r, lr, eps = 4, 0.1, 1e-2
    model = nn.Linear(6, 5, bias=False)
    weight = model.weight.detach().double().clone()
    gradient = torch.randn(5, 6)
    space = space_for(model, "lozo", {"rank": r, "refresh": 0}, seed=2)
    (found,) = attached(model)
    u = gaussian(derive_seed(2, 0, 0, 0), 0, 5 * r).view(5, r).double()
    v = found.module.right.double()
    c = (gradient.double() * (u @ v.mT)).sum()  # of a linear loss: exact at any eps
    optimizer = ZOSGD(space, lr=lr, eps=eps * math.sqrt(r), check_eps=False, seed=2)
    identity = torch.eye(6)
    optimizer.step(lambda: (model(identity).mT * gradient).sum())
    expected = weight - lr * c * u @ v.mT / r
    torch.testing.assert_close(
        merged_state_dict(model)["weight"].double(), expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["subzero", "lozo"])
def test_rank_above_the_smaller_side_is_that_side(kind):
    model = nn.Linear(40, 3, bias=False) if kind == "lozo" else nn.Linear(9, 70, bias=False)
    space = space_for(model, kind, {"rank": 100, "refresh": 2}, seed=1)
    (found,) = attached(model)
    assert found.module.rank == min(found.module.view)
    optimizer = ZOSGD(space, lr=1e-3, eps=1e-2, check_eps=False)
    x = torch.randn(4, model.in_features)
    for _ in range(3):  # over a refresh
        optimizer.step(lambda: model(x).square().mean())
    assert torch.isfinite(merged_state_dict(model)["weight"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank must be"), ({"refresh": -1}, "refresh must be"),
     ({"ranks": 3}, "no setting 'ranks'; it has: rank"), ({"frozen": True}, "refresh=0")],
)  # fmt: skip
def test_settings_out_of_range_name_the_remedy(settings, message):
    model = Net()
    with pytest.raises(ValueError, match=message):
        space_for(model, "subzero", settings)
    assert not list(attached(model)) and all(p.requires_grad for p in model.parameters())


def test_a_model_without_matrices_or_with_cores_is_refused():
    with pytest.raises(ValueError, match="none that is trainable"):
        space_for(nn.LayerNorm(4), "lozo")
    model = Net()
    space_for(model, "lozo")
    with pytest.raises(ValueError, match="merge"):
        space_for(model, "subzero")
    with pytest.raises(ValueError, match="direction must be one of full"):
        space_for(Net(), "cosine")


@pytest.mark.parametrize("kind", ["subzero", "lozo"])
def test_memory_is_what_is_stated(kind):
    model = Net()
    shapes = [tuple(p.shape) for p in model.parameters()]
    space = space_for(model, kind, {"rank": 2})
    settings = {**DIRECTIONS[kind].settings, "rank": 2}
    new = sum(4 * found.module.core.numel() + found.module.basis_bytes for found in attached(model))
    assert DIRECTIONS[kind].state_bytes(shapes, settings, 4) == new
    for found in attached(model):
        m, n = found.module.view
        expected = 2 * (m + n) + 4 if kind == "subzero" else 2 * n + 2 * m
        assert found.module.core.numel() + found.module.basis_bytes // 4 == expected
    elements = sum(p.numel() for p in space.parameters)
    assert DIRECTIONS[kind].trained(shapes, settings) == elements
    # Nothing of the bases is in what is saved.
    names = [name for name in model.state_dict() if "subspace" in name]
    assert {name.rpartition(".")[2] for name in names} == {"core", "index"}


def test_nothing_writes_to_the_matrices_between_folds():
    model = Net()
    weight = model.first.weight.detach().clone()
    space = space_for(model, "subzero", {"rank": 2, "refresh": 5}, seed=1)
    optimizer = ZOSGD(space, lr=0.1, eps=1e-2, check_eps=False, seed=1)
    version = model.first.weight._version
    for _ in range(4):
        optimizer.step(lambda: loss(model))
        assert torch.equal(model.first.weight, weight) and model.first.weight._version == version
    optimizer.step(lambda: loss(model))
    assert not torch.equal(model.first.weight, weight)
    assert all(not found.module.core.any() for found in attached(model))


def test_a_quantised_base_gets_an_adapter():
    class Quantised(nn.Module):
        """As quantised linears are: integer weights, both widths, a forward of their own."""

        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 12, 9
            codes = torch.randint(-8, 8, (9, 12), dtype=torch.int8)
            self.weight = nn.Parameter(codes, requires_grad=False)

        def forward(self, x):
            return x @ (self.weight.float() * 0.1).mT

    model = nn.Sequential(Quantised())
    codes = model[0].weight.clone()
    space = space_for(model, "subzero", {"rank": 3, "refresh": 0, "frozen": True}, seed=1)
    optimizer = ZOSGD(space, lr=1e-2, queries=2, eps=1e-2, check_eps=False, seed=1)
    x = torch.randn(8, 12)
    first = model(x).square().mean()
    for _ in range(60):
        optimizer.step(lambda: model(x).square().mean())
    assert model(x).square().mean() < 0.9 * first and torch.equal(model[0].weight, codes)
    a, b = subspace_factors(model)["0"]
    torch.testing.assert_close(model(x), x @ (codes.float() * 0.1).mT + (x @ a) @ b)
    with pytest.raises(ValueError, match="quantised"):
        merge(model)


def stackable_net():
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 7, bias=False), nn.Tanh(),
                          nn.Linear(7, 90))  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(
                parameter.numel())) / 3)  # fmt: skip
    return model


@pytest.mark.parametrize("kind", ["subzero", "lozo"])
@pytest.mark.parametrize("probes", ["batch", "example", 4])
def test_stacked_evaluations_are_those_one_by_one(kind, probes):
    """Linear, embedding, and (SubZero) a thin matrix that is viewed near-square."""

    def run(per_forward, rows):
        model = stackable_net()
        space = space_for(model, kind, {"rank": 2, "vectors": False}, seed=1)
        assert space.stackable and len(space.parameters) == 3
        for parameter in space.parameters:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        optimizer = ZOSGD(space, lr=0.1, eps=1e-2, check_eps=False, seed=1, queries=2,
                          probes=probes, probes_per_forward=per_forward)  # fmt: skip
        ids = torch.arange(rows * 2).view(rows, 2) % 11

        def losses(part):
            return model(part["ids"]).square().mean((1, 2))

        return optimizer.accumulate(losses, {"ids": ids})

    alone, together = run(1, 8), run(4, 8)
    # Products of other shapes: sums in another order, 1e-7 of a loss of 0.3, over 2 eps.
    torch.testing.assert_close(alone.projected, together.projected, rtol=1e-3, atol=1e-4)
    assert len(alone) == {"batch": 2, "example": 16, 4: 8}[probes]


def test_an_example_sees_its_own_direction():
    model = stackable_net()
    space = space_for(model, "subzero", {"rank": 2, "vectors": False}, seed=1)
    ids = torch.arange(6).view(3, 2)
    seeds, scales = torch.tensor([4, 5, 6]), torch.tensor([0.1, -0.2, 0.3])
    with torch.no_grad():
        with space.stacked(seeds, scales):
            together = model(ids)
        for row in range(3):
            with space.perturbed(int(seeds[row]), float(scales[row])):
                torch.testing.assert_close(model(ids[row : row + 1])[0], together[row])


def test_copies_of_a_model_have_cores_of_their_own():
    model = Net()
    space = space_for(model, "lozo", {"rank": 2}, seed=1)
    twin = copy.deepcopy(model)
    for parameter in space.parameters:
        parameter.data.normal_()
    ids, _ = batch()
    assert not torch.equal(model(ids), twin(ids))
    assert torch.equal(twin(ids), copy.deepcopy(twin)(ids))
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(ids), model(ids))


def test_a_state_dict_brings_the_bases_along():
    model = Net()
    optimizer = ZOSGD(space_for(model, "subzero", {"rank": 2, "refresh": 2}, seed=1), lr=0.1,
                      eps=1e-2, check_eps=False, seed=1)  # fmt: skip
    for _ in range(5):
        optimizer.step(lambda: loss(model))
    other = Net()
    space_for(other, "subzero", {"rank": 2, "refresh": 2}, seed=1)
    other.load_state_dict(model.state_dict())
    ids, _ = batch()
    assert torch.equal(other(ids), model(ids))
