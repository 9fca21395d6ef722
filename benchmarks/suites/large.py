"""``large``: a training step of a 7B model on an accelerator: its time and memory beside inference.

``python -m benchmarks large --device cuda --json FILE``. The model is the architecture of
Llama-2-7B in bfloat16 with random weights, on which neither time nor memory depends; ``--small``
takes a tiny one. One query is two evaluations, so the floor is two forwards of the model without
adapters, on the same random tokens, with the last position's logits only. Providers named
``..._graphs`` replay each evaluation as one CUDA graph; without a card their replays run the
recorded function again, and a model that cannot be recorded has no such rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from adazeta import ZOSGD
from adazeta.adapters.attach import add_tt_adapters, remove_adapters
from adazeta.adapters.config import TTAdapterConfig
from adazeta.optim.optimizer import ZerothOrderOptimizer
from adazeta.support.memory import PeakMemory
from benchmarks.measure.graphs import with_graphs
from benchmarks.measure.harness import Cell, Options, Row, compare, require, timed

# (rows, tokens of each).
BATCHES = ((4, 64), (16, 256))
SEVEN_B = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
)
TINY = LlamaConfig(
    vocab_size=128, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
)


def rows(options: Options) -> list[Row]:
    """Measure forwards and steps, with adapters and with all parameters."""
    found: list[Row] = []
    for batch, tokens in ((2, 5),) if options.small else BATCHES:
        if options.wants("large", f"batch_{batch}"):
            found += measure(options, batch, tokens)
    return found


def build(config: LlamaConfig, device: str) -> nn.Module:
    """Make the model on the device; the weights are small normals."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name else weight.normal_(0.0, 0.02)
    # Buffers that are made from the configuration and were not filled.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config).to(device)
    return model.requires_grad_(False).eval()


def measure(options: Options, batch: int, tokens: int) -> list[Row]:
    """Measure one batch size; a model of its own for each, so that nothing is left over."""
    device = options.device
    model = build(TINY if options.small else SEVEN_B, device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (batch, tokens), generator=generator).to(device)
    labels = torch.arange(batch, device=device) % 2
    inputs = {"input_ids": ids, "labels": labels}

    def losses(inputs: dict[str, Tensor]) -> Tensor:
        logits = model(input_ids=inputs["input_ids"], logits_to_keep=1, use_cache=False).logits
        return functional.cross_entropy(
            logits[:, -1, 7:9].float(), inputs["labels"], reduction="none"
        )

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(2):
            losses(inputs)

    cell = Cell("large", "step", f"batch_{batch}", "queries", 1, device, "bfloat16")
    config = {"model": "Llama-2-7B, random weights", "tokens_of_a_row": tokens}
    found: list[Row] = []

    def add(name: str, run: Callable[[], Any]) -> None:
        """Measure the time and the memory of one provider."""
        found.extend(compare(cell, {name: run}, options, config=config))
        with PeakMemory() as memory:
            timed(run, device)
        found.append(cell.row(name, "peak_memory", "MiB", [memory.mebibytes], config))

    add("floor", forwards)
    add_tt_adapters(model, TTAdapterConfig(rank=8))
    with torch.no_grad():  # or the graph of this forward would count as memory of the steps
        sane = bool(torch.isfinite(losses(inputs)).all())
    require(sane, "the losses of the large model are not finite")
    options_of = {"lr": 1e-6, "eps": 1e-2, "queries": 1, "check_eps": False}

    def add_steps(name: str, optimizer: ZerothOrderOptimizer) -> None:
        """Measure steps as they are, and with graphs."""

        def step() -> None:
            optimizer.step(losses, inputs)

        add(name, step)
        graphs = with_graphs(optimizer, model, device)
        step(), step()  # records, and compares with plain evaluations
        if graphs.problem is None:
            add(f"{name}_graphs", step)

    for name, together in (("adazeta", 1), ("adazeta_stacked", 2)):
        add_steps(f"{name}_adapters", ZOSGD(model, probes_per_forward=together, **options_of))
    remove_adapters(model)
    model.requires_grad_(True)
    add_steps("adazeta_full", ZOSGD(model, **{**options_of, "lr": 1e-9, "eps": 1e-3}))
    floor = next(r for r in found if r["provider"] == "floor" and r["metric"] == "time")
    for row in [r for r in found if r["metric"] == "time" and r["provider"] != "floor"]:
        ratio = row["median"] / floor["median"]
        found.append(cell.row(row["provider"], "times_the_forwards", "times", [ratio], config))
    return found
