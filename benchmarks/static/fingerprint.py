"""What a compiled kernel depends on, as one short hash: a report is repeated where it changed."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from adazeta.kernels.gpu.arithmetic import EXACT
from adazeta.kernels.gpu.variants import Variant


def fingerprint(variant: Variant) -> str:
    """Hash the code and the settings of a variant; comments, docstrings and line breaks are free.

    The same for triton's compiler and its interpreter, and for every version of triton.
    """
    settings = {name: value for name, value in vars(variant).items() if name != "kernel"}
    settings["signature"] = sorted(variant.signature.items())
    settings["constants"] = sorted(variant.constants.items())
    settings["divisible"] = sorted(variant.divisible)
    parts = [repr(settings)]
    if not variant.fusion:
        parts.append(repr(EXACT))
    parts += _sources(variant.kernel.fn, set())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _sources(function: Callable[..., Any], seen: set[Callable[..., Any]]) -> list[str]:
    """Sources of a function and of what it uses of its module: device functions and constants."""
    seen.add(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = tree.body[0]
    assert isinstance(body, ast.FunctionDef)
    if ast.get_docstring(body) is not None:
        body.body = body.body[1:]
    found = [ast.unparse(tree)]
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    for name in names:
        used = function.__globals__.get(name)
        inner = getattr(used, "fn", None)
        if inspect.isfunction(inner):
            if inner not in seen:
                found += _sources(inner, seen)
        elif isinstance(value := getattr(used, "value", used), int | float | str | tuple):
            found.append(f"{name} = {value!r}")
    return found
