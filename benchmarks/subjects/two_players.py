"""The two players of ZSAQ (arXiv 2310.13315): inputs that divide two models, and a student.

One moves inputs uphill in the divergence from teacher to student, and the other moves the student
downhill. The generator and all its numbers are ours: the paper's are not known here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adazeta.training.extrapolation import Extrapolation

Inputs = Mapping[str, Tensor]


class Generator(nn.Module):
    """Embeddings of a text for a classifier, made of random tokens by blocks of a language model.

    The hidden states of the blocks pass a linear, and what comes out stands between two fixed
    embeddings, as the classifier's tokenizer puts ``[CLS]`` and ``[SEP]`` around a text.

    Args:
        blocks: a causal model without its output embedding; its input embeddings are not trained.
        table: word embeddings of the classifier, ``(words, width)``.
        frame: its tokens before and after a text.
        first: tokens of the language model, ``(B, T)``. On them the linear is scaled, so that
            embeddings have the mean of the table's, and in the mean the distance from it.
        draws: of the linear's start.
    """

    def __init__(
        self,
        blocks: nn.Module,
        table: Tensor,
        frame: tuple[int, int],
        first: Tensor,
        draws: torch.Generator,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        blocks.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
        words = table.detach().float()
        self.frame = words[list(frame)].clone()
        with torch.no_grad():
            states = self._states(first).flatten(0, 1)
            self.linear = nn.Linear(states.shape[1], words.shape[1], device=states.device)
            weight = torch.randn(self.linear.weight.shape, generator=draws)
            middle = states.mean(0)
            spread = ((states - middle) @ weight.to(states.device).T).norm(dim=1).mean()
            wanted = (words - words.mean(0)).norm(dim=1).mean()
            self.linear.weight.copy_(weight * (wanted / spread))
            self.linear.bias.copy_(words.mean(0) - self.linear.weight @ middle)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Return the inputs of a classifier, of T + 2 tokens, for tokens ``(B, T)``."""
        made = self.linear(self._states(ids))
        before, after = (part.expand(len(ids), 1, -1) for part in self.frame)
        embeds = torch.cat((before, made, after), 1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=ids.device)
        return {"inputs_embeds": embeds, "attention_mask": mask}

    def trained(self) -> list[nn.Parameter]:
        """Return what is trained: the blocks and the linear."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _states(self, ids: Tensor) -> Tensor:
        found: Tensor = self.blocks(input_ids=ids, use_cache=False).last_hidden_state
        return found


def divergence(teacher: nn.Module, student: nn.Module, inputs: Inputs) -> Tensor:
    """Return the Kullback-Leibler divergence from teacher to student, in nats, a mean of texts."""
    wanted, found = (model(**inputs).logits.log_softmax(-1) for model in (teacher, student))
    return (wanted.exp() * (wanted - found)).sum(-1).mean()


def ascend(
    generator: Generator,
    ids: Tensor,
    teacher: nn.Module,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Move a generator by one step uphill.

    Args:
        generator: the player.
        ids: tokens that its texts are made of, ``(B, T)``.
        teacher: whose answers are wanted; it stays as it is.
        student: that differs; it stays as it is, its gradients too.
        optimizer: of the generator, one that maximises.

    Returns:
        The divergence before the step.
    """
    loss = divergence(teacher, student, generator(ids))
    trained = generator.trained()
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return float(loss.detach())


def descend(
    teacher: nn.Module,
    student: nn.Module,
    trained: Sequence[nn.Parameter],
    inputs: Inputs,
    optimizer: torch.optim.Optimizer,
    radius: float = 0.0,
    step: int = 0,
) -> float:
    """Move a student by one step downhill.

    Args:
        teacher: whose answers are wanted; it stays as it is.
        student: the player.
        trained: its parameters that move.
        inputs: of both models, without a graph.
        optimizer: of these parameters.
        radius: of SAM, which takes the gradient so far uphill; 0 for the plain gradient.
        step: number of the step.

    Returns:
        The divergence before the step.
    """
    optimizer.zero_grad()

    def backward() -> Tensor:
        loss = divergence(teacher, student, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    ahead = Extrapolation("ascent", radius, until=step + 1, seed=0)
    loss = ahead.evaluate(backward, trained, place=(step, 0))
    optimizer.step()
    return float(loss)
