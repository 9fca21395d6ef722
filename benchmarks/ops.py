"""The operations alone: noise against torch's normal-and-add, tt_linear against a dense product."""

from typing import Any

import torch

from adazeta.kernels import add_noise_, gaussian, tt_factors, tt_linear
from benchmarks.harness import compare

Rows = list[dict[str, Any]]


def rows(device: str, repeats: int, *, small: bool = False) -> Rows:
    """Run all of them."""
    counts = (1_000,) if small else (3_168, 610_560, 4_000_000)
    found: Rows = []
    for count in counts:
        found += noise(count, device, repeats)
    for tokens in (8,) if small else (64, 1024):
        found += tensor_train(tokens, 40 if small else 576, device, repeats)
    return found


def noise(count: int, device: str, repeats: int) -> Rows:
    """One perturbation ``theta += eps z`` of ``count`` parameters."""
    theta = torch.randn(count, device=device)
    expected = theta + 1e-3 * gaussian(7, 0, count, device=device)
    if not torch.equal(add_noise_([theta], [7], [1e-3], out=[theta.clone()])[0], expected):
        raise RuntimeError("add_noise_ does not equal its definition; no time is reported")
    generator = torch.Generator(device=device)

    def reference() -> None:
        # The official sequence: one normal tensor, scaled twice, added.
        generator.manual_seed(7)
        z = torch.normal(
            torch.zeros_like(theta), torch.ones_like(theta), generator=generator
        )
        theta.copy_(theta + 1 * z * 1e-3)

    def ours() -> None:
        add_noise_([theta], [7], [1e-3])

    def floor() -> None:
        theta.mul_(1.0)

    providers = {"reference": reference, "adazeta": ours, "floor": floor}
    return compare(
        providers,
        op="add_noise_",
        x_name="elements",
        x_value=count,
        device=device,
        repeats=repeats,
        config={"probes": 1},
    )


def tensor_train(tokens: int, width: int, device: str, repeats: int) -> Rows:
    """Down-projection of an adapter, ``width -> 64``, rank 5, against building the matrix."""
    modes = ((8, 8, 9), (4, 4, 4)) if width == 576 else ((4, 10), (8, 8))
    sizes = [*modes[0], *modes[1]]
    ranks = [1, *[5] * (len(sizes) - 1), 1]
    cores = [
        torch.randn(ranks[k], n, ranks[k + 1], device=device) / 2 for k, n in enumerate(sizes)
    ]
    x = torch.randn(tokens, width, device=device)
    options = {"cut": len(modes[0]), "out_features": 64}

    def dense() -> torch.Tensor:
        a, b = tt_factors(cores, cut=options["cut"], in_features=width, out_features=64)
        return x @ (a @ b)

    def ours() -> torch.Tensor:
        return tt_linear(x, cores, **options)

    with torch.no_grad():
        torch.testing.assert_close(ours(), dense(), atol=1e-3, rtol=1e-3)
        return compare(
            {"reference": dense, "adazeta": ours},
            op="tt_linear",
            x_name="tokens",
            x_value=tokens,
            device=device,
            repeats=repeats,
            config={"width": width, "rank": 5, "bottleneck": 64},
        )
