"""``gpu``: the ops on an accelerator, against what its memory and its launches allow.

``python -m benchmarks gpu --device cuda --json FILE``. Every cell checks its op against the CPU
reference first. ``--small`` runs the same code on tiny sizes on any device.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adazeta.kernels import Factors, add_noise_, tt_adapter, use_backend
from benchmarks.harness import Cell, Options, Row, require

SEEDS, COEFFICIENTS = (3, 1 << 40, 12345), (0.1, -0.01, 2.5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# More than the L2 of any card: 50 MB on an H100.
FLUSH_BYTES = 256 << 20


def rows(options: Options) -> list[Row]:
    """Measure bandwidth, the adapter and the launches of a step."""
    found: list[Row] = []
    for dtype in DTYPES:
        for probes in (1, 3):
            if options.wants("gpu", "add_noise_", _name(dtype)):
                found += noise(options, dtype, probes)
        if options.wants("gpu", "tt_adapter", _name(dtype)):
            found += adapter(options, dtype)
    if options.wants("gpu", "launches"):
        found += launches(options)
    return found


def noise(options: Options, dtype: torch.dtype, probes: int) -> list[Row]:
    """Bandwidth of ``add_noise_`` beside that of a device copy of the same bytes."""
    count = 4_096 if options.small else 1 << 28
    device, seeds, scales = options.device, list(SEEDS[:probes]), list(COEFFICIENTS[:probes])
    probe = torch.randn(5_003).to(dtype)
    with use_backend("reference"):
        expected = add_noise_(probe.clone(), seeds, scales)
    require(torch.equal(add_noise_(probe.to(device), seeds, scales).cpu(), expected),
            f"add_noise_ in {dtype} does not have the bits of the CPU reference")
    theta, other = torch.zeros(count, dtype=dtype, device=device), torch.empty(
        count, dtype=dtype, device=device)
    where = torch.tensor(seeds, device=device)
    factors = torch.tensor(scales, device=device)
    cell = Cell("gpu", "add_noise_", f"{probes} probes", "elements", count, device, _name(dtype))
    moved = 2 * theta.element_size() * count
    times = measure({"floor": lambda: other.copy_(theta),
                     "adazeta": lambda: add_noise_(theta, where, factors)}, options)
    found = []
    for name, seconds in times.items():
        found.append(cell.row(name, "bandwidth", "GB/s", [moved / s / 1e9 for s in seconds], {}))
    fraction = [a / b for a, b in zip(times["floor"], times["adazeta"], strict=True)]
    return [*found, cell.row("adazeta", "fraction_of_copy", "times", fraction, {})]


def adapter(options: Options, dtype: torch.dtype) -> list[Row]:
    """``tt_adapter`` beside the same in eager torch, in torch.compile, and a copy of x."""
    tokens, width, rank, middle = (7, 96, 5, 64) if options.small else (16_384, 4_096, 8, 64)
    device = options.device
    down, up = (Factors(torch.randn(n, rank, device=device) / n ** 0.5,
                        torch.randn(rank, m, device=device) / rank ** 0.5,
                        torch.randn(m, device=device)) for n, m in ((width, middle),
                                                                    (middle, width)))
    x = torch.randn(tokens, width, device=device).to(dtype)

    def eager(x: Tensor) -> Tensor:
        hidden = torch.relu((x.float() @ down.a) @ down.b + down.bias)
        return (x.float() + (hidden @ up.a) @ up.b + up.bias).to(x.dtype)

    exact = [Factors(*(None if part is None else part.cpu().double() for part in side))
             for side in (down, up)]
    head = x[:64]
    reference = tt_adapter(head.cpu().double(), *exact)
    error = (tt_adapter(head, down, up).cpu().double() - reference).abs().max()
    bound = 2.0 ** {torch.float32: -18, torch.float16: -9, torch.bfloat16: -6}[dtype]
    require(bool(error <= bound * reference.abs().max()),
            f"tt_adapter in {dtype} errs by {error:.2e} against float64")
    providers: dict[str, Callable[[], Any]] = {
        "floor": x.clone, "eager": lambda: eager(x), "adazeta": lambda: tt_adapter(x, down, up)}
    if device == "cuda":
        compiled = torch.compile(eager)
        providers["compiled"] = lambda: compiled(x)
    cell = Cell("gpu", "tt_adapter", f"width {width}, rank {rank}", "rows", tokens, device,
                _name(dtype))
    with torch.no_grad():
        times = measure(providers, options)
    return [cell.row(name, "time", "ms", [1e3 * s for s in seconds], {})
            for name, seconds in times.items()]


def launches(options: Options) -> list[Row]:
    """Kernels that one ``add_noise_`` over 1,000 tensors starts, by the profiler."""
    count = 10 if options.small else 1_000
    tensors = [torch.zeros(64 + index % 7, device=options.device) for index in range(count)]
    where = torch.tensor(SEEDS, device=options.device)
    factors = torch.tensor(COEFFICIENTS, device=options.device)
    number = kernels_started(lambda: add_noise_(tensors, where, factors), options.device)
    cell = Cell("gpu", "launches", "add_noise_", "tensors", count, options.device)
    return [cell.row("adazeta", "launches", "kernels", [number], {})]


def kernels_started(run: Callable[[], Any], device: str) -> int:
    """Count the device kernels of one call; on the CPU, those that the interpreter is asked for."""
    run()  # compile, and fill the caches of tables
    if device == "cuda":
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run()
            torch.cuda.synchronize()
        return sum(event.device_type == torch.autograd.DeviceType.CUDA
                   and not event.name.startswith(("Memcpy", "Memset"))
                   for event in profile.events())
    from triton.runtime.interpreter import GridExecutor

    started = 0
    original = GridExecutor.__call__

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal started
        started += 1
        return original(self, *arguments, **options)

    GridExecutor.__call__ = counted
    try:
        with use_backend("triton"):
            run()
    finally:
        GridExecutor.__call__ = original
    return started


def measure(providers: dict[str, Callable[[], Any]], options: Options) -> dict[str, list[float]]:
    """Time providers in turn, each with a cold L2 and by the device's own clock; seconds."""
    flush = torch.empty(1 if options.small else FLUSH_BYTES, dtype=torch.int8,
                        device=options.device)
    for run in providers.values():
        for _ in range(1 if options.small else 3):
            run()
    times: dict[str, list[float]] = {name: [] for name in providers}
    began = time.perf_counter()
    for number in range(max(2, options.rounds)):
        if number >= 2 and time.perf_counter() - began > options.seconds:
            break
        for name, run in providers.items():
            flush.zero_()
            times[name].append(_seconds(run, options.device))
    return times


def _seconds(run: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
