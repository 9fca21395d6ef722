"""``tt``: tensor-train layers and adapters against the official composition of tensordots."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from adazeta.adapters.config import TTAdapterConfig
from adazeta.adapters.layers import TTAdapter
from adazeta.kernels import gaussian, tt_linear
from adazeta.parameters.space import ParameterSpace
from benchmarks.measure.harness import Cell, Options, Provider, Row, compare, require
from benchmarks.subjects import reference_path

EPS = 1e-3


def rows(options: Options) -> list[Row]:
    """Time one layer and one adapter, for one parameter vector and for several at once."""
    found: list[Row] = []
    width = 40 if options.small else 576
    for tokens in (12,) if options.small else (64, 512) if options.quick else (64, 512, 4096):
        for op, measure in (("tt_linear", linear), ("tt_adapter", adapter)):
            if options.wants("tt", op, "forward", str(tokens)):
                found += measure(
                    Cell("tt", op, "forward", "tokens", tokens, options.device), width, options
                )
        for probes in (2,) if options.small else (8,):
            if options.wants("tt", "tt_adapter", f"stacked_{probes}", str(tokens)):
                cell = Cell(
                    "tt", "tt_adapter", f"stacked_{probes}", "tokens", tokens, options.device
                )
                found += stacked(cell, width, probes, options)
    return found


def _adapter(width: int, device: str) -> TTAdapter:
    return TTAdapter(width, TTAdapterConfig(rank=5, init="paper"), device=device)


def _agree(found: Tensor, expected: Tensor, what: str) -> None:
    require(
        torch.allclose(found, expected, atol=1e-5, rtol=1e-4),
        f"{what} does not equal the reference composition (largest difference "
        f"{(found - expected).abs().max().item():.2g}); no time is reported",
    )


@torch.no_grad()
def linear(cell: Cell, width: int, options: Options) -> list[Row]:
    """Compare the down-projection of an adapter, ``width -> 64``, rank 5."""
    layer = _adapter(width, cell.device).down
    x = torch.randn(int(cell.x_value), width, device=cell.device)
    cores, shape = list(layer.cores), layer.shape
    settings: dict[str, Any] = {"cut": shape.cut, "out_features": shape.out_features}
    providers: dict[str, Provider] = {
        "reference": partial(reference_path.tt_linear, x, cores, layer.bias, **settings),
        "adazeta": partial(tt_linear, x, cores, layer.bias, **settings),
    }
    _agree(providers["adazeta"](), providers["reference"](), "tt_linear")
    return compare(cell, providers, options, config=_config(width))


@torch.no_grad()
def adapter(cell: Cell, width: int, options: Options) -> list[Row]:
    """Compare a whole adapter."""
    module = _adapter(width, cell.device)
    x = torch.randn(int(cell.x_value), width, device=cell.device)
    providers: dict[str, Provider] = {
        "reference": partial(reference_path.tt_adapter, module, x),
        "adazeta": partial(module, x),
        "floor": lambda: x + 1.0,
    }
    _agree(providers["adazeta"](), providers["reference"](), "the adapter")
    return compare(cell, providers, options, config=_config(width))


@torch.no_grad()
def stacked(cell: Cell, width: int, probes: int, options: Options) -> list[Row]:
    """Compare P perturbed adapters: ours in one call, the reference one after another.

    The reference's perturbed parameters are made beforehand; making ours is in its time.
    """
    module = _adapter(width, cell.device)
    space = ParameterSpace(module)
    x = torch.randn(probes, -(-int(cell.x_value) // probes), width, device=cell.device)
    seeds = torch.arange(1, probes + 1, device=cell.device)
    scales = torch.full((probes,), EPS, device=cell.device)
    moved = [_adapter(width, cell.device) for _ in range(probes)]
    for seed, copy in enumerate(moved, start=1):
        for offset, theta, target in zip(
            space.offsets, space.parameters, copy.parameters(), strict=True
        ):
            noise = gaussian(seed, offset, theta.numel(), device=cell.device)
            target.copy_(theta + EPS * noise.view(theta.shape))

    def ours() -> Tensor:
        with space.stacked(seeds, scales):
            return module(x)

    def reference() -> Tensor:
        return torch.stack(
            [reference_path.tt_adapter(m, rows) for m, rows in zip(moved, x, strict=True)]
        )

    def factors() -> None:
        with space.stacked(seeds, scales):
            pass

    providers: dict[str, Provider] = {
        "reference": reference,
        "adazeta": ours,
        "adazeta_factors_only": factors,
    }
    _agree(ours(), reference(), "the stacked adapter")
    return compare(cell, providers, options, config={**_config(width), "probes": probes})


def _config(width: int) -> dict[str, Any]:
    return {"width": width, "rank": 5, "bottleneck": 64}
