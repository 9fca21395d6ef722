"""Reward functions by name: built in, of a Python file, or of an installed module.

Only code that the user names is run, never that of a model's or a data set's repository.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from adazeta.rewards.built_in import BUILT_IN
from adazeta.rewards.calling import Rewards
from adazeta.rewards.one_function import RewardFunction
from adazeta.support.settings import nearest


def load_rewards(
    spec: str | Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    folder: Path | None,
    timeout: float | None = None,
) -> Rewards:
    """Load reward functions.

    Args:
        spec: one or several of: the name of a built-in reward with its argument
            (:data:`adazeta.rewards.built_in.BUILT_IN`); ``"FILE.py:NAME"``, a function of a file;
            ``"package.module:NAME"``, a function of a module that can be imported.
        weights: see :class:`~adazeta.rewards.calling.Rewards`.
        folder: that paths are relative to; None: the working directory. Modules in it are found
            while rewards are loaded; installed ones come first.
        timeout: see :class:`~adazeta.rewards.calling.Rewards`.

    Returns:
        The functions, to call.

    Raises:
        ValueError: a reward is unknown or its argument is unusable, or the file or module that it
            is in raises an error.
        FileNotFoundError: there is no such file.
        ImportError: a built-in reward needs a package that is not installed.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    home = Path.cwd() if folder is None else Path(folder).resolve()
    loaded: dict[str, ModuleType] = {}
    functions = [_load(one, home, loaded) for one in specs]
    return Rewards(functions, weights, timeout=timeout)


def _load(spec: str, home: Path, loaded: dict[str, ModuleType]) -> RewardFunction:
    kind, colon, argument = spec.partition(":")
    if kind in BUILT_IN:
        return BUILT_IN[kind].make(argument if colon else None, home)
    place, _, name = spec.rpartition(":")
    if not place:
        if spec.endswith(".py"):
            raise ValueError(f"reward {spec!r} names no function; write {spec}:NAME")
        hint = nearest(spec, BUILT_IN) or f"there are {', '.join(BUILT_IN)}"
        raise ValueError(
            f"unknown reward {spec!r}; {hint}, or name a function: FILE.py:NAME or "
            "package.module:NAME"
        )
    if place not in loaded:
        loaded[place] = _file(place, home) if place.endswith(".py") else _module(place, spec, home)
    found: Any = loaded[place]
    for part in name.split("."):
        if not hasattr(found, part):
            own = [key for key, value in vars(loaded[place]).items() if _is_function(value, place)]
            hint = nearest(name, own) or (own and f"it has {', '.join(own)}") or "it has none"
            raise ValueError(f"reward {spec!r}: {place} has no function {name!r}; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"reward {spec!r} is {type(found).__name__}, not a function")
    return found


def _file(place: str, home: Path) -> ModuleType:
    path = home / Path(place).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"reward: there is no file {path}")
    name = f"adazeta_reward_{path.stem}"  # never that of a module which is installed
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as it ends in .py
    loader = spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a module up

    def load() -> ModuleType:
        loader.exec_module(module)
        return module

    return _run(load, str(path), path.parent)


def _module(place: str, spec: str, home: Path) -> ModuleType:
    try:
        return _run(lambda: importlib.import_module(place), place, home)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        hint = nearest(place, BUILT_IN)
        raise ValueError(
            f"reward {spec!r}: there is neither a built-in reward nor a module {place!r} "
            f"({hint or 'a file is written FILE.py:NAME'})"
        ) from None


def _run(load: Callable[[], ModuleType], place: str, folder: Path) -> ModuleType:
    """Load code of the user's; what it raises names the file."""
    with _importable(folder):
        try:
            return load()
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"reward: {place} could not be loaded ({type(error).__name__}: {error})"
            ) from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Find modules of a folder, after all others."""
    added = str(folder)
    sys.path.append(added)
    try:
        yield
    finally:
        sys.path.remove(added)


def _is_function(value: Any, place: str) -> bool:
    """Whether a value of a module is one of its own functions, for a hint."""
    own = getattr(value, "__module__", None) in (place, f"adazeta_reward_{Path(place).stem}")
    return callable(value) and own and not getattr(value, "__name__", "_").startswith("_")
