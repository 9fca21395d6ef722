"""Tasks of ``rewards``: prompts, and the functions that score what a model writes after them."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from adazeta.demo.data import film_reviews
from adazeta.demo.rewards import STEPS, openings
from adazeta.rewards.records import Completion, text_of

Records = list[dict[str, Any]]
_NUMBER = re.compile(r"-?\d+")
_WORDS = (
    "apple banana letter cherry summer window garden yellow coffee pepper school kitten".split()
)


def concise(prompts: Any, completions: list[Completion], **columns: Any) -> list[float]:
    """Reward an answer that ends early: 1 for one character, 0 for two hundred or more."""
    texts = [text_of(completion).strip() for completion in completions]
    return [max(0.0, 1 - len(text) / 200) if text else 0.0 for text in texts]


def tagged(prompts: Any, completions: list[Completion], **columns: Any) -> list[float]:
    """Reward ``<answer>...</answer>``: a third each for the opening, the closing, and just both."""
    scores = []
    for text in map(text_of, completions):
        opened, closed = "<answer>" in text, "</answer>" in text
        whole = re.fullmatch(r"\s*<answer>[^<]+</answer>\s*", text) is not None
        scores.append((opened + closed + whole) / 3)
    return scores


def listing(prompts: Any, completions: list[Completion], **columns: Any) -> list[float]:
    """Reward an answer that lists things: a third for each comma, up to three."""
    return [min(text_of(completion).count(","), 3) / 3 for completion in completions]


def number(
    prompts: Any, completions: list[Completion], answer: list[int], **columns: Any
) -> list[float]:
    """Reward the first number of a text: 1 if it is right, less the farther away it is."""
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        found = _NUMBER.search(text_of(completion))
        scores.append(0.0 if found is None else 1 / (1 + abs(int(found[0][:9]) - right)))
    return scores


@dataclass(frozen=True)
class RewardTaskOfBenchmark:
    """One task.

    Attributes:
        load: makes the prompts of ``"train"`` and ``"test"``, given a seed.
        reward: the specification of its reward; None for that of ``adazeta demo rewards``.
        settings: what differs from the common ones.
        steps: of the training.
    """

    load: Callable[[int], dict[str, Records]]
    reward: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 40


def _reviews(seed: int) -> dict[str, Records]:
    found = film_reviews({"train": 1000, "test": 200})
    return {name: [dict(row) for row in openings(records)] for name, records in found.items()}


def _questions(seed: int) -> dict[str, Records]:
    things = (
        "bread glass snow rain paper music money sleep salt wind steel wool butter cotton honey "
        "coal gold leather rubber silk sugar tea wine wood ice fire light sound cheese clay "
        "rice copper oil soap sand stone milk paint ink air"
    ).split()
    forms = ("What is {}?", "Where does {} come from?", "Why do people need {}?", "Who makes {}?")
    rows = [{"prompt": form.format(thing)} for thing in things for form in forms]
    random.Random(0).shuffle(rows)
    return {"train": rows[:96], "test": rows[96:]}


def _sums(seed: int) -> dict[str, Records]:
    draw = random.Random(1)
    rows = {}
    while len(rows) < 400:
        terms = [draw.randint(1, 9) for _ in range(draw.choice((2, 3)))]
        text = " + ".join(map(str, terms))
        rows[text] = {"prompt": f"2 + 3 = 5\n4 + 1 + 2 = 7\n{text} =", "answer": sum(terms)}
    both = list(rows.values())
    return {"train": both[:200], "test": both[200:]}


def _letters(seed: int) -> dict[str, Records]:
    rows = [
        {
            "prompt": f"How often is the letter 'e' in 'sleeve'? 3\n"
            f"How often is the letter '{letter}' in '{word}'?",
            "answer": word.count(letter),
        }
        for word in _WORDS
        for letter in "aeilnoprst"
    ]
    random.Random(2).shuffle(rows)
    return {"train": rows[:70], "test": rows[70:]}


_HERE = "benchmarks.subjects.reward_tasks"
_ANSWER = {"adapt": "answer"}  # these prompts are longer than the answers, and are computed once
TASKS: dict[str, RewardTaskOfBenchmark] = {
    "reviews": RewardTaskOfBenchmark(_reviews, None, steps=STEPS),
    "concise": RewardTaskOfBenchmark(
        _questions, f"{_HERE}:concise", {**_ANSWER, "chat": True, "max_new_tokens": 24}
    ),
    "lists": RewardTaskOfBenchmark(
        _questions, f"{_HERE}:listing", {**_ANSWER, "chat": True, "max_new_tokens": 24}
    ),
    "format": RewardTaskOfBenchmark(
        _questions, f"{_HERE}:tagged", {**_ANSWER, "template": "{prompt} Use <answer> tags.",
                                        "chat": True, "max_new_tokens": 24},
    ),
    "chain_sum": RewardTaskOfBenchmark(
        _sums, f"{_HERE}:number", {**_ANSWER, "max_new_tokens": 4}, steps=80
    ),
    "letters": RewardTaskOfBenchmark(_letters, f"{_HERE}:number", {**_ANSWER, "max_new_tokens": 4}),
}  # fmt: skip
