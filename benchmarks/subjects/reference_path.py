"""The official training step, op for op, in plain PyTorch: what AdaZeta is measured against.

Written from a description of the public AdaZeta and MeZO code, not from the code itself:

- a direction is drawn tensor by tensor with ``torch.normal`` after reseeding the global generator;
- a query moves the parameters by +1, -2, +1 times ``eps z``, drawing z again each time;
- queries run one after another, on the same minibatch, with one host synchronisation each;
- the update draws every z once more, sums ``c z`` per tensor, and applies it tensor by tensor;
- adapters contract their cores on either side of the cut in one loop (``tensordot``), then apply
  ``(x A) B``; the model computes the logits of all positions.

It is meant to be a fair baseline: padding, batches, precision and the model's own code are the same
as in the measured path, no keys and values are kept, and a single query is updated as MeZO does it,
without a buffer for the sum.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.layers import TTAdapter, TTLinear
from adazeta.kernels import aligned_offsets, gaussian, pairs

LossFn = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


class Noise(Protocol):
    """A source of directions: reset to a seed, then one normal tensor per parameter, in order."""

    def reset(self, seed: int) -> None:
        """Start the direction of a seed."""

    def normal(self, parameter: Tensor) -> Tensor:
        """Draw the part of the direction that belongs to the next parameter."""


class TorchNoise:
    """As the official code draws: ``torch.normal`` from the global generator."""

    def reset(self, seed: int) -> None:
        """Seed the global generator."""
        torch.manual_seed(seed)

    def normal(self, parameter: Tensor) -> Tensor:
        """Draw in the parameter's own dtype."""
        return torch.normal(
            mean=0.0, std=1.0, size=parameter.size(), device=parameter.device, dtype=parameter.dtype
        )


class CounterNoise:
    """AdaZeta's noise in the reference path, so that the two can be compared.

    Args:
        offsets: index of each parameter's first element in the parameter space, in the order in
            which the parameters are visited (:attr:`adazeta.ParameterSpace.offsets`).
        draw: the function of the distribution.
    """

    def __init__(self, offsets: Sequence[int], draw: Callable[..., Tensor] = gaussian) -> None:
        self._offsets = list(offsets)
        self._draw = draw
        self._seed = 0
        self._next = 0

    def reset(self, seed: int) -> None:
        """Start at the first parameter."""
        self._seed, self._next = seed, 0

    def normal(self, parameter: Tensor) -> Tensor:
        """Draw the parameter's own range of the index space."""
        start = self._offsets[self._next]
        self._next += 1
        values = self._draw(self._seed, start, parameter.numel(), device=parameter.device)
        return values.view(parameter.shape).to(parameter.dtype)


class ReferenceStep:
    """One optimizer step of the official trainer on the trainable parameters of a model.

    ``theta <- theta - lr (1/Q sum_q c_q z_q + wd theta)`` with
    ``c_q = (l(theta + eps z_q) - l(theta - eps z_q)) / (2 eps)``.

    Args:
        model: the model; biases and norms are not decayed.
        loss_fn: mean loss of a batch.
        eps: perturbation scale.
        lr: learning rate, constant.
        queries: directions per step.
        weight_decay: decay of the weights.
        seed: of the generator that draws one seed per query.
        noise: source of the directions.

    Attributes:
        projected: the projected gradients c_q of the last step.
        seeds: their seeds.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        eps: float,
        lr: float,
        queries: int = 1,
        weight_decay: float = 0.0,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.eps = eps
        self.lr = lr
        self.queries = queries
        self.weight_decay = weight_decay
        self.noise: Noise = noise or TorchNoise()
        self.projected: list[float] = []
        self.seeds: list[int] = []
        self._random = np.random.RandomState(seed)
        self._named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def step(self, batch: Mapping[str, Tensor], seeds: Sequence[int] | None = None) -> float:
        """Estimate and update.

        Args:
            batch: the minibatch.
            seeds: of the directions; drawn if not given.

        Returns:
            The loss at ``theta + eps z`` of the last query, as the official trainer reports it.
        """
        self.model.eval()
        self.seeds = list(seeds or (int(s) for s in self._random.randint(10**9, size=self.queries)))
        self.projected = []
        plus = 0.0
        for seed in self.seeds:
            self.perturb(seed, 1)
            plus = self.loss(batch)
            self.perturb(seed, -2)
            minus = self.loss(batch)
            self.perturb(seed, 1)
            self.projected.append((plus - minus) / (2 * self.eps))
        if len(self.seeds) == 1:
            self.update_single()
        else:
            self.update_summed()
        return plus

    def loss(self, batch: Mapping[str, Tensor]) -> float:
        """Evaluate the loss and bring it to the host."""
        with torch.inference_mode():
            return self.loss_fn(self.model, batch).item()

    def perturb(self, seed: int, scale: float) -> None:
        """Move all parameters by ``scale * eps * z(seed)``: normal, mul, mul, add per tensor."""
        self.noise.reset(seed)
        for _, parameter in self._named:
            z = self.noise.normal(parameter.data)
            parameter.data = parameter.data + scale * z * self.eps

    def update_single(self) -> None:
        """MeZO's update: z once more, applied at once."""
        self.noise.reset(self.seeds[0])
        c = self.projected[0]
        for name, parameter in self._named:
            z = self.noise.normal(parameter.data)
            if self.weight_decay and not _undecayed(name):
                step = c * z + self.weight_decay * parameter.data
            else:
                step = c * z
            parameter.data = parameter.data - self.lr * step

    def update_summed(self) -> None:
        """AdaZeta's update: the sum over the queries in a buffer per tensor, then applied."""
        sums: dict[str, Tensor] = {}
        for seed, c in zip(self.seeds, self.projected, strict=True):
            self.noise.reset(seed)
            for name, parameter in self._named:
                z = self.noise.normal(parameter.data)
                sums[name] = sums[name] + c * z if name in sums else c * z
        for name, parameter in self._named:
            mean = sums[name] / len(self.seeds)
            if self.weight_decay and not _undecayed(name):
                mean = mean + self.weight_decay * parameter.data
            parameter.data = parameter.data - self.lr * mean


