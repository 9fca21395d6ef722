"""The tasks of reasoning-gym: their scores as rewards, and data made of them."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from adazeta.rewards.one_function import RewardFunction
from adazeta.rewards.records import Completion, text_of
from adazeta.support.seeds import derive_seed
from adazeta.support.settings import nearest

NAME = "reasoning_gym"

SIZES: Mapping[str, int] = {"train": 1000, "validation": 100, "test": 200}
"""Examples of each set of data that are made unless settings say otherwise."""

_OURS = ("seed", "size")  # of a task's settings, those that are set here
_SUMS = re.compile(r"(?!.*\*\*)[\d\s+\-*/().]{0,200}", re.DOTALL)
_LISTS = re.compile(r"[\w\s,'\"\[\]-]*")
_EVALUATED: Mapping[str, re.Pattern[str] | None] = {
    "countdown": _SUMS,
    "puzzle24": _SUMS,
    "binary_matrix": _LISTS,
    "n_queens": _LISTS,
    "spiral_matrix": _LISTS,
    "string_insertion": _LISTS,
    "intermediate_integration": None,
    "polynomial_multiplication": None,
    "simple_integration": None,
}
"""Tasks whose scorers evaluate an answer as Python (0.1.25), and the answers that may be; None:
nothing is known that would bound what is run."""

_ANY = re.compile(".*", re.DOTALL)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TRIES, _MORE = 20, 1000  # items looked at for each that is wanted, and beside


def reasoning_gym(task: str, folder: Path) -> RewardFunction:
    """Make the ``score_answer`` of a reasoning-gym data set a reward.

    The function reads the column ``entry``: the record that reasoning-gym made (``question``,
    ``answer``, ``metadata``), as a mapping or as JSON. The answer is what stands in the last
    ``<answer>...</answer>``, else the whole completion, without spaces around it. Where the scorer
    evaluates answers as Python, those that are more than an answer can be count as none: models
    write code, too.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: it has no such data set, or its scorer would run whatever the model writes.
    """
    score = _factory(task).get_score_answer_fn(task)
    harmless = _EVALUATED.get(task, _ANY)
    if harmless is None:
        raise ValueError(
            f"reward reasoning_gym: the scorer of {task} evaluates what the model writes as "
            "Python; score it by a function of your own (FILE.py:NAME) that checks the text first"
        )

    def answer_in(completion: Completion) -> str:
        text = text_of(completion)
        text = (_TAGGED.findall(text) or [text])[-1].strip()
        return text if harmless.fullmatch(text) else ""

    def reasoning_gym(
        completions: list[Completion], entry: list[Any], **columns: Any
    ) -> list[float]:
        entries = [json.loads(one) if isinstance(one, str) else one for one in entry]
        return [
            float(score(answer=answer_in(completion), entry=one))
            for completion, one in zip(completions, entries, strict=True)
        ]

    return reasoning_gym


def make_data(task: str, settings: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Make data of a task, of which no two examples have the same question.

    The test set is drawn first, so that it stays the same whatever the sizes of the others.

    Args:
        task: name of a reasoning-gym data set.
        settings: ``"train"``, ``"validation"`` and ``"test"``, the numbers of examples (see
            :data:`SIZES`); ``"seed"`` (0); and settings of the task, e.g. ``"min_terms"``.

    Returns:
        For each set that is not empty its records: ``prompt`` and ``question`` (the same text),
        ``answer``, and the ``entry`` that the reward reads.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: it has no such data set, a setting is unknown or out of range, or there are too
            few different questions.
    """
    factory = _factory(task)
    sizes = {name: settings.get(name, size) for name, size in SIZES.items()}
    for name, value in {**sizes, "seed": settings.get("seed", 0)}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"reward_data: {name} is a whole number, 0 or more, got {value!r}")
    own = {k: v for k, v in settings.items() if k not in (*SIZES, "seed")}
    known = [field.name for field in fields(factory.DATASETS[task][1])]
    known = [name for name in known if name not in _OURS]
    for name in own:
        if name not in known:
            hint = nearest(name, [*known, *SIZES]) or f"it has {', '.join(known)}"
            raise ValueError(f"reward_data: {task} has no setting {name!r}; {hint}")
    wanted = sum(sizes.values())
    if not sizes["train"]:
        raise ValueError("reward_data: train is 0, and there is nothing to train on; set it above")
    tries = _TRIES * wanted + _MORE
    # The package draws item k of a seed from seed + k: seeds must lie far from each other.
    seed = derive_seed(settings.get("seed", 0)) >> 31
    try:
        items = factory.create_dataset(task, seed=seed, size=tries, **own)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reward_data: {task} refuses {own}: {error}") from None
    seen: set[str] = set()
    places = iter(range(tries))
    made: dict[str, list[dict[str, Any]]] = {}
    for name in reversed(list(SIZES)):
        records: list[dict[str, Any]] = []
        while len(records) < sizes[name]:
            place = next(places, None)
            if place is None:
                raise ValueError(
                    f"reward_data: {task} has {len(seen)} different questions among {tries} that "
                    f"were made, and {wanted} are asked for; lower train ({sizes['train']}) or let "
                    "its settings allow more"
                )
            entry = items[place]
            question = str(entry["question"])
            if question not in seen:
                seen.add(question)
                answer = entry.get("answer")
                records.append(
                    {"prompt": question, "question": question, "answer": answer, "entry": entry}
                )
        if records:
            made[name] = records
    return made


def _factory(task: str) -> Any:
    """Return the package's module of all data sets, which has the task."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ImportError(
            f"reward reasoning_gym needs reasoning-gym: pip install 'adazeta[rewards]' ({error})"
        ) from None
    if task not in factory.DATASETS:
        hint = nearest(task, factory.DATASETS) or "reasoning_gym.factory.DATASETS has the names"
        raise ValueError(f"reward reasoning_gym: there is no task {task!r}; {hint}")
    return factory
