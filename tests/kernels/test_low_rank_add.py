"""The fused low-rank term against float64, Triton against the reference, and torch's op checks.

Without a GPU the kernel runs in Triton's interpreter (the environment is set in conftest.py).
"""

import pytest
import torch

from adazeta.kernels import low_rank_add, use_backend
from adazeta.kernels.ops.low_rank_add import low_rank_add_op

pytestmark = pytest.mark.usefixtures("poisoned_empty")

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# (rows, in, out, rank): odd, prime, one, and wider than a tile.
SIZES = [(4, 64, 64, 8), (7, 61, 67, 5), (1, 1, 1, 1), (6, 13, 300, 17), (2, 300, 7, 64)]


def inputs(rows, n, m, rank, dtype, probes=None, stacked="ab"):
    def factor(name, *size):
        return torch.randn(*((probes,) if probes and name in stacked else ()), *size)

    count = rows * (probes or 1)
    x, y = torch.randn(count, n).to(dtype), torch.randn(count, m).to(dtype)
    return y, x, factor("a", n, rank) / n**0.5, factor("b", rank, m) / rank**0.5


def exact(y, x, a, b, scale, probes):
    groups = x.double().view(probes, -1, x.shape[-1])
    delta = scale * (groups @ a.double()) @ b.double()
    size = abs(scale) * (groups.abs() @ a.double().abs()) @ b.double().abs()
    return y.double() + delta.view(y.shape), size.view(y.shape) + y.double().abs()


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
@pytest.mark.parametrize(("rows", "n", "m", "rank"), SIZES)
@pytest.mark.parametrize(("probes", "stacked"), [(None, ""), (3, "b"), (2, "a"), (2, "ab")])
def test_equals_float64(device, backend, dtype, rows, n, m, rank, probes, stacked):
    y, x, a, b = inputs(rows, n, m, rank, dtype, probes, stacked)
    place = device if backend == "triton" else "cpu"
    with use_backend(backend):
        found = low_rank_add(*(value.to(place) for value in (y, x, a, b)), scale=0.7).cpu()
    expected, size = exact(y, x, a, b, 0.7, probes or 1)
    # n + r + 2 float32 operations in any order (Higham, 3.1), and 4 units that a product of the
    # tensor cores leaves out (low_rank.multiply), twice; then one rounding to the dtype.
    units = n + rank + 3 + 8 * (backend == "triton" and device.type == "cuda")
    bound = size * units * 2.0**-23 + UNIT_ROUNDOFF[dtype] * 1.01 * expected.abs()
    assert found.dtype == dtype and ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_shapes_ranks_and_emptiness(device, backend):
    with torch.device(device if backend == "triton" else "cpu"), use_backend(backend):
        y, x = torch.randn(2, 3, 5), torch.randn(2, 3, 7)
        a, b = torch.randn(7, 80), torch.randn(80, 5)  # beyond the kernel's ranks
        torch.testing.assert_close(low_rank_add(y, x, a, b), y + x @ a @ b, rtol=1e-4, atol=1e-4)
        empty = low_rank_add(torch.empty(0, 5), torch.empty(0, 7), a, b)
        assert empty.shape == (0, 5)
        assert torch.equal(low_rank_add(y, x, a, b, scale=0.0), y)
        double = low_rank_add(y.double(), x.double(), a.double(), b.double())
        torch.testing.assert_close(double, y.double() + x.double() @ a.double() @ b.double())
        wide = torch.randn(1, 2500)
        found = low_rank_add(wide, wide, torch.ones(2500, 1), torch.ones(1, 2500))
        torch.testing.assert_close(found, wide + wide.sum(), rtol=1e-4, atol=1e-3)


def test_arguments_that_do_not_fit_are_named():
    y, x, a, b = inputs(4, 3, 5, 2, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        low_rank_add(y, x, a.mT, b)
    with pytest.raises(ValueError, match="repeat the batch"):
        low_rank_add(y, x, a, b.expand(3, 2, 5))
    with pytest.raises(TypeError, match="int64"):
        low_rank_add(y.long(), x, a, b)


def test_is_an_op_that_torch_can_check_compile_and_differentiate():
    y, x, a, b = inputs(3, 5, 4, 2, torch.float32, probes=2)
    stacks = (y.view(2, 3, 4), x.view(2, 3, 5), a, b, 0.5)
    torch.library.opcheck(low_rank_add_op, stacks)
    compiled = torch.compile(lambda *t: low_rank_add(*t, scale=0.5), backend="eager",
                             fullgraph=True)  # fmt: skip
    assert torch.equal(compiled(y, x, a, b), low_rank_add(y, x, a, b, scale=0.5))
    leaves = [t.double().requires_grad_() for t in (y, x, a, b)]
    assert torch.autograd.gradcheck(low_rank_add, leaves)
