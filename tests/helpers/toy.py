"""A small stackable model for the tests of the space, the estimator and the optimizers."""

import torch
from torch import Tensor, nn

from adazeta.parameters.stacking import StackedParameters


class StackedAffine(StackedParameters):
    """y = x W + b with parameters that can be stacked."""

    def __init__(self, inputs: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(inputs, outputs, generator=generator))
        self.bias = nn.Parameter(torch.randn(outputs, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.value("weight"), self.value("bias")
        if weight.dim() == 2:
            return x @ weight + bias
        groups = x.reshape(weight.shape[0], -1, x.shape[-1])
        return (groups @ weight + bias[:, None]).reshape(*x.shape[:-1], weight.shape[-1])


class Regression(nn.Module):
    """Two stackable layers; the loss of an example is its squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.first = StackedAffine(5, 3, seed=1)
        self.second = StackedAffine(3, 1, seed=2)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        prediction = self.second(torch.tanh(self.first(batch["x"])))
        return (prediction[:, 0] - batch["y"]).square()

    def gradient(self, batch: dict[str, Tensor]) -> Tensor:
        """Gradient of the mean loss by backpropagation, one vector in parameter order."""
        with torch.enable_grad():
            grads = torch.autograd.grad(self.losses(batch).mean(), list(self.parameters()))
        return torch.cat([g.flatten() for g in grads])


def regression_batch(rows: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 5, generator=generator)
    return {"x": x, "y": x[:, 0] - 0.5 * x[:, 1]}
