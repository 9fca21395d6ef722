"""`add_noise_` over 1,000 tensors, a launch for each dtype, every program run in the interpreter.

The interpreter takes some 30 ms to draw the noise of a block, whatever its size. So the kernels'
own function draws the noise of a seed once, for the whole space, and its blocks are cut out of it.
"""

import pytest
import torch

from adazeta.kernels import add_noise_, use_backend

pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from adazeta.kernels.gpu import noise, normals  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Primes, odd and empty ones, and one of more than one block near the ends and in the middle.
SIZES = (0, 1, 2, 0, 7, 31, 0, 64, 127, 0, 13)
SPACE = 1 << 16


def sizes(count):
    long = {3: 2053, count // 2: 4099, count - 2: 131}
    return [long.get(index, SIZES[index % len(SIZES)]) for index in range(count)]


@pytest.fixture
def drawn_once(monkeypatch):
    if torch.cuda.is_available():
        return  # the kernels are compiled
    from triton.runtime.interpreter import InterpretedFunction, TensorHandle

    draw, call = normals.noise, InterpretedFunction.__call__
    drawn = {}

    def cut(seed, base, stream, DISTRIBUTION, BLOCK, VECTOR=4):
        key, first = int(seed), int(base)
        if key not in drawn:
            with monkeypatch.context() as slow:
                slow.setattr(InterpretedFunction, "__call__", call)
                drawn[key] = draw(seed, base * 0, stream, DISTRIBUTION, SPACE, VECTOR).handle.data
        block = tl.block_type(tl.float32, [BLOCK])
        return tl.tensor(TensorHandle(drawn[key][first : first + BLOCK], tl.float32), block)

    monkeypatch.setattr(normals, "noise", cut)
    # A launch prepares the language for the interpreter, and so does each call inside it again,
    # which would take most of the time.
    monkeypatch.setattr(
        InterpretedFunction,
        "__call__",
        lambda self, *inputs, **options: self.rewrite()(*inputs, **options),
    )


class Counter:
    """Stands in for a kernel and counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.grids = kernel, []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return self.kernel[grid]


# A program finds its tensor, whatever the number of probes; then it loops over these, whatever the
# number of tensors. So only one case has a thousand of them.
@pytest.mark.parametrize(
    ("count", "probes", "distribution"),
    [
        (1000, 1, "gaussian"),
        (100, 2, "rademacher"),
        (100, 1, "pairs"),
        (100, 7, "gaussian"),
        (50, 40, "gaussian"),
    ],
)
def test_many_tensors_are_a_launch_for_each_dtype_equal_to_the_reference(
    device, monkeypatch, drawn_once, count, probes, distribution
):
    tensors = [
        torch.randn(size).to(device, DTYPES[index % 3]) for index, size in enumerate(sizes(count))
    ]
    before = [tensor.clone() for tensor in tensors]
    expected = [torch.full_like(tensor, torch.nan) for tensor in tensors]
    seeds = torch.arange(probes, device=device) * 77
    coefficients = torch.linspace(-1, 1, probes, device=device)
    with use_backend("reference"):
        add_noise_(tensors, seeds, coefficients, decay=0.9, out=expected, distribution=distribution)
    counter = Counter(noise.add_noise_kernel)
    monkeypatch.setattr(noise, "add_noise_kernel", counter)
    with use_backend("triton"):
        add_noise_(tensors, seeds, coefficients, decay=0.9, distribution=distribution)
    assert len(counter.grids) == len(DTYPES)
    for got, old, new in zip(tensors, before, expected, strict=True):
        assert torch.equal(got, new)
        assert not got.numel() or not torch.equal(got, old)
