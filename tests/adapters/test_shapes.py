import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adazeta.adapters.shapes import MAX_MODE_RATIO, TTShape, balanced_modes, tt_svd
from adazeta.kernels import tt_factors, tt_linear

WIDTH_PAIRS = [
    (1, 1), (1, 7), (2, 3), (5, 5), (7, 64), (8, 8), (13, 17), (31, 64), (33, 9), (64, 64),
    (64, 96), (97, 64), (101, 103), (127, 8), (128, 512), (255, 257), (331, 64), (576, 64),
    (64, 576), (768, 64), (997, 64), (1009, 31), (1023, 65), (64, 1025),
]  # fmt: skip


def random_cores(shape: TTShape, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(size, dtype=dtype) for size in shape.core_shapes]


@pytest.mark.parametrize(
    ("width", "modes"),
    [
        (1, (1,)), (7, (7,)), (9, (3, 3)), (27, (3, 3, 3)), (64, (4, 4, 4)), (576, (8, 8, 9)),
        (768, (8, 8, 12)), (1009, (6, 13, 13)), (1024, (8, 8, 16)), (2048, (8, 16, 16)),
        (4096, (16, 16, 16)), (5120, (16, 16, 20)), (11008, (16, 16, 43)),
    ],
)  # fmt: skip
def test_balanced_modes_of_known_widths(width: int, modes: tuple[int, ...]) -> None:
    assert balanced_modes(width) == modes


@given(st.integers(1, 20_000), st.integers(1, 4))
def test_balanced_modes_hold_the_width_and_are_balanced(width: int, count: int) -> None:
    modes = balanced_modes(width, count)
    assert len(modes) == count
    assert math.prod(modes) >= width
    assert list(modes) == sorted(modes)
    assert modes[-1] <= MAX_MODE_RATIO * modes[0]
    assert math.prod(modes) <= max(1.1 * width + 1, 2**count)


def test_balanced_modes_use_an_exact_product_where_there_is_a_balanced_one() -> None:
    for factors in [(4, 5, 6), (7, 8, 9), (11, 13, 17), (16, 16, 32), (3, 3, 12)]:
        assert math.prod(balanced_modes(math.prod(factors))) == math.prod(factors)


@pytest.mark.parametrize(("width", "count"), [(0, None), (-3, 2), (8, 0)])
def test_balanced_modes_refuse_nonsense(width: int, count: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        balanced_modes(width, count)


def test_shape_of_the_papers_llama_adapter() -> None:
    down = TTShape.of(4096, 64, 5)
    assert down.modes == (16, 16, 16, 4, 4, 4)
    assert down.cut == 3
    assert down.core_shapes[0] == (1, 16, 5)
    assert down.core_shapes[-1] == (5, 4, 1)
    assert down.num_parameters == 1100
    assert down.transposed.modes == (4, 4, 4, 16, 16, 16)
    assert down.transposed.transposed == down


def test_shape_of_the_papers_roberta_adapter() -> None:
    down = TTShape.of(1024, 64, 5, [8, 8, 16], [8, 8])
    assert down.num_parameters + down.transposed.num_parameters == 1760


def test_shape_takes_a_list_of_ranks_unclipped() -> None:
    shape = TTShape.of(8, 8, [9, 2, 1], [2, 4], [4, 2])
    assert shape.core_shapes == [(1, 2, 9), (9, 4, 2), (2, 4, 1), (1, 2, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 5), "width must be at least 1"),
        ((8, 8, 5, [2, 3]), "product 6, less than in_features 8"),
        ((8, 8, 5, None, [7]), "product 7, less than out_features 8"),
        ((8, 8, 5, [0, 8]), "integers of at least 1"),
        ((8, 8, 0), "ranks must be at least 1"),
        ((8, 8, [2, 2], [2, 4], [8, 1]), "4 modes need 3 inner ranks, got 2"),
    ],
)
def test_shape_refuses_what_does_not_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTShape.of(*arguments)


def test_shape_refuses_widths_below_one() -> None:
    with pytest.raises(ValueError, match="out_features must be at least 1"):
        TTShape(1, 0, (1,), (1,), (1,))