def _undecayed(name: str) -> bool:
    return any(part in name for part in ("bias", "layer_norm", "layernorm"))


def contract(cores: Sequence[Tensor]) -> Tensor:
    """Chain cores ``(r, n, r')`` by tensordot to ``(r_first, prod n, r_last)``."""
    chain = cores[0]
    for core in cores[1:]:
        chain = torch.tensordot(chain, core, dims=([-1], [0]))
    return chain.reshape(chain.shape[0], -1, chain.shape[-1])


def tt_linear(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, *, cut: int, out_features: int
) -> Tensor:
    """Apply a tensor-train layer by parallel contraction: A and B, then ``(x A) B + bias``."""
    a = contract(cores[:cut])[0, : x.shape[-1]]
    b = contract(cores[cut:])[:, :out_features, 0]
    y = torch.tensordot(torch.tensordot(x, a, dims=([-1], [0])), b, dims=([-1], [0]))
    return y if bias is None else y + bias


def tt_adapter(adapter: TTAdapter, x: Tensor) -> Tensor:
    """Compute ``x + s Up(phi(Down(x)))`` in float32, with the cast back to the input's dtype."""
    hidden = x.to(torch.float32)
    down = adapter.activation(_apply(adapter.down, hidden))
    return (hidden + adapter.scale * _apply(adapter.up, down)).to(x.dtype)


def _apply(layer: TTLinear, x: Tensor) -> Tensor:
    shape = layer.shape
    return tt_linear(
        x, list(layer.cores), layer.bias, cut=shape.cut, out_features=shape.out_features
    )


def as_reference(model: nn.Module) -> nn.Module:
    """Return a twin of a model whose adapters compute by :func:`tt_adapter`.

    The twin has its own trainable parameters and shares the frozen ones, so that both read the same
    weights.
    """
    twin = twin_of(model)
    for _, adapter in attached_adapters(twin):
        adapter.forward = partial(tt_adapter, adapter)  # type: ignore[method-assign, arg-type]
    return twin


def twin_of(model: nn.Module) -> nn.Module:
    """Copy a model: own trainable parameters, shared frozen ones."""
    memo = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, memo)


def full_logits_loss(model: nn.Module, batch: Mapping[str, Tensor], candidates: Tensor) -> Tensor:
    """Mean cross entropy over the label words, from the logits of all positions and words."""
    logits = all_logits(model, batch)
    rows = torch.arange(len(logits), device=logits.device)
    chosen = logits[rows, batch["positions"]][:, candidates]
    return functional.cross_entropy(chosen.float(), batch["labels"])


def all_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Run a model of transformers on a batch, ``(B, T, V)``."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits


def counter_noise_of(model: nn.Module, distribution: str = "gaussian") -> CounterNoise:
    """Return AdaZeta's noise for the reference path on a model."""
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    draw = {"gaussian": gaussian, "pairs": pairs}[distribution]
    return CounterNoise(aligned_offsets(sizes, distribution=distribution), draw)
