"""A stand-in for reasoning-gym with its interface: sums of small numbers, drawn as there."""

import random
import sys
from dataclasses import dataclass, make_dataclass
from types import ModuleType

# Settings of the package's countdown that the example has.
_NUMBERS = ("min_numbers", "max_numbers", "min_value", "max_value", "min_target", "max_target")
COUNTDOWN = [(name, int, 1) for name in _NUMBERS]


@dataclass
class SumsConfig:
    largest: int = 30
    shift: int = 0
    seed: int | None = None
    size: int = 500


class Sums:
    def __init__(self, config):
        assert config.largest > 0, "largest must be positive"
        self.config = config

    def __getitem__(self, index):
        drawn = random.Random(self.config.seed + index)
        one, two = (drawn.randint(1, self.config.largest) for _ in range(2))
        return {
            "question": f"{one} and {two} is",
            "answer": str(one + two),
            "metadata": {"numbers": (one, two)},
        }


def score(answer, entry):
    """Partial credit for a number, as the package's scorers give."""
    total = sum(entry["metadata"]["numbers"])
    return 1.0 if answer == str(total) else 0.1 * answer.isdecimal()


def install(monkeypatch):
    """Put the stand-in in the place of the package."""
    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    countdown = make_dataclass("CountdownConfig", COUNTDOWN, bases=(SumsConfig,))
    factory.DATASETS = {
        "sums": (Sums, SumsConfig), "countdown": (Sums, countdown),
        "simple_integration": (Sums, SumsConfig),
    }  # fmt: skip
    factory.create_dataset = lambda name, **settings: Sums(factory.DATASETS[name][1](**settings))
    factory.get_score_answer_fn = lambda name: score
    package.factory = factory
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
