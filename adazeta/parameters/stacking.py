"""Modules that can be evaluated at several parameter vectors in one forward."""

from collections.abc import Mapping

from torch import Tensor, nn

from adazeta.kernels import FactorLayer, Factors


class StackedParameters(nn.Module):
    """A module whose own parameters can be replaced by stacked copies for the length of a context.

    With a stack of P copies set, the module treats the leading dimension of its input as P equal,
    consecutive groups of rows, and group p is computed with copy p. The parameters themselves stay
    as they are. A subclass reads each parameter through :meth:`value`.

    The context that sets and clears :attr:`stacked` is
    :meth:`adazeta.space.ParameterSpace.stacked`.

    Attributes:
        can_stack: False where an instance, unlike its class, computes one copy at a time.
    """

    can_stack = True

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


class FactoredParameters(StackedParameters):
    """A stackable module that needs of its parameters only the tensor-train factors.

    The factors of all such modules of a model come from one launch, so no copy of a core is made
    and no forward chains cores. A subclass computes with :attr:`factors` where they are set; the
    contexts that set and clear them are those of :class:`adazeta.space.ParameterSpace`.
    """

    def __init__(self) -> None:
        """Start with no factors set."""
        super().__init__()
        self.factors: Factors | None = None

    def factor_layer(self, offsets: Mapping[str, int]) -> FactorLayer | None:
        """Describe the cores and the bias in a flat parameter vector.

        Args:
            offsets: index of the first element of each parameter of this module, by name.

        Returns:
            The entry of a :class:`~adazeta.kernels.FactorPlan`, or None if the layer is beyond the
            limits of a plan; it is then stacked by copies of its parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say where its cores lie")
