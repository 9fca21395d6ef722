"""The methods' rules as their equations read: whole vectors, one direction at a time.

Each follows the losses' differences of a run, ``projected``, and nothing else of it. The order of
the float32 operations is that of the equations, so a fast path that keeps it gives the same bits.
"""

import math

import torch
from torch import Tensor


class Slow:
    """Parameters that follow a rule; a subclass says how.

    Args:
        theta: all parameters as one vector.
        lr: learning rate.
        draw: the direction of a seed, as a vector of that length.
        decay: ``1 - lr * weight_decay``.
    """

    def __init__(self, theta: Tensor, lr: float, draw, decay: float = 1.0) -> None:
        self.theta, self.lr, self.draw, self.decay = theta.clone(), lr, draw, decay
        self.m, self.h = torch.zeros_like(theta), torch.zeros_like(theta)
        self.t = 0

    def estimate(self, seeds, projected) -> Tensor:
        """``g = (1 / Q) sum_q projected_q z_q``."""
        g = torch.zeros_like(self.theta)
        for seed, c in zip(seeds, projected / len(projected), strict=True):
            g = g + c * self.draw(seed)
        return g

    def follow(self, seeds, projected) -> None:
        """Do a step."""
        self.update(seeds, projected)
        self.t += 1

    def update(self, seeds, projected) -> None:
        raise NotImplementedError


class SlowMeZO(Slow):
    """``theta - lr g``, one direction after another, as MeZO's loop has it."""

    def update(self, seeds, projected):
        self.theta = self.decay * self.theta
        for seed, c in zip(seeds, projected / len(projected), strict=True):
            self.theta = self.theta + c * -self.lr * self.draw(seed)


class SlowMomentum(Slow):
    """``m = 0.9 m + g``, ``theta - lr m``."""

    momentum = 0.9

    def update(self, seeds, projected):
        self.m = self.momentum * self.m + self.estimate(seeds, projected)
        self.theta = self.decay * self.theta - self.lr * self.m


class SlowSign(Slow):
    """``theta_i - lr sign(g_i)``."""

    def update(self, seeds, projected):
        g = self.estimate(seeds, projected)
        self.theta = self.decay * self.theta - self.lr * torch.sign(g)


class SlowAdam(Slow):
    """Adam (1412.6980) with the estimate as gradient; one v for all elements, ``sum_q c_q^2``."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-12

    def update(self, seeds, projected):
        g = self.estimate(seeds, projected)
        square = (projected.double() / len(projected)).square().sum()
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.h = self.beta2 * self.h + (1 - self.beta2) * square
        m = self.m / (1 - self.beta1 ** (self.t + 1))
        v = self.h / (1 - self.beta2 ** (self.t + 1))
        self.theta = self.decay * self.theta - self.lr * m / (v.sqrt() + self.epsilon)


class SlowFZOO(Slow):
    """``theta - lr sum_i (L_i - L_0) u_i / (N std(L_i))``, std of the population (2506.09034)."""

    eps = 1e-2

    def update(self, seeds, projected):
        differences = projected.double() * self.eps  # L_i - L_0, of the same deviation as L_i
        deviation = differences.std(correction=0)
        self.theta = self.decay * self.theta
        for seed, difference in zip(seeds, differences, strict=True):
            c = difference / (len(differences) * deviation)
            self.theta = self.theta - self.lr * c.float() * self.draw(seed)


class SlowHELENE(Slow):
    """HELENE (2411.10696), layer by layer; see :class:`adazeta.HELENE` for the equations.

    Args:
        layers: where each layer begins and ends in the vector.
        **options: of the rule.
    """

    def __init__(self, theta, lr, draw, decay=1.0, *, layers=(), **options):
        super().__init__(theta, lr, draw, decay)
        self.layers = layers
        self.o = {
            "betas": (0.9, 0.99), "annealing": 1000, "hessian": "scalar", "hessian_every": 1,
            "hessian_scale": 1.0, "gamma": 1.0, "floor": 0.0, "quantile": 0.9, "epsilon": 1e-12,
            **options,
        }  # fmt: skip
        self.refreshes = 0

    def update(self, seeds, projected):
        o, (beta1, beta2) = self.o, self.o["betas"]
        alpha = 1.0
        if o["annealing"]:
            alpha = beta1 + (1 - beta1) * math.exp(-self.t / o["annealing"])
        self.m = beta1 * self.m + alpha * self.estimate(seeds, projected)
        if o["hessian"] == "none":
            self.theta = self.decay * self.theta - self.lr * self.m
            return
        if self.t % o["hessian_every"] == 0:
            square = self.estimate(seeds, projected).square()
            if o["hessian"] == "scalar":
                square = (projected / len(projected)).square().sum()
            self.h = beta2 * self.h + (1 - beta2) * o["hessian_scale"] * square
            self.refreshes += 1
        h = self.h / (1 - beta2**self.refreshes)
        for begin, end in self.layers:
            layer = h[begin:end]
            at = max(1, math.ceil(o["quantile"] * len(layer)))
            floor = max(o["floor"], layer.sort().values[at - 1].item() if o["quantile"] else 0.0)
            divisor = o["gamma"] * layer.clamp(min=floor) + o["epsilon"]
            step = self.lr * self.m[begin:end] / divisor
            self.theta[begin:end] = self.decay * self.theta[begin:end] - step


class SlowAdaLomo(Slow):
    """Estimates over the root of one running square, by rates of the layers' sizes at the start.

    Args:
        layers: where each layer begins and ends in the vector.
    """

    decay_rate, clip, floor = -0.8, 1.0, 1e-3

    def __init__(self, theta, lr, draw, decay=1.0, *, layers=()):
        super().__init__(theta, lr, draw, decay)
        self.layers, self.weight_decay, self.v = layers, (1 - decay) / lr, 0.0
        sizes = [theta[a:b].double().square().mean().sqrt().bfloat16().item() for a, b in layers]
        known = [size for size in sizes if size]
        self.sizes = [size or sum(known) / len(known) for size in sizes]

    def update(self, seeds, projected):
        square = (projected.double() / len(projected)).square().sum().item()
        beta = 1 - (self.t + 1) ** self.decay_rate
        self.v = beta * self.v + (1 - beta) * square
        u = self.estimate(seeds, projected) / self.v**0.5
        u = u / max(1, (square / self.v) ** 0.5 / self.clip)
        for (a, b), size in zip(self.layers, self.sizes, strict=True):
            rate = self.lr * max(self.floor, size)
            self.theta[a:b] = (1 - rate * self.weight_decay) * self.theta[a:b] - rate * u[a:b]


class SlowExtrapolated(Slow):
    """Two vectors: w, which estimates move, and theta, one step ahead of it; without decay of w."""

    ahead = 1.0

    def __init__(self, theta, lr, draw, decay=1.0):
        super().__init__(theta, lr, draw, decay)
        self.back = torch.zeros_like(theta)  # from theta to w

    def update(self, seeds, projected):
        g = self.estimate(seeds, projected)
        self.theta = self.decay * self.theta + self.back - self.lr * g
        self.back = self.lr * self.ahead * g
        self.theta = self.theta - self.back
