"""The tasks that ``learning`` measures on: records whose splits a hash decides, once and for all.

The data are fetched or made when they are asked for; none are kept in the repository.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adazeta.demo.data import Record, film_reviews, hashed_as_json, sources, split
from adazeta.demo.run import TASKS as DEMO
from benchmarks.measure.harness import Refused

Splits = dict[str, list[Record]]

# Debian's section -> the word that stands for it.
SECTIONS = {
    "games": "games", "science": "science", "net": "network", "sound": "sound", "web": "web",
    "graphics": "graphics", "math": "math", "fonts": "fonts",
}  # fmt: skip
REASONING = "0.1.25"  # version of reasoning-gym: another may draw other syllogisms


@dataclass(frozen=True)
class LearningTask:
    """A classification task.

    Attributes:
        load: returns the records of ``"train"``, ``"dev"`` and ``"test"``.
        settings: ``template`` and ``label_words``, as ``adazeta train`` takes them.
    """

    load: Callable[[], Splits]
    settings: dict[str, Any] = field(default_factory=dict)


def debian_sections() -> Splits:
    """Return one-line descriptions of Debian packages with their section, from apt's own index.

    Raises:
        Refused: there is no apt, or its index holds too few packages.
    """
    if shutil.which("apt-cache") is None:
        raise Refused(
            "the task debian reads apt's index, and there is no apt-cache here; run it on Debian "
            "or Ubuntu, or leave the task out with --tasks"
        )
    run = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True)
    found = described(run.stdout)
    try:
        return split(found, labels=list(SECTIONS), key=hashed_as_json)
    except ValueError as error:
        raise Refused(
            f"apt's index holds too little for the task debian ({error}); run 'apt-get update'"
        ) from None


def described(index: str) -> dict[str, str]:
    """Read an index of packages: description -> section, for the sections of the task.

    A description belongs to the first package that has it, of whatever section.
    """
    sections: dict[str, str] = {}
    for paragraph in index.split("\n\n"):
        section = re.search(r"^Section: (.*)$", paragraph, re.M)
        text = re.search(r"^Description(?:-en)?: (.*)$", paragraph, re.M)
        if section and text:
            sections.setdefault(text[1], section[1].split("/")[-1])
    return {text: section for text, section in sections.items() if section in SECTIONS}


def syllogisms() -> Splits:
    """Return pairs of premises, each with a conclusion that follows or not.

    Raises:
        Refused: reasoning-gym is missing, or is of another version.
    """
    try:
        found = version("reasoning-gym")
    except PackageNotFoundError:
        found = "not installed"
    if found != REASONING:
        raise Refused(
            f"the task syllogism needs reasoning-gym {REASONING}, which is {found} here: pip "
            f"install reasoning-gym=={REASONING}, or leave the task out with --tasks"
        )
    import reasoning_gym  # type: ignore[import-not-found]

    drawn = reasoning_gym.create_dataset(
        "syllogism", size=14_000, seed=1, inversion_probability=0.0, invalid_ratio=0.5
    )
    return split_syllogisms([entry["metadata"] for entry in drawn])


def split_syllogisms(drawn: list[dict[str, Any]], sizes: dict[str, int] | None = None) -> Splits:
    """Split syllogisms, each once; of equal ones the last one's answer counts."""
    columns = ("premise1", "premise2", "conclusion")
    answers = {
        tuple(each[name] for name in columns): "yes" if each["is_valid"] else "no"
        for each in drawn
        if each.get("type", "syllogism") == "syllogism"
    }
    return split(answers, sizes, labels=["no", "yes"], key=hashed_as_json, columns=columns)


TASKS = {
    "film": LearningTask(film_reviews, DEMO["film"]),
    "source": LearningTask(sources, DEMO["source"]),
    "debian": LearningTask(
        debian_sections, {"template": "{text}\nSection:", "label_words": SECTIONS}
    ),
    "syllogism": LearningTask(
        syllogisms,
        {
            "template": "{premise1}. {premise2}.\nDoes it follow that: {conclusion}?\nAnswer:",
            "label_words": {"no": "no", "yes": "yes"},
        },
    ),
}


def chosen_tasks(names: str) -> dict[str, LearningTask]:
    """Return tasks by name; all of them for nothing.

    Raises:
        Refused: there is no task of a name.
    """
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if name not in TASKS:
            raise Refused(f"no task is named {name!r}; there are: {', '.join(TASKS)}")
    return {name: TASKS[name] for name in wanted} if wanted else dict(TASKS)
