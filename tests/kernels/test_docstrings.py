"""The ops have their whole contract in their docstrings, and the examples run."""

import doctest
import inspect
import re
import sys

import pytest

from adazeta import kernels

OPS = (
    "gaussian",
    "rademacher",
    "add_noise_",
    "perturbed_copies",
    "momentum_update_",
    "adam_update_",
    "sign_update_",
    "square_update_",
    "helene_update_",
    "stacked_factors",
    "tt_factors",
    "tt_apply",
    "tt_linear",
    "tt_adapter",
)


@pytest.mark.parametrize("name", OPS)
def test_the_docstring_is_a_contract(name):
    op = getattr(kernels, name)
    text = inspect.getdoc(op)
    assert "Args:" in text and "Example:" in text
    for argument in inspect.signature(op).parameters:
        assert re.search(rf"^ +{argument}: ", text, re.M), f"{name} does not describe {argument}"
    # rademacher refers to gaussian for its errors and its source.
    if name != "rademacher":
        assert "Raises:" in text
        assert re.search(r"arXiv|section \d|\b(19|20)\d\d\b", text), f"{name} names no source"


@pytest.mark.parametrize("name", OPS)
def test_the_examples_run(name):
    op = getattr(kernels, name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    module = sys.modules[op.__module__]
    for example in doctest.DocTestFinder(recurse=False).find(
        op, name, module=module, globs=dict(vars(module))
    ):
        assert example.examples
        assert runner.run(example).failed == 0
