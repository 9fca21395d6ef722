"""What must hold of a model's parameters, or perturbing them would not reach its forward."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_trainable(names: Sequence[str], parameters: Sequence[nn.Parameter]) -> None:
    """Check that parameters can be trained together.

    Args:
        names: of the parameters, for messages.
        parameters: those with ``requires_grad``, each once.

    Raises:
        ValueError: they lie on several devices, have no data, or share memory.
        TypeError: one is not float32, bfloat16 or float16, or a tensor subclass.
    """
    for name, parameter in zip(names, parameters, strict=True):
        if type(parameter.data) is not Tensor:
            kind = type(parameter.data).__name__
            raise TypeError(f"trainable parameter {name!r} is a {kind}, no tensor; freeze it")
        if parameter.dtype not in _DTYPES:
            raise TypeError(
                f"trainable parameter {name!r} is {parameter.dtype}; convert it to float32, "
                "bfloat16 or float16, or freeze it"
            )
    devices = sorted({str(parameter.device) for parameter in parameters})
    if len(devices) > 1:
        raise ValueError(
            f"trainable parameters lie on several devices ({', '.join(devices)}); move them to one"
        )
    if devices == ["meta"]:
        raise ValueError(
            "the trainable parameters have no data (device 'meta'); load the weights first, "
            "or freeze what is offloaded"
        )
    for name, other in _overlapping(zip(names, parameters, strict=True)):
        raise ValueError(
            f"parameters {name!r} and {other!r} share memory but are two parameters, so "
            "each would have noise of its own; tie them (module.weight = other.weight) "
            "or give one a copy"
        )


def check_frozen(
    model: nn.Module, names: Sequence[str], parameters: Sequence[nn.Parameter]
) -> None:
    """Check that nothing frozen lies in the memory of a trainable parameter.

    It would not follow: not where the parameter is laid out elsewhere, and in no evaluation.

    Args:
        model: whose parameters they are.
        names: of the trainable parameters.
        parameters: the trainable parameters.

    Raises:
        ValueError: a frozen parameter or a buffer does.
    """
    own = {id(parameter) for parameter in parameters}
    frozen = {
        name: tensor
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if id(tensor) not in own
        and type(tensor.data) is Tensor
        and tensor.layout is torch.strided
        and not tensor.is_meta
    }
    trained = dict(zip(names, parameters, strict=True))
    for pair in _overlapping([*trained.items(), *frozen.items()]):
        for name, other in (pair, pair[::-1]):
            if name in frozen and other in trained:
                raise ValueError(
                    f"{name!r} is frozen and lies in the memory of {other!r}, which is trained, so "
                    "it would not follow; tie them (module.weight = other.weight) or give one a "
                    "copy"
                )


def addresses(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses from the first to past the last element of a tensor."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    span = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.data_ptr(), tensor.data_ptr() + (span + 1) * tensor.element_size()


def _overlapping(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, str]]:
    """Return pairs of names of tensors that overlap: each with the one that reaches into it."""
    places = sorted((*addresses(tensor), name) for name, tensor in named if tensor.numel())
    found = []
    last = 0
    for index, (start, end, name) in enumerate(places):
        if index and start < places[last][1]:
            found.append((places[last][2], name))
        if not index or end > places[last][1]:
            last = index
    return found


class Holders:
    """The modules that hold parameters, and whether they still do.

    Args:
        model: the model.
        names: of the parameters, for messages.
        parameters: of the model.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], parameters: Sequence[nn.Parameter]
    ) -> None:
        by_id = {id(p): (p, name) for name, p in zip(names, parameters, strict=True)}
        self._places: list[tuple[Mapping[str, Any], str, nn.Parameter, str]] = [
            (module._parameters, local, *by_id[id(parameter)])
            for module in model.modules()
            for local, parameter in module._parameters.items()
            if id(parameter) in by_id
        ]

    def check(self) -> None:
        """Check that each module holds the parameter that it held.

        Raises:
            RuntimeError: another one stands in its place, which nothing would train.
        """
        for table, local, parameter, name in self._places:
            if table.get(local) is not parameter:
                raise RuntimeError(
                    f"the model no longer holds the parameter {name!r} that this optimizer trains: "
                    "it was replaced, as by load_state_dict(assign=True); make the optimizer anew, "
                    "or load values without assign"
                )
