"""``host``: the host's time of an adapter call and of an evaluation, every launch stubbed.

``python -m benchmarks host --json FILE``. Needs no card: Triton compiles for one that is not there
(``measure/stubbed.py``), so what is measured is all that Python does, and what is left out is the
launcher in C and the driver, some 5 us a launch. What torch copies is copied, by the CPU here:
``copies`` are those of an evaluation, which a card would do.

The model has the shape of Llama-2-7B as far as adapters see it, 32 blocks of width 4096 with 64
adapters; its matrices are thin, so that its forward is mostly Python's time too.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from adazeta import ParameterSpace
from adazeta.adapters.attach import add_tt_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.kernels import Factors, tt_adapter
from adazeta.parameters.buffered import BufferedPerturbation
from benchmarks.measure import stubbed
from benchmarks.measure.harness import Cell, Options, Row, require

WIDTH, BOTTLENECK, RANK = 4096, 64, 8
BATCH, TOKENS = 4, 64
ROUNDS = 15

# The arguments of the first launches; to keep all would keep all results.
launches: list[tuple[Any, ...]] = []
KEPT = 4


def rows(options: Options) -> list[Row]:
    """Measure in a process of its own, whose Triton finds the stub."""
    require(options.device == "cpu", "host stubs the launches; leave --device cpu")
    given = {"small": options.small, "only": options.only, "rounds": options.rounds}
    found: list[Row] = json.loads(stubbed.run(__name__, [json.dumps(given)]))
    return found


def main(arguments: list[str]) -> None:
    """Print the rows as JSON; inside the process of the stub."""
    options = Options(**json.loads(arguments[0]))
    torch.set_num_threads(1)
    stubbed.stub(keep_the_first)
    stubbed.serve_cpu_tensors()
    found: list[Row] = []
    with torch.no_grad():
        if options.wants("host", "tt_adapter"):
            found += adapter(options)
        if options.wants("host", "evaluation"):
            found += evaluation(options)
    print(json.dumps(found))


def keep_the_first(*launch: Any) -> None:
    """Launch nothing."""
    if len(launches) < KEPT:
        launches.append(launch[9:])


def adapter(options: Options) -> list[Row]:
    """One adapter on 4 x 64 tokens in bfloat16, beside the usual launches of its kernels alone."""
    from adazeta.kernels.gpu import prepared

    size = 2 * (WIDTH + BOTTLENECK) * RANK
    flat = torch.randn(1, size)

    def factors(start: int, n: int, m: int) -> Factors:
        # As FactorPlan.views cuts them.
        end = start + n * RANK
        return Factors(
            flat.as_strided((1, n, RANK), (size, 1, n), start),
            flat.as_strided((1, RANK, m), (size, m, 1), end),
            flat.as_strided((1, m), (size, 1), 0),
        )

    down = factors(0, WIDTH, BOTTLENECK)
    up = factors(size // 2, BOTTLENECK, WIDTH)
    x = torch.randn(BATCH, TOKENS, WIDTH).to(torch.bfloat16)

    prepared_ones: list[tuple[Any, ...]] = []
    begin = prepared.Prepared.__init__

    def watched(self: Any, *given: Any) -> None:
        begin(self, *given)
        prepared_ones.append(given)

    prepared.Prepared.__init__ = watched  # type: ignore[method-assign]
    tt_adapter(x, down, up)
    prepared.Prepared.__init__ = begin  # type: ignore[method-assign]
    require(len(launches) == len(prepared_ones), "an adapter launched what it did not prepare")
    usual = [
        (kernel[grid], given[: sum(name not in settings for name in kernel.arg_names)], settings)
        for (kernel, grid, settings), given in zip(prepared_ones, launches, strict=True)
    ]

    def launch() -> None:
        for kernel, given, settings in usual:
            kernel(*given, **settings)

    return _compared(
        Cell("host", "tt_adapter", "forward", "rows", BATCH * TOKENS, "cpu", "bfloat16"),
        {"kernel[grid]": launch, "adazeta": lambda: tt_adapter(x, down, up)},
        options,
        calls=20 if options.small else 500,
        unit="us",
    )


def evaluation(options: Options) -> list[Row]:
    """Perturb a 7B shape, and run it so, beside the model's own forward."""
    blocks = 2 if options.small else 32
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=blocks,
            num_attention_heads=1, num_key_value_heads=1, head_dim=16,
        )
    )  # fmt: skip
    model.eval().requires_grad_(False)
    ids = torch.ones(1, 1, dtype=torch.int64)

    def forward() -> Tensor:
        logits: Tensor = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
        return logits

    found = _compared(
        Cell("host", "evaluation", "bare", "adapters", 0, "cpu"),
        {"forward": forward},
        options,
        calls=3,
        unit="ms",
    )
    # No initial values: that is the work of the kernels, which do none.
    add_tt_adapters(model, TTAdapterConfig(rank=RANK), seed=None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    space = ParameterSpace(model)

    def perturb() -> None:
        with space.perturbed(5, 1e-2):
            pass

    strategy = space.strategy
    require(isinstance(strategy, BufferedPerturbation), "adapters have no buffer")
    kept = [torch.empty_like(tensor) for tensor in strategy.tensors]

    def copies() -> None:
        for tensor, other in zip(strategy.tensors, kept, strict=True):
            other.copy_(tensor)
            tensor.copy_(other)

    def evaluate() -> None:
        with space.perturbed(5, 1e-2):
            forward()

    return found + _compared(
        Cell("host", "evaluation", "perturbed", "adapters", 2 * blocks, "cpu"),
        {"perturbing": perturb, "copies": copies, "evaluation": evaluate},
        options,
        calls=3 if options.small else 10,
        unit="ms",
    )


def _compared(
    cell: Cell, runs: dict[str, Callable[[], Any]], options: Options, *, calls: int, unit: str
) -> list[Row]:
    """Take the processor's time of each in turn, many calls a round."""
    factor = {"us": 1e6, "ms": 1e3}[unit]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(min(options.rounds, ROUNDS)):
        for name, run in runs.items():
            began = time.thread_time()
            for _ in range(calls):
                run()
            times[name].append((time.thread_time() - began) / calls * factor)
    return [
        cell.row(name, "host_time", unit, values, {"calls_of_a_round": calls})
        for name, values in times.items()
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
