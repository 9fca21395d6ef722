"""Bases, directions and folds of one layer of SubZero and LOZO, against theory."""

import math

import pytest
import torch

from adazeta.directions.bases import gaussian_basis, haar_basis, is_thin, near_square
from adazeta.directions.subspace_weight import SubspaceWeight
from adazeta.kernels import gaussian
from adazeta.support.seeds import derive_seed


def layer(shape, kind="subzero", rank=2, view=None, role="linear", seed=0):
    return SubspaceWeight(
        shape, view or shape, kind, rank, role, seed=seed, layer=0, device=torch.device("cpu")
    )


def within(samples, expected, sigmas=4.5):
    """A sample mean lies where the expectation says; 4.5 sigmas: once in 150,000 such checks."""
    samples = samples.double()
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= sigmas * error + 1e-12).all()


@pytest.mark.parametrize(("rows", "rank"), [(3, 1), (7, 7), (13, 5), (64, 16), (101, 3)])
def test_bases_are_orthonormal_and_a_function_of_the_seed(rows, rank):
    basis = haar_basis(5, rows, rank, "cpu")
    torch.testing.assert_close(basis.mT @ basis, torch.eye(rank), atol=1e-5, rtol=0)
    assert torch.equal(basis, haar_basis(5, rows, rank, "cpu"))
    assert not torch.equal(basis, haar_basis(6, rows, rank, "cpu"))
    # Q R is the Gaussian matrix with a positive diagonal of R, which makes Q unique.
    r = basis.mT @ gaussian_basis(5, rows, rank, "cpu")
    assert (r.diagonal() > 0).all()


def test_bases_are_haar_distributed():
    bases = torch.stack([haar_basis(seed, 4, 4, "cpu") for seed in range(4000)])
    # The trace of a Haar orthogonal matrix has mean 0 and second moment 1; any fixed unit vector
    # has coordinates with the moments of the sphere.
    traces = bases.diagonal(dim1=1, dim2=2).sum(1)
    within(traces, 0.0)
    within(traces.square(), 1.0)
    seen = bases[:, :, 1] @ torch.tensor([0.5, -0.5, 0.5, -0.5])
    within(seen, 0.0)
    within(seen.square(), 1 / 4)
    within(seen**4, 3 / (4 * 6))
    raw = torch.linalg.qr(torch.stack([gaussian_basis(s, 4, 4, "cpu") for s in range(4000)])).Q
    assert raw.diagonal(dim1=1, dim2=2).sum(1).mean() < -0.5  # what a plain QR would give


def test_tensors_of_peft_are_viewed_near_square():
    shapes = {(8, 2048): (128, 128), (10, 2048): (128, 160), (5, 2048): (80, 128),
              (8, 5120): (160, 256)}  # fmt: skip
    for shape, view in shapes.items():
        assert is_thin(*shape) and is_thin(*shape[::-1])
        assert near_square(shape[0] * shape[1]) == view
    assert near_square(13) == (1, 13) and near_square(1) == (1, 1)
    assert not is_thin(50257, 768) and not is_thin(64, 64)


@pytest.mark.parametrize("kind", ["subzero", "lozo"])
def test_estimator_is_unbiased_over_subspaces_with_the_second_moment_of_theory(kind):
    m, n, r = 5, 4, 2
    subspace = layer((m, n), kind, r)
    gradient = torch.randn(m, n)
    estimates = []
    for draw in range(6000):
        subspace.index.fill_(draw)
        subspace.redraw()
        z = gaussian(derive_seed(7, draw), 0, subspace.core.numel()).view_as(subspace.core)
        direction = subspace.dense(z)
        estimates.append((direction * gradient).sum() * direction)
    estimates = torch.stack(estimates).detach()
    within(estimates, gradient)
    # SubZero: |P|^2 = mu^2 |Z|^2 and <P, G> = mu <Z, U^T G V>, with E |U^T G V|^2 = r^2 |G|^2 / mn
    # and E |Z|^2 <Z, A>^2 = (r^2 + 2) |A|^2. LOZO: by Isserlis for U, then Wishart moments of V.
    factor = m * n * (r * r + 2) / r**2
    if kind == "lozo":
        factor = m * n + 2 * (m + n + r + 1) / r
    within(estimates.square().sum((1, 2)), factor * gradient.square().sum())


@pytest.mark.parametrize("kind", ["subzero", "lozo"])
def test_directions_have_elements_of_variance_one(kind):
    subspace = layer((9, 12), kind, 3)
    draws = []
    for draw in range(3000):
        subspace.index.fill_(draw)
        subspace.redraw()
        z = gaussian(derive_seed(8, draw), 0, subspace.core.numel()).view_as(subspace.core)
        draws.append(subspace.dense(z).detach()[0, 0])
    within(torch.stack(draws).square(), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("view", [None, (10, 14)])
def test_a_fold_leaves_the_function_as_it_was(dtype, view):
    subspace = layer((20, 7), rank=3, view=view)
    subspace.core.data.normal_(std=0.02)
    weight = torch.randn(20, 7).to(dtype)
    exact = weight.double() + subspace.dense(subspace.core).detach().double()
    folded = subspace.fold(weight.clone(), 4, "stochastic")
    # To one of the two neighbours: an error below one spacing, 2^-23, 2^-7 and 2^-10 of the value.
    spacing = torch.finfo(dtype).eps * exact.abs() + 1e-7
    assert ((folded.double() - exact).abs() <= spacing).all()
    assert torch.equal(folded, subspace.fold(weight.clone(), 4, "stochastic"))
    if dtype != torch.float32:
        assert not torch.equal(folded, subspace.fold(weight.clone(), 5, "stochastic"))
        many = torch.stack([subspace.fold(weight.clone(), s, "stochastic") for s in range(400)])
        # An element takes one of two values a spacing apart: deviation at most half a spacing.
        error = (many.double().mean(0) - exact).abs()
        assert (error <= 5 * spacing / 2 / 400**0.5).all()
