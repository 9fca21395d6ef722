import pytest
import torch

from adazeta.estimation.eps import EPS_GRID, profile_eps


def measured(noise, curvature, probes=64, grid=EPS_GRID):
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = torch.tensor(grid, dtype=torch.float64)[:, None]
    bias = normal(1, probes) * curvature**0.5
    rounding = normal(len(grid), probes) * noise**0.5
    return normal(1, probes) + bias * scales**2 + rounding / scales


@pytest.mark.parametrize("noise, curvature", [(1e-6, 1e2), (1e-8, 1e4), (1e-5, 1e3)])
def test_recovers_both_terms_and_the_minimum(noise, curvature):
    report = profile_eps(measured(noise, curvature), EPS_GRID)
    best = (noise / (2 * curvature)) ** (1 / 6)
    # 64 directions: each variance is known to about 2 x 18%, and eps to its sixth root.
    assert report.noise == pytest.approx(noise, rel=0.6)
    assert report.curvature == pytest.approx(curvature, rel=0.6)
    assert report.eps == pytest.approx(best, rel=0.2)
    assert report.signal == pytest.approx(1.0, rel=0.5)
    assert report.reliability_at(report.eps) > 0.9
    assert report.reliability_at(1e-4) < report.reliability_at(report.eps)


def test_noise_alone_asks_for_the_largest_scale():
    assert profile_eps(measured(1e-6, 0.0), EPS_GRID).eps == pytest.approx(EPS_GRID[-1], rel=0.5)


def test_curvature_alone_asks_for_the_smallest_scale():
    assert profile_eps(measured(0.0, 1e4), EPS_GRID).eps == EPS_GRID[0]


def test_a_constant_loss_is_no_error():
    report = profile_eps(torch.zeros(len(EPS_GRID), 4, dtype=torch.float64), EPS_GRID)
    assert report.eps in EPS_GRID and report.reliability_at(1e-2) == 0.0


def test_scales_with_infinite_losses_are_left_out():
    projected = measured(1e-9, 1e2)
    projected[-2:] = float("nan")
    assert profile_eps(projected, EPS_GRID).eps <= EPS_GRID[-3]


def test_no_finite_pair_is_an_error():
    projected = torch.full((3, 2), float("inf"), dtype=torch.float64)
    with pytest.raises(ValueError, match="not finite"):
        profile_eps(projected, (1e-3, 1e-2, 1e-1))


def test_eps_has_the_same_bits_wherever_the_losses_lie_in_memory():
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(len(EPS_GRID), 8, generator=generator, dtype=torch.float64)
    scales = torch.tensor(EPS_GRID, dtype=torch.float64)[:, None]
    values = 1 + 1e-5 * slopes / scales + 1e3 * slopes.flip(1) * scales**2
    found = set()
    for offset in range(16):
        memory = torch.zeros(values.numel() + offset, dtype=torch.float64)
        placed = memory[offset:].view_as(values)
        placed.copy_(values)
        kept = [torch.empty(8 * k + offset) for k in range(4)]  # so that the heap differs too
        report = profile_eps(placed, EPS_GRID)
        found.add((report.eps, report.noise, report.curvature, report.signal))
        del kept
    assert len(found) == 1
    assert report.noise > 0 and report.curvature > 0
