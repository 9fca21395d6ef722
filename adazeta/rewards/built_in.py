"""The table of built-in rewards: each is a maker, from the text after the colon to a function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adazeta.rewards.gym import reasoning_gym
from adazeta.rewards.judges import classifier, vader
from adazeta.rewards.one_function import RewardFunction
from adazeta.rewards.texts import distinct, exact_match, f1, is_json, json_schema, length, regex


@dataclass(frozen=True)
class BuiltIn:
    """A built-in reward.

    Attributes:
        usage: how it is written.
        about: one line on it.
        maker: makes the function from its argument; paths in it are relative to the folder.
        default: argument where none is written; None: one must be.
    """

    usage: str
    about: str
    maker: Callable[[str, Path], RewardFunction]
    default: str | None = None

    def make(self, argument: str | None, folder: Path) -> RewardFunction:
        """Return the function.

        Args:
            argument: the text after the colon; None if there is no colon.
            folder: that paths are relative to.

        Raises:
            ValueError: the argument is missing or unusable.
        """
        name = self.usage.replace("[", ":").partition(":")[0]
        given = self.default if argument is None else argument
        takes = "[" in self.usage or self.default is None
        if given is None or (not takes and argument is not None) or (takes and not given):
            raise ValueError(f"reward {name} is written {self.usage}")
        return self.maker(given, folder)


BUILT_IN: dict[str, BuiltIn] = {
    "exact_match": BuiltIn(
        "exact_match[:COLUMN]",
        "1 if the completion is the reference answer by SQuAD's rules, else 0",
        exact_match,
        "answer",
    ),
    "f1": BuiltIn(
        "f1[:COLUMN]",
        "F1 of the words of completion and reference answer by SQuAD's rules",
        f1,
        "answer",
    ),
    "regex": BuiltIn("regex:PATTERN", "1 if the regular expression is found, else 0", regex),
    "length": BuiltIn(
        "length:TARGET [words|characters|tokens]",
        "length over target, or target over length, whichever is below 1",
        length,
    ),
    "distinct": BuiltIn(
        "distinct", "share of word pairs that no other prompt's completion has", distinct, ""
    ),
    "json": BuiltIn("json", "1 if the completion is JSON, else 0", is_json, ""),
    "json_schema": BuiltIn(
        "json_schema:FILE", "1 if the completion is JSON that fits a schema, else 0", json_schema
    ),
    "reasoning_gym": BuiltIn(
        "reasoning_gym:TASK",
        "the score of a reasoning-gym task for its column entry; it makes data, too",
        reasoning_gym,
    ),
    "classifier": BuiltIn(
        "classifier:MODEL:LABEL",
        "probability of a label by a text classifier of transformers",
        classifier,
    ),
    "vader": BuiltIn("vader", "sentiment from -1 to 1, vaderSentiment's compound score", vader, ""),
}