@pytest.mark.parametrize(("in_features", "out_features"), WIDTH_PAIRS)
def test_contraction_equals_the_dense_matrix(in_features: int, out_features: int) -> None:
    shape = TTShape.of(in_features, out_features, 3)
    cores = random_cores(shape)
    dense = shape.to_matrix(cores)
    assert dense.shape == (in_features, out_features)
    scale = dense.abs().max()
    a, b = tt_factors(cores, cut=shape.cut, in_features=in_features, out_features=out_features)
    assert ((a @ b - dense).abs().max() / scale) < 1e-12
    x = torch.randn(5, in_features, dtype=torch.float64) / in_features**0.5
    y = tt_linear(x, cores, cut=shape.cut, out_features=out_features)
    assert ((y - x @ dense).abs().max() / scale) < 1e-12


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4))
def test_elements_are_products_of_core_slices(rows: int, columns: int, rank: int) -> None:
    shape = TTShape.of(rows, columns, rank)
    cores = random_cores(shape)
    dense = shape.to_matrix(cores)
    i, j = rows - 1, columns // 2
    index = [*unravel(i, shape.in_modes), *unravel(j, shape.out_modes)]
    chain = torch.ones(1, 1, dtype=torch.float64)
    for core, k in zip(cores, index, strict=True):
        chain = chain @ core[:, k]
    torch.testing.assert_close(dense[i, j], chain[0, 0], rtol=1e-12, atol=1e-12)


def unravel(index: int, modes: tuple[int, ...]) -> list[int]:
    digits = []
    for mode in reversed(modes):
        index, digit = divmod(index, mode)
        digits.append(digit)
    return digits[::-1]


@pytest.mark.parametrize("widths", [(64, 64), (576, 64), (64, 768), (8, 27)])
def test_svd_recovers_a_tensor_train_of_the_same_ranks(widths: tuple[int, int]) -> None:
    shape = TTShape.of(*widths, 3)
    matrix = shape.to_matrix(random_cores(shape))
    error = shape.to_matrix(tt_svd(matrix, shape)) - matrix
    assert error.norm() / matrix.norm() < 1e-13


@pytest.mark.parametrize("widths", [(13, 17), (31, 29), (1, 7), (5, 1)])
def test_svd_is_exact_at_full_rank_with_padding(widths: tuple[int, int]) -> None:
    modes = TTShape.of(*widths, 1).modes
    sides = [math.prod(modes[:k]) for k in range(1, len(modes))]
    full = [min(left, math.prod(modes) // left) for left in sides]
    shape = TTShape.of(*widths, full)
    matrix = torch.randn(widths, dtype=torch.float64)
    torch.testing.assert_close(shape.to_matrix(tt_svd(matrix, shape)), matrix, rtol=0, atol=1e-13)


def test_svd_with_two_cores_is_the_best_low_rank_approximation() -> None:
    matrix = torch.randn(24, 18, dtype=torch.float64)
    shape = TTShape.of(24, 18, 4, [24], [18])
    error = (shape.to_matrix(tt_svd(matrix, shape)) - matrix).norm()
    best = torch.linalg.svdvals(matrix)[4:].norm()
    torch.testing.assert_close(error, best)


def test_svd_error_is_bounded_by_the_best_errors_of_the_unfoldings() -> None:
    matrix = torch.randn(64, 64, dtype=torch.float64)
    shape = TTShape.of(64, 64, 5)
    error = (shape.to_matrix(tt_svd(matrix, shape)) - matrix).norm()
    sizes = [math.prod(shape.modes[:k]) for k in range(1, len(shape.modes))]
    tails = [torch.linalg.svdvals(matrix.reshape(size, -1))[5:].norm() for size in sizes]
    assert error <= torch.stack(tails).norm() * (1 + 1e-12)


def test_svd_fills_surplus_ranks_and_balances_the_cores() -> None:
    shape = TTShape.of(8, 8, 20, [2, 4], [4, 2])
    matrix = torch.randn(8, 8)
    cores = tt_svd(matrix, shape)
    assert [tuple(core.shape) for core in cores] == shape.core_shapes
    assert all(core.dtype == torch.float32 for core in cores)
    torch.testing.assert_close(shape.to_matrix(cores), matrix, rtol=0, atol=1e-5)
    norms = [core.norm() for core in cores]
    for left, right in pairwise(norms):
        torch.testing.assert_close(left, right)


def test_svd_of_zero_is_zero() -> None:
    shape = TTShape.of(8, 9, 2)
    assert not shape.to_matrix(tt_svd(torch.zeros(8, 9), shape)).any()


def test_svd_refuses_another_width() -> None:
    with pytest.raises(ValueError, match=r"matrix is \(9, 8\), the shape is for \(8, 9\)"):
        tt_svd(torch.zeros(9, 8), TTShape.of(8, 9, 2))
