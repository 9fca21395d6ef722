"""What ``model.save_pretrained(folder)`` does on a model with adapters."""

import os
import weakref
from typing import Any

from torch import nn

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of what is in a compiled module."""


class SavingWithAdapters:
    """Saves the whole model as its class does, and the adapters' files beside it.

    transformers would write the adapters' tensors among the base's and leave them out again when
    it loads them. With the files beside it, ``adazeta.from_pretrained(base, folder)`` loads what
    was trained.

    It stands in the place of the method on one model, and goes with copies and pickles of it. It
    does not keep the model alive.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle together with the model, for the copy."""
        return type(self), (self._model(),)

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save; the arguments are those of ``PreTrainedModel.save_pretrained``.

        Raises:
            ValueError: ``push_to_hub=True``, which would leave out the adapters' files.
            ReferenceError: nothing holds the model but the expression that made it.
        """
        from adazeta.adapter_files import save_pretrained

        if kwargs.get("push_to_hub"):
            raise ValueError(
                "save_pretrained(push_to_hub=True) would leave the adapters' files out; call "
                "model.push_to_hub(name), or adazeta.save_pretrained(model, folder) and upload that"
            )
        model: Any = self._model()
        if model is None:
            raise ReferenceError(
                "the model is gone before it could be saved; hold it in a variable: "
                "model = add_tt_adapters(...), then model.save_pretrained(folder)"
            )
        type(model).save_pretrained(model, save_directory, *args, **kwargs)
        main = args[0] if args else kwargs.get("is_main_process", True)
        if main:
            save_pretrained(model, os.fspath(save_directory))


def plain_name(name: str) -> str:
    """Return the name of a tensor or module as it is in the model that was not compiled."""
    return name.replace(COMPILED, "")
