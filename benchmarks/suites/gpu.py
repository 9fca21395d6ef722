"""``gpu``: the ops on an accelerator, against what its memory and its launches allow.

``python -m benchmarks gpu --device cuda --json FILE``. Every cell checks its op against the CPU
reference, or float64, first. ``--small`` runs the same code on tiny sizes on any device.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adazeta import ZOAdam
from adazeta.kernels import (
    Factors,
    adam_update_,
    add_noise_,
    momentum_update_,
    perturbed_copies,
    stacked_factors,
    tt_adapter,
    use_backend,
)
from adazeta.kernels.gpu.variants import all_variants
from adazeta.kernels.plan import FactorLayer, FactorPlan
from adazeta.support.settings import dtype_name
from benchmarks.measure.harness import Cell, Options, Row, require
from benchmarks.subjects.workload import small_workload
from benchmarks.suites import gpu_graphs

SEEDS, COEFFICIENTS = (3, 1 << 40, 12345), (0.1, -0.01, 2.5)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# More than the L2 of any card (50 MB on an H100), and enough to write for the host to queue the
# work that is timed before the card is through with it.
FLUSH_BYTES = 1 << 30
ADAM = {
    "beta1": 0.9,
    "beta2": 0.99,
    "lr": 1e-4,
    "epsilon": 1e-8,
    "correction1": 0.5,
    "correction2": 0.5,
}

Run = Callable[[], Any]


def rows(options: Options) -> list[Row]:
    """Measure bandwidth, the adapter and the launches of a step."""
    found: list[Row] = []
    for dtype in DTYPES:
        for op, probes in (
            ("add_noise_", 1),
            ("add_noise_", 3),
            ("perturbed_copies", 4),
            ("momentum_update_", 1),
            ("adam_update_", 1),
        ):
            if options.wants("gpu", op, dtype_name(dtype)):
                found += noise(options, dtype, probes, op)
        for direction, few in (("forward", False), ("forward", True), ("backward", False)):
            if options.wants("gpu", "tt_adapter", direction, dtype_name(dtype)):
                found += adapter(options, dtype, backward=direction == "backward", few=few)
    if options.wants("gpu", "stacked_factors"):
        found += factors(options)
    if options.wants("gpu", "launches"):
        found += launches(options)
    if options.wants("gpu", "evaluation"):
        found += gpu_graphs.evaluations(options, measure)
    return found


def _call(op: str, theta: Tensor, states: list[Tensor], seeds: Tensor, coefficients: Tensor) -> Any:
    """Call one op on a parameter with up to two states; the result is what it wrote."""
    if op == "add_noise_":
        return add_noise_(theta, seeds, coefficients)
    if op == "perturbed_copies":
        return perturbed_copies(theta, seeds, coefficients)
    if op == "momentum_update_":
        momentum_update_(theta, states[0], seeds, coefficients, momentum=0.9, lr=1e-4)
    else:
        adam_update_(theta, *states, seeds, coefficients, **ADAM)
    return theta


def _moved(op: str, size: int, probes: int) -> int:
    """Bytes that an op has to move for an element of ``size`` bytes."""
    return {
        "add_noise_": 2 * size,
        "perturbed_copies": size * (1 + probes),
        "momentum_update_": 2 * size + 8,
        "adam_update_": 2 * size + 16,
    }[op]


def noise(options: Options, dtype: torch.dtype, probes: int, op: str = "add_noise_") -> list[Row]:
    """Bandwidth of a noise op beside that of a device copy."""
    count = 4_096 if options.small else 1 << 27
    device = options.device
    seeds = torch.arange(3, 3 + probes) * ((1 << 40) + 1)
    scales = torch.linspace(0.1, 0.4, probes)
    probe, start = torch.randn(5_003).to(dtype), [torch.rand(5_003), torch.rand(5_003)]
    with use_backend("reference"):
        expected = _call(op, probe.clone(), [s.clone() for s in start], seeds, scales)
    got = _call(
        op,
        probe.to(device, copy=True),
        [s.to(device, copy=True) for s in start],
        seeds.to(device),
        scales.to(device),
    )
    require(
        torch.equal(got.cpu(), expected),
        f"{op} in {dtype} does not have the bits of the CPU reference",
    )
    theta = torch.zeros(count, dtype=dtype, device=device)
    other = torch.empty_like(theta)
    states = [torch.zeros(count if op.endswith("update_") else 0, device=device) for _ in range(2)]
    cell = Cell("gpu", op, f"{probes} probes", "elements", count, device, dtype_name(dtype))
    size = theta.element_size()
    bytes_of = {"floor": 2 * size * count, "adazeta": _moved(op, size, probes) * count}
    providers: dict[str, Run] = {
        "floor": lambda: other.copy_(theta),
        "adazeta": partial(_call, op, theta, states, seeds.to(device), scales.to(device)),
    }
    if op == "add_noise_":
        bytes_of["adazeta_pairs"] = bytes_of["adazeta"]
        providers["adazeta_pairs"] = partial(
            add_noise_, theta, seeds.to(device), scales.to(device), distribution="pairs"
        )
    if op == "add_noise_" and probes == 1:
        # What MeZO does for a tensor.
        bytes_of["torch_normal"] = bytes_of["adazeta"]
        providers["torch_normal"] = lambda: theta.add_(
            torch.normal(0.0, 1.0, theta.shape, device=device, dtype=dtype), alpha=0.1
        )
    times = measure(providers, options)
    rates = {name: [bytes_of[name] / s / 1e9 for s in seconds] for name, seconds in times.items()}
    fractions = {
        name: [ours / copy for ours, copy in zip(values, rates["floor"], strict=True)]
        for name, values in rates.items()
        if name.startswith("adazeta")
    }
    return [
        *(cell.row(name, "bandwidth", "GB/s", values, {}) for name, values in rates.items()),
        *(cell.row(n, "fraction_of_copy", "times", values, {}) for n, values in fractions.items()),
    ]


def adapter(
    options: Options, dtype: torch.dtype, *, backward: bool = False, few: bool = False
) -> list[Row]:
    """``tt_adapter`` beside eager torch, torch.compile, and copies of what has to be moved.

    ``few`` takes rows so few that their columns are split over programs.
    """
    tokens, width, rank, middle = (7, 96, 5, 64) if options.small else (16_384, 4_096, 8, 64)
    if few:
        tokens, width = (3, 263) if options.small else (256, width)
    device = options.device
    down, up = (
        Factors(
            torch.randn(n, rank, device=device) / n**0.5,
            torch.randn(rank, m, device=device) / rank**0.5,
            torch.randn(m, device=device),
        )
        for n, m in ((width, middle), (middle, width))
    )
    x = torch.randn(tokens, width, device=device).to(dtype)

    def eager(x: Tensor) -> Tensor:
        hidden = torch.relu((x.float() @ down.a) @ down.b + down.bias)
        return (x.float() + (hidden @ up.a) @ up.b + up.bias).to(x.dtype)

    def ours(x: Tensor) -> Tensor:
        return tt_adapter(x, down, up)

    head = x[:64]
    exact = [
        Factors(*(None if part is None else part.cpu().double() for part in side))
        for side in (down, up)
    ]
    wide = head.cpu().double().requires_grad_(backward)
    reference = tt_adapter(wide, *exact)
    error = (ours(head).cpu().double() - reference).abs().max()
    bound = 2.0 ** {torch.float32: -18, torch.float16: -9, torch.bfloat16: -6}[dtype]
    require(
        bool(error <= bound * reference.abs().max()),
        f"tt_adapter in {dtype} errs by {error:.2e} against float64",
    )
    floor: Run = x.clone
    providers: dict[str, Callable[[Tensor], Tensor]] = {"eager": eager, "adazeta": ours}
    if device == "cuda":
        providers["compiled"] = torch.compile(eager)
    runs: dict[str, Run] = {name: partial(run, x) for name, run in providers.items()}
    if backward:
        (truth,) = torch.autograd.grad(reference.sum(), wide)
        leaves = [part.requires_grad_() for side in (down, up) for part in side if part is not None]
        x.requires_grad_()
        (got,) = torch.autograd.grad(ours(x)[:64].sum(), x)
        worst = (got[:64].cpu().double() - truth).abs().max()
        require(
            bool(worst <= bound * truth.abs().max()),
            f"the gradient of tt_adapter in {dtype} errs by {worst:.2e} against float64",
        )
        weight = torch.ones_like(x)
        other = torch.empty_like(x)
        floor = partial(_copies, x.detach(), weight, other)
        runs = {
            name: partial(_gradients, run, x, leaves, weight) for name, run in providers.items()
        }
    cell = Cell(
        "gpu",
        "tt_adapter",
        "backward" if backward else "forward",
        "rows",
        tokens,
        device,
        dtype_name(dtype),
    )
    with torch.set_grad_enabled(backward):
        times = measure({"floor": floor, **runs}, options)
    config = {"width": width, "rank": rank, "bottleneck": middle}
    found = [
        cell.row(name, "time", "ms", [1e3 * s for s in seconds], config)
        for name, seconds in times.items()
    ]
    for base in set(times) - {"adazeta"}:
        ratios = [b / s for b, s in zip(times[base], times["adazeta"], strict=True)]
        found.append(cell.row("adazeta", f"speedup_over_{base}", "times", ratios, config))
    return found


def _copies(x: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """Move what a forward and a backward pass have to: x to y, x and y's gradient to x's."""
    torch.add(x, grad, out=out)
    return x.clone()


def _gradients(
    run: Callable[[Tensor], Tensor], x: Tensor, leaves: list[Tensor], weight: Tensor
) -> tuple[Tensor, ...]:
    """Do a forward and a backward pass."""
    return torch.autograd.grad(run(x), [x, *leaves], weight)


def model_plan(layers: int, modes: tuple[int, ...], rank: int) -> FactorPlan:
    """Lay out equal layers whose input and output modes are the same."""
    every = (*modes, *modes)
    ranks = [1, *[rank] * (len(every) - 1), 1]
    shapes = tuple((ranks[k], mode, ranks[k + 1]) for k, mode in enumerate(every))
    found, start = [], 0
    for _ in range(layers):
        offsets = []
        for left, mode, right in shapes:
            offsets.append(start)
            start += -(-left * mode * right // 4) * 4
        width = int(torch.tensor(modes).prod())
        found.append(FactorLayer(tuple(offsets), shapes, len(modes), width, width, None))
    return FactorPlan(tuple(found))


def factors(options: Options) -> list[Row]:
    """``stacked_factors`` of a whole model: its time beside writing as many bytes."""
    layers, modes, rank, probes = (2, (2, 3), 2, 2) if options.small else (64, (8, 8, 8, 8), 8, 16)
    plan = model_plan(layers, modes, rank)
    theta = torch.randn(plan.extent)
    seeds, scales = torch.arange(probes), torch.full((probes,), 0.01)
    small = model_plan(2, modes, rank)
    with use_backend("reference"):
        expected = stacked_factors(theta, small, seeds[:2], scales[:2])
    theta, seeds, scales = (v.to(options.device) for v in (theta, seeds, scales))
    got = stacked_factors(theta, small, seeds[:2], scales[:2]).cpu()
    for a, b in zip(small.views(got), small.views(expected), strict=True):
        require(
            torch.equal(a.a, b.a) and torch.equal(a.b, b.b),
            "stacked_factors does not have the bits of the CPU reference",
        )
    out = torch.empty(probes, plan.size, device=options.device)
    times = measure(
        {
            "floor": lambda: out.fill_(1.0),
            "adazeta": lambda: stacked_factors(theta, plan, seeds, scales),
        },
        options,
    )
    cell = Cell("gpu", "stacked_factors", f"{probes} probes", "layers", layers, options.device)
    return [
        cell.row(
            name, "time", "ms", [1e3 * s for s in seconds], {"modes": list(modes), "rank": rank}
        )
        for name, seconds in times.items()
    ]


def launches(options: Options) -> list[Row]:
    """Kernels that single calls over 1,000 tensors start, and a training step of our own ones."""
    count = 10 if options.small else 1_000
    device = options.device
    tensors, first, second = (
        [torch.zeros(64 + index % 7, device=device) for index in range(count)] for _ in range(3)
    )
    where = torch.tensor(SEEDS, device=device)
    scales = torch.tensor(COEFFICIENTS, device=device)
    calls: dict[str, Run] = {
        "add_noise_": lambda: add_noise_(tensors, where, scales),
        "momentum_update_": lambda: momentum_update_(
            tensors, first, where, scales, momentum=0.9, lr=1e-4
        ),
        "adam_update_": lambda: adam_update_(tensors, first, second, where, scales, **ADAM),
    }
    found = []
    for name, run in calls.items():
        number = sum(kernels_started(run, device).values())
        cell = Cell("gpu", "launches", name, "tensors", count, device)
        found.append(cell.row("adazeta", "launches", "kernels", [number], {}))
    work = small_workload(device)
    ours = {variant.kernel.__name__ for variant in all_variants()}
    # Two queries are four evaluations: one after another, or stacked in one forward.
    for mode, together in (
        (("stacked_step", 4),) if options.small else (("step", 1), ("stacked_step", 4))
    ):
        model, batch = work.model("adapters_last10"), work.batch(2)
        optimizer = ZOAdam(
            model, lr=1e-3, eps=1e-2, queries=2, check_eps=False, probes_per_forward=together
        )
        started = kernels_started(
            partial(optimizer.step, lambda rows, model=model: work.losses(model, rows)[0], batch),
            device,
        )
        counts = {name: number for name, number in started.items() if name in ours}
        cell = Cell("gpu", "launches", mode, "queries", 2, device)
        found.append(
            cell.row(
                "adazeta",
                "launches",
                "kernels",
                [sum(counts.values())],
                {"by_kernel": counts, "all_kernels": sum(started.values())},
            )
        )
    return found


def kernels_started(run: Run, device: str) -> Counter[str]:
    """Count the device kernels of a call by name; on the CPU, what the interpreter is asked for."""
    if device == "cuda":
        run()  # compile, and fill the caches of tables
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            run()
            torch.cuda.synchronize()
        return Counter(
            event.name
            for event in profile.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
            and not event.name.startswith(("Memcpy", "Memset"))
        )
    from triton.runtime.interpreter import GridExecutor

    started: Counter[str] = Counter()
    original = GridExecutor.__call__

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        started[self.fn.__name__] += 1
        return original(self, *arguments, **options)

    GridExecutor.__call__ = counted
    try:
        with use_backend("triton"):
            run()
    finally:
        GridExecutor.__call__ = original
    return started


def measure(providers: dict[str, Run], options: Options) -> dict[str, list[float]]:
    """Time providers in turn, each with a cold L2 and by the device's own clock; seconds."""
    flush = torch.empty(
        1 if options.small else FLUSH_BYTES, dtype=torch.int8, device=options.device
    )
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


def _seconds(run: Run, device: str) -> float:
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
