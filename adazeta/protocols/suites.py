"""The field's tasks, read from the YAML files beside this one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from adazeta.protocols.columns import Edit, check_edits
from adazeta.support.settings import nearest, read_yaml
from adazeta.tasks.arguments import TaskArguments

SUITES = ("superglue", "kshot")

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """One task of a suite: where its data are, and how they become prompts.

    Attributes:
        name: of the task.
        template: of the prompt.
        metrics: the first is the one that is reported.
        hub: data set of the hub; None where its files are needed.
        config: of the data set.
        train_split: of the data set.
        test_split: of the data set.
        label_column: see :class:`~adazeta.tasks.arguments.TaskArguments`; so are the next five.
        label_words: labels and their words.
        choices: column or templates of the candidates.
        objective: of multiple choice.
        completion: of an answer.
        references: column of the answers.
        derive: new columns, each with the column that it is made from and the edits.
        limits: most tokens of a column.
        drop: examples with these values are left out.
        max_length: longest example in tokens.
        dev: examples for development, if not the suite's number.
    """

    name: str
    template: str
    metrics: list[str]
    hub: str | None = None
    config: str | None = None
    train_split: str = "train"
    test_split: str = "validation"
    label_column: str = "label"
    label_words: dict[str, str] | None = None
    choices: str | list[str] | None = None
    objective: str = "choice"
    completion: str | None = None
    references: str | None = None
    derive: dict[str, tuple[str, list[Edit]]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    drop: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    dev: int | None = None

    def arguments(self, **more: Any) -> TaskArguments:
        """Return the settings of the task; the data are among ``more``."""
        return TaskArguments(
            template=self.template,
            label_column=self.label_column,
            label_words=None if self.label_words is None else dict(self.label_words),
            choices=self.choices,
            objective=self.objective,
            completion=self.completion,
            references=self.references,
            metrics=None if self.choices is not None else list(self.metrics),
            max_length=self.max_length,
            **more,
        )


@dataclass(frozen=True)
class Suite:
    """A protocol and its tasks.

    Attributes:
        name: one of :data:`SUITES`.
        source: the paper and the code that the protocol is from.
        split: ``"sampled"`` or ``"kshot"``, see :mod:`adazeta.protocols.splits`.
        test: most examples to test on.
        seeds: of the splits that the field reports.
        max_length: longest example in tokens.
        tasks: by name.
        train: examples to train on, where the split is sampled.
        dev: examples for development, likewise.
        k: examples of a class, where it is kshot.
        test_seed: of the test examples, likewise.
    """

    name: str
    source: str
    split: str
    test: int
    seeds: list[int]
    max_length: int
    tasks: dict[str, Benchmark]
    train: int = 0
    dev: int = 0
    k: int = 0
    test_seed: int = 0

    def chosen(self, names: list[str] | None) -> list[Benchmark]:
        """Return the tasks of these names, or all.

        Raises:
            ValueError: there is no such task.
        """
        for name in names or ():
            if name not in self.tasks:
                hint = nearest(name, self.tasks) or f"there are {', '.join(self.tasks)}"
                raise ValueError(f"no task {name!r} in the suite {self.name}; {hint}")
        return [self.tasks[name] for name in (names or self.tasks)]


def load_suite(name: str) -> Suite:
    """Load a suite.

    Raises:
        ValueError: there is none of that name, or its file is malformed.
    """
    if name not in SUITES:
        hint = nearest(name, SUITES) or f"there are {', '.join(SUITES)}"
        raise ValueError(f"no suite {name!r}; {hint}")
    path = _FOLDER / f"{name}.yaml"
    values = read_yaml(path)
    protocol = dict(values["protocol"])
    longest = int(protocol["max_length"])
    tasks = {
        task: _benchmark(task, dict(described), longest, str(path))
        for task, described in values["tasks"].items()
    }
    return Suite(tasks=tasks, **protocol)


def published_rows(suite: str, k: int) -> list[dict[str, Any]]:
    """Return the results that papers print for a suite, in percent.

    Args:
        suite: its name.
        k: examples of a class; rows of another number are left out.

    Returns:
        Mappings with ``model``, ``method``, ``source`` and ``values``, by task.
    """
    rows: list[dict[str, Any]] = read_yaml(_FOLDER / "published.yaml")[suite]
    return [row for row in rows if int(row.get("k", k)) == k]


def _benchmark(name: str, described: dict[str, Any], longest: int, path: str) -> Benchmark:
    known = {f.name for f in fields(Benchmark)} - {"name"}
    strange = sorted(described.keys() - known)
    if strange:
        raise ValueError(f"{path}, {name}: unknown key {strange[0]!r}")
    derive: Mapping[str, Any] = described.pop("derive", {})
    made = {column: (how["from"], list(how["edits"])) for column, how in derive.items()}
    for column, (_, edits) in made.items():
        check_edits(edits, f"{path}, {name}, {column}")
    return Benchmark(name=name, derive=made, **{"max_length": longest, **described})
