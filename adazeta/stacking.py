"""Modules that can be evaluated at several parameter vectors in one forward."""

from torch import Tensor, nn


class StackedParameters(nn.Module):
    """A module whose own parameters can be replaced by stacked copies for the length of a context.

    With a stack of P copies set, the module treats the leading dimension of its input as P equal,
    consecutive groups of rows, and group p is computed with copy p. The parameters themselves stay
    as they are. A subclass reads each parameter through :meth:`value`.

    The context that sets and clears :attr:`stacked` is
    :meth:`adazeta.space.ParameterSpace.stacked`.
    """

    def __init__(self) -> None:
        """Start with no stack: the module computes with its own parameters."""
        super().__init__()
        self.stacked: dict[str, Tensor] | None = None

    def value(self, name: str) -> Tensor:
        """Return the stack of a parameter if one is set, else the parameter itself.

        Args:
            name: the parameter's name relative to this module, e.g. ``"cores.0"``.

        Returns:
            A tensor ``(P, *shape)`` under a stack, otherwise the parameter ``(*shape)``.
        """
        if self.stacked is not None and name in self.stacked:
            return self.stacked[name]
        return self.get_parameter(name)
