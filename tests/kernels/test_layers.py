"""The tensor-train ops against dense float64 matrices, and the Triton kernel against both.

Without a GPU the kernel runs in Triton's interpreter (the environment is set in conftest.py).
"""

from math import prod

import pytest
import torch
from torch import Tensor

from adazeta.kernels import tt_factors, tt_linear, use_backend
from adazeta.kernels.ops.layers import tt_apply_op

# (in_features, out_features, input modes, output modes, rank); modes beyond the width are padding.
SHAPES = [
    (64, 64, (8, 8), (8, 8), 5),
    (61, 67, (8, 8), (7, 10), 5),
    (13, 1, (13,), (1,), 3),
    (1, 17, (1,), (3, 6), 1),
    (30, 70, (2, 3, 5), (2, 5, 7), 1),
    (96, 33, (4, 4, 6), (3, 11), 17),
    (16, 200, (4, 4), (200,), 64),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def random_cores(
    in_modes: tuple[int, ...],
    out_modes: tuple[int, ...],
    rank: int,
    probes: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    modes = in_modes + out_modes
    ranks = [1] + [rank] * (len(modes) - 1) + [1]
    lead = () if probes is None else (probes,)
    return [
        torch.randn(*lead, ranks[k], n, ranks[k + 1], dtype=dtype) / ranks[k] ** 0.5
        for k, n in enumerate(modes)
    ]


def dense(cores: list[Tensor], cut: int, in_features: int, out_features: int) -> Tensor:
    """The matrix of unstacked cores in float64, entry by entry as the definition reads."""
    total = cores[0].double()
    for core in cores[1:]:
        total = torch.tensordot(total, core.double(), dims=1)
    rows = prod(core.shape[1] for core in cores[:cut])
    return total.reshape(rows, -1)[:in_features, :out_features]


def error_bound(x: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Rounding errors of y = (x A) B + bias in float32, any order of summation, and of storing y.

    Each of the in + R + 1 additions and products on the way to an entry of y errs by at most one
    unit in the last place of the sum of absolute values (Higham, section 3.1); the factors
    themselves come from float32 products, which the factor 4 covers.
    """
    absolute = (x.double().abs() @ a.double().abs()) @ b.double().abs()
    if bias is not None:
        absolute = absolute + bias.double().abs()
    terms = x.shape[-1] + b.shape[-2] + 2
    return absolute * (4 * terms * 2.0**-24) + 1e-30


@pytest.mark.parametrize(("n", "m", "in_modes", "out_modes", "rank"), SHAPES)
def test_factors_multiply_to_the_dense_matrix(n, m, in_modes, out_modes, rank):
    cores = random_cores(in_modes, out_modes, rank, dtype=torch.float64)
    a, b = tt_factors(cores, cut=len(in_modes), in_features=n, out_features=m)
    assert a.shape == (n, rank) and b.shape == (rank, m)
    torch.testing.assert_close(a @ b, dense(cores, len(in_modes), n, m), rtol=1e-12, atol=1e-12)


def test_stacked_factors_are_the_factors_of_each_probe():
    cores = random_cores((3, 4), (5, 2), 4, probes=3, dtype=torch.float64)
    a, b = tt_factors(cores, cut=2, in_features=11, out_features=9)
    assert a.shape == (3, 11, 4) and b.shape == (3, 4, 9)
    for p in range(3):
        single = tt_factors([core[p] for core in cores], cut=2, in_features=11, out_features=9)
        torch.testing.assert_close((a[p], b[p]), single, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("n", "m", "in_modes", "out_modes", "rank"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_in_float64_is_the_dense_product(n, m, in_modes, out_modes, rank, with_bias):
    cores = random_cores(in_modes, out_modes, rank, dtype=torch.float64)
    bias = torch.randn(m, dtype=torch.float64) if with_bias else None
    x = torch.randn(2, 3, n, dtype=torch.float64)
    y = tt_linear(x, cores, bias, cut=len(in_modes), out_features=m)
    expected = x @ dense(cores, len(in_modes), n, m) + (0 if bias is None else bias)
    assert y.shape == (2, 3, m)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "in_modes", "out_modes", "rank"), SHAPES)
def test_linear_is_within_the_rounding_error_of_float32(
    device, backend, dtype, n, m, in_modes, out_modes, rank
):
    if backend == "triton":
        pytest.importorskip("triton")
    cores = [core.to(device) for core in random_cores(in_modes, out_modes, rank)]
    bias = torch.randn(m).to(device)
    x = torch.randn(37, n).to(device, dtype)
    with use_backend(backend):
        y = tt_linear(x, cores, bias, cut=len(in_modes), out_features=m)
    assert y.dtype == dtype and y.shape == (37, m)
    a, b = tt_factors(
        [core.double() for core in cores], cut=len(in_modes), in_features=n, out_features=m
    )
    exact = (x.double() @ a) @ b + bias
    limit = error_bound(x, a, b, bias)
    if dtype != torch.float32:
        limit = limit + exact.abs() * UNIT_ROUNDOFF[dtype] + 2.0**-24
    assert ((y.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch_in_that_dtype(device, dtype):
    cores = [core.to(device) for core in random_cores((8, 8), (8, 8), 5)]
    bias, x = torch.randn(64).to(device), torch.randn(200, 64).to(device, dtype)
    y = tt_linear(x, cores, bias, cut=2, out_features=64)
    a, b = tt_factors([core.double() for core in cores], cut=2, in_features=64, out_features=64)
    exact = (x.double() @ a) @ b + bias
    plain = (x @ a.to(dtype)) @ b.to(dtype) + bias.to(dtype)
    assert (y - exact).abs().mean() <= (plain - exact).abs().mean()
    assert (y - exact).abs().max() <= (plain - exact).abs().max()


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("bias_dims", [0, 1, 2])
@pytest.mark.parametrize("shape", [(6, 5, 61), (30, 61), (3, 61), (0, 61)])
def test_stacked_groups_use_their_own_cores(device, backend, bias_dims, shape):
    if backend == "triton":
        pytest.importorskip("triton")
    probes, m = 3, 67
    cores = [core.to(device) for core in random_cores((8, 8), (7, 10), 5, probes=probes)]
    bias = [None, torch.randn(m).to(device), torch.randn(probes, m).to(device)][bias_dims]
    x = torch.randn(*shape).to(device)
    with use_backend(backend):
        y = tt_linear(x, cores, bias, cut=2, out_features=m)
    assert y.shape == (*shape[:-1], m)
    rows, results = x.reshape(probes, -1, 61), y.reshape(probes, -1, m)
    for p in range(probes):
        a, b = tt_factors(
            [core[p].double() for core in cores], cut=2, in_features=61, out_features=m
        )
        shift = bias[p] if bias_dims == 2 else bias
        exact = (rows[p].double() @ a) @ b + (0 if shift is None else shift)
        assert ((results[p].double() - exact).abs() <= error_bound(rows[p], a, b, shift)).all()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_no_rows_and_one_row(device, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    cores = [core.to(device) for core in random_cores((4,), (4,), 2)]
    with use_backend(backend):
        assert tt_linear(torch.zeros(0, 4, device=device), cores, cut=1, out_features=4).shape == (
            0,
            4,
        )
        row = torch.randn(4).to(device)
        y = tt_linear(row, cores, cut=1, out_features=4)
    torch.testing.assert_close(y, row @ dense(cores, 1, 4, 4).float())


def test_noncontiguous_x(device):
    cores = [core.to(device) for core in random_cores((4, 2), (4,), 2)]
    x = torch.randn(8, 5).to(device).T
    expected = tt_linear(x.contiguous(), cores, cut=2, out_features=4)
    assert torch.equal(tt_linear(x, cores, cut=2, out_features=4), expected)


@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("bias_dims", [0, 1, 2])
def test_gradients_of_x_cores_and_bias(probes, bias_dims):
    if probes is None and bias_dims == 2:
        bias_dims = 1
    cores = random_cores((2, 3), (2, 2), 2, probes=probes, dtype=torch.float64)
    bias = [None, torch.randn(3), torch.randn(2, 3)][bias_dims]
    x = torch.randn(4, 5, dtype=torch.float64)
    inputs = [x, *cores] + ([] if bias is None else [bias.double()])
    for value in inputs:
        value.requires_grad_()

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        return tt_linear(x, rest[:4], rest[4] if bias is not None else None, cut=2, out_features=3)

    assert torch.autograd.gradcheck(function, inputs)


def test_gradients_in_bfloat16_are_those_of_float32_rounded(device):
    cores = [core.to(device).requires_grad_() for core in random_cores((8,), (8,), 3)]
    x = torch.randn(16, 8).to(device, torch.bfloat16).requires_grad_()
    tt_linear(x, cores, cut=1, out_features=8).float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    got = [core.grad.clone() for core in cores]
    for core in cores:
        core.grad = None
    (x.detach().float() @ cores[0][0] @ cores[1][..., 0]).square().sum().backward()
    # The only difference is that y, and so the gradient at y, was rounded to bfloat16 (8 bits).
    for core, grad in zip(cores, got, strict=True):
        assert (core.grad - grad).norm() < 2.0**-7 * core.grad.norm()


@pytest.mark.parametrize(("probes", "bias_dims"), [(None, 0), (None, 1), (2, 1), (2, 2)])
def test_op_passes_opcheck(device, probes, bias_dims):
    lead = () if probes is None else (probes,)
    x, a, b = (
        torch.randn(*lead, *shape, device=device, requires_grad=True)
        for shape in ((6, 5), (5, 2), (2, 3))
    )
    bias = [
        None,
        torch.randn(3, device=device, requires_grad=True),
        torch.randn(2, 3, device=device, requires_grad=True),
    ][bias_dims]
    torch.library.opcheck(tt_apply_op, (x, a, b, bias))


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_without_graph_breaks(device, grad):
    cores = [core.to(device).requires_grad_(grad) for core in random_cores((4, 4), (4, 4), 3)]
    bias, x = torch.randn(16).to(device), torch.randn(6, 16).to(device)

    def function(x: Tensor) -> Tensor:
        return tt_linear(x, cores, bias, cut=2, out_features=16).relu()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    if grad:
        expected = torch.autograd.grad(function(x).sum(), cores)
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), cores), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": 0}, "cut is 0"),
        ({"cut": 4}, "cut is 4"),
        ({"out_features": 17}, "choose larger modes"),
        ({"out_features": 0}, "choose larger modes"),
        ({"x": torch.zeros(2, 17)}, "choose larger modes"),
        ({"bias": torch.zeros(15)}, "bias of shape"),
        ({"bias": torch.zeros(2, 16)}, "bias of shape"),
        ({"cores": random_cores((4, 4), (4, 4), 3)[1:]}, "do not chain"),
        ({"cores": [*random_cores((4, 4), (4,), 3), torch.zeros(2, 4, 1)]}, "do not chain"),
        ({"cores": [core[0] for core in random_cores((4, 4), (4, 4), 3)]}, "pass all of shape"),
        (
            {"cores": [*random_cores((4, 4), (4, 4), 3, 2)[:3], torch.zeros(3, 3, 4, 1)]},
            "stack all",
        ),
        ({"cores": random_cores((4, 4), (4, 4), 3, 3)}, "3 equal groups"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.zeros(2, 16),
        "cores": random_cores((4, 4), (4, 4), 3),
        "bias": None,
        "cut": 2,
        "out_features": 16,
    } | change
    x, cores, bias = (arguments.pop(name) for name in ("x", "cores", "bias"))
    with pytest.raises(ValueError, match=message):
        tt_linear(x, cores, bias, **arguments)
