"""The fused adapter: reference against float64 autograd, Triton's interpreter against both."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adazeta.kernels import Factors, tt_adapter, tt_apply, use_backend
from adazeta.kernels.ops.adapter import tt_adapter_op
from adazeta.kernels.reference.adapter import ACTIVATIONS
from tests.helpers.bits import same_bits

PHI = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda h: functional.gelu(h, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "identity": lambda h: h,
}
# (probes, rows, width, bottleneck, rank down, rank up, activation, bias dims of both layers)
CASES = [
    (None, 1, 61, 70, 5, 3, "gelu", 1),
    (3, 5, 300, 64, 1, 17, "gelu_tanh", 0),
    (2, 3, 64, 8, 2, 2, "silu", 2),
    (None, 37, 13, 1, 3, 64, "tanh", 1),
    (2, 7, 17, 65, 4, 4, "relu", 1),
    (1, 2, 33, 9, 2, 1, "identity", 2),
]
WIDE = (1, 1, 8209, 8, 1, 1, "relu", 1)


def layer(
    probes: int | None,
    n: int,
    m: int,
    rank: int,
    bias_dims: int,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    lead = () if probes is None else (probes,)
    bias = [None, torch.randn(m, dtype=dtype), torch.randn(*lead, m, dtype=dtype)][bias_dims]
    return Factors(
        torch.randn(*lead, n, rank, dtype=dtype) / n**0.5,
        torch.randn(*lead, rank, m, dtype=dtype) / rank**0.5,
        bias,
    )


def plain(x: Tensor, down: Factors, up: Factors, phi: str, scale: float) -> Tensor:
    """The formula in the dtype of x, every operation by torch."""

    def apply(x: Tensor, factors: Factors) -> Tensor:
        y = x @ factors.a.to(x.dtype) @ factors.b.to(x.dtype)
        if factors.bias is None:
            return y
        bias = factors.bias.to(x.dtype)
        return y + (bias if bias.dim() == 1 else bias[:, None])

    return x + scale * apply(PHI[phi](apply(x, down)), up)


def make(case: tuple, dtype: torch.dtype) -> tuple[Tensor, Factors, Factors, str]:
    probes, rows, width, bottleneck, low, high, phi, bias = case
    x = torch.randn(*(() if probes is None else (probes,)), rows, width).to(dtype)
    return (
        x,
        layer(probes, width, bottleneck, low, bias),
        layer(probes, bottleneck, width, high, bias),
        phi,
    )


def gradients(function, tensors: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(), tensors, weight)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward_against_float64(device, backend, dtype, case):
    if backend == "triton":
        pytest.importorskip("triton")
    x, down, up, phi = make(case, dtype)
    weight = torch.randn(x.shape).to(dtype)
    leaves = [v.to(device).requires_grad_() for v in (x, *down, *up) if v is not None]
    wide = [v.detach().double().requires_grad_() for v in leaves]
    half = [v.detach().to(dtype).requires_grad_() for v in leaves]

    def split(values: list[Tensor]) -> tuple[Tensor, Factors, Factors]:
        rest = iter(values)
        first = next(rest)
        parts = [
            Factors(next(rest), next(rest), next(rest) if bias is not None else None)
            for bias in (down.bias, up.bias)
        ]
        return first, *parts

    with use_backend(backend):
        y = tt_adapter(*split(leaves), activation=phi, scale=0.7)
        got = torch.autograd.grad(y, leaves, weight.to(device))
    exact = plain(*split(wide), phi, 0.7)
    wanted = torch.autograd.grad(exact, wide, weight.double().to(device))
    rough = plain(*split(half), phi, 0.7)
    others = torch.autograd.grad(rough, half, weight.to(device))
    assert y.dtype == dtype and y.shape == x.shape
    for value, truth, other in zip((y, *got), (exact, *wanted), (rough, *others), strict=True):
        size = truth.abs().max()
        error = (value.double() - truth).abs().max()
        # float32 sums of up to 300 terms, and a value that is stored in the low precision; never
        # more than what torch loses in that precision.
        stored = torch.finfo(value.dtype).eps
        limit = size * (stored + 2e-6)
        assert error <= limit, (error / size, value.dtype)
        if dtype != torch.float32:
            assert error <= (other.double() - truth).abs().max() * 1.0 + 2e-6 * size


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_width_of_several_tiles(device, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    x, down, up, phi = make(WIDE, torch.float32)
    with use_backend(backend):
        y = tt_adapter(
            x.to(device), *(Factors(*(v.to(device) for v in f)) for f in (down, up)), activation=phi
        )
    torch.testing.assert_close(y.cpu(), plain(x, down, up, phi, 1.0))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias_dims", [0, 1])
def test_a_zero_delta_keeps_every_bit(device, backend, dtype, bias_dims):
    if backend == "triton":
        pytest.importorskip("triton")
    x, down, up = torch.randn(6, 20) * 100, layer(None, 20, 8, 1, 1), layer(None, 8, 20, 1, 0)
    up = Factors(up.a, torch.zeros_like(up.b), torch.zeros(20) if bias_dims else None)
    x[0], x[1] = 0.0, -0.0
    x = x.to(device, dtype)
    with use_backend(backend):
        for scale in (0.5, -2.0):
            y = tt_adapter(
                x,
                *(Factors(*(v if v is None else v.to(device) for v in f)) for f in (down, up)),
                scale=scale,
            )
            assert same_bits(y, x)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_no_rows(device, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    down, up = (
        Factors(*(v.to(device) for v in layer(2, *shape, 2, 1))) for shape in ((4, 3), (3, 4))
    )
    x = torch.zeros(0, 4, device=device).requires_grad_()
    with use_backend(backend):
        y = tt_adapter(x, down, up)
        y.sum().backward()
        assert tt_apply(x, down).shape == (0, 3)
    assert y.shape == (0, 4) and x.grad is not None and x.grad.shape == (0, 4)


@pytest.mark.parametrize("phi", ACTIVATIONS)
@pytest.mark.parametrize(("probes", "bias_dims"), [(None, 0), (None, 1), (2, 1), (2, 2)])
def test_gradcheck(phi, probes, bias_dims):
    down = layer(probes, 4, 3, 2, bias_dims, torch.float64)
    up = layer(probes, 3, 4, 2, bias_dims, torch.float64)
    x = torch.randn(4, 4, dtype=torch.float64)
    inputs = [v.requires_grad_() for v in (x, *down, *up) if v is not None]
    size = 3 if bias_dims else 2

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        return tt_adapter(
            x, Factors(*rest[:size]), Factors(*rest[size:]), activation=phi, scale=1.5
        )

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(("probes", "bias_dims"), [(None, 0), (2, 2)])
def test_op_passes_opcheck(device, probes, bias_dims):
    down, up = layer(probes, 5, 4, 2, bias_dims), layer(probes, 4, 5, 2, bias_dims)
    x = torch.randn(*(() if probes is None else (probes,)), 3, 5)
    values = [None if v is None else v.to(device).requires_grad_() for v in (x, *down, *up)]
    torch.library.opcheck(tt_adapter_op, (*values, "gelu", 0.5))


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_without_graph_breaks(device, grad):
    down, up = (
        Factors(*(v.to(device).requires_grad_(grad) for v in layer(None, *shape, 2, 1)))
        for shape in ((6, 4), (4, 6))
    )
    x = torch.randn(3, 6, device=device)

    def function(x: Tensor) -> Tensor:
        return tt_adapter(x, down, up, activation="silu").cos()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x))
    if grad:
        leaves = [*down, *up]
        torch.testing.assert_close(
            torch.autograd.grad(compiled(x).sum(), leaves),
            torch.autograd.grad(function(x).sum(), leaves),
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "rellu"}, ValueError, "activation is 'rellu'"),
        ({"x": torch.zeros(2, 7)}, ValueError, "input of width 7"),
        ({"x": torch.zeros(2, 6, dtype=torch.int32)}, TypeError, "torch.int32"),
        ({"up": layer(None, 4, 7, 2, 0)}, ValueError, "return to the width"),
        ({"up": layer(None, 5, 6, 2, 0)}, ValueError, "factors of up"),
        (
            {"up": layer(None, 4, 6, 2, 0)._replace(bias=torch.zeros(5))},
            ValueError,
            "bias of shape",
        ),
        ({"down": layer(3, 6, 4, 2, 0), "up": layer(3, 4, 6, 2, 0)}, ValueError, "3 equal groups"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {
        "x": torch.zeros(2, 6),
        "down": layer(None, 6, 4, 2, 0),
        "up": layer(None, 4, 6, 2, 0),
    } | change
    with pytest.raises(error, match=message):
        tt_adapter(**arguments)
