"""States of an optimizer that keep their own dtype when they are loaded.

A file of its own because the optimizers of both orders need it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def keep_dtypes(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> dict[str, torch.dtype]:
    """Load the tensors of a state again, in the dtype that they were saved in.

    ``Optimizer.load_state_dict`` casts them to the parameter's dtype; ours are what the rule made
    them.

    Args:
        optimizer: has loaded the state.
        state_dict: the state.

    Returns:
        The dtypes of the states by name.
    """
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found: dict[str, torch.dtype] = {}
    for index, values in state_dict["state"].items():
        parameter = order[index]
        for name, value in values.items():
            if isinstance(value, Tensor):
                optimizer.state[parameter][name] = value.to(parameter.device, copy=True)
                found[name] = value.dtype
    return found
