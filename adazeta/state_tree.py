"""Nested state, such as an optimizer's, as JSON and a dictionary of tensors: no pickle."""

from typing import Any

from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "tensor", "tuple", "items"


def flatten_state(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Return what JSON can hold of a nested state; its tensors are put in a dictionary.

    Args:
        value: None, bool, int, float, str, tensor, or a dict, list or tuple of these.
        tensors: gets the tensors, by their place in the state.
        name: place of ``value``.

    Raises:
        TypeError: a value is of another type; the message names its place.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, list):
        return [flatten_state(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {_TUPLE: [flatten_state(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]}
    if isinstance(value, dict):
        # Keys may be numbers, which JSON would turn into text.
        return {_ITEMS: [[k, flatten_state(v, tensors, f"{name}/{k}")] for k, v in value.items()]}
    raise TypeError(f"the state {name or 'itself'} is a {type(value).__name__}, which is not saved")


def restore_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the state that :func:`flatten_state` took apart.

    Raises:
        ValueError: the description is not one, or a tensor is missing.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [restore_state(v, tensors) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if kind == _TENSOR and content in tensors:
            return tensors[content]
        if kind == _TUPLE:
            return tuple(restore_state(v, tensors) for v in content)
        if kind == _ITEMS:
            return {k: restore_state(v, tensors) for k, v in content}
    raise ValueError(f"not a saved state: {str(value)[:60]}")
