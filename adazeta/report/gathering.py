"""What the folder of a run says of it, whoever wrote which file of it and however it ended."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from adazeta.recording.folder import (
    BEGIN_NAME,
    HISTORY_NAME,
    LOG_NAME,
    SETTINGS_NAME,
    TASK_NAME,
)
from adazeta.recording.header import LogHeader
from adazeta.recording.history import read_history
from adazeta.recording.probe_log import read_log
from adazeta.recording.step_record import StepRecord
from adazeta.support.files import read_object
from adazeta.support.settings import read_yaml

STATE_NAME = "trainer_state.json"  # of transformers
RESULTS_NAME = "all_results.json"  # of transformers
COMPLETIONS_NAME = "completions.jsonl"  # what a run with rewards wrote at its evaluations
COMMAND_NAME = "report.json"  # what a demo measured before and after

T = TypeVar("T")


@dataclass(frozen=True)
class Completion:
    """What the model wrote after a prompt.

    Attributes:
        step: of the trainer.
        prompt, completion: texts.
        total: the weighted sum of the rewards; None if it has none.
        rewards: of each function, by name.
    """

    step: int
    prompt: str
    completion: str
    total: float | None
    rewards: Mapping[str, float | None] = field(default_factory=dict)


@dataclass
class RunRecord:
    """A run, as far as its folder tells.

    Attributes:
        folder: of the run.
        name: for people.
        history: what the trainer logged, in order.
        header: of the probe log, None without one.
        steps: the records of the probe log.
        settings: of the command that trained, by name.
        task: description of the task.
        results: metrics of training, validation and test.
        measured: what a demo measured beside them.
        completions: of the evaluations, in order.
        state: of the trainer when it began: ``max_steps`` and others.
        problems: files that could not be read or do not belong to the run, and why.
    """

    folder: Path
    name: str
    history: list[dict[str, Any]] = field(default_factory=list)
    header: LogHeader | None = None
    steps: list[StepRecord] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps of the trainer that are done."""
        done = [entry["step"] for entry in self.history if "step" in entry]
        if self.header is not None:
            done.append((self.header.first_global_step or 0) + len(self.steps))
        return int(max(done, default=0) or self.state.get("global_step") or 0)

    @property
    def finished(self) -> bool:
        """Whether training came to its end; a run that goes on after it has not."""
        if not self.history:
            return bool(self.results)
        ends = [entry.get("step", 0) for entry in self.history if "train_runtime" in entry]
        return bool(ends) and max(ends) >= self.step


def gather(folder: str | Path) -> RunRecord:
    """Read the folder of a run, finished or not.

    A file that is damaged is named among the problems, and the others are read.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is not the folder of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the output_dir of a run")
    run = RunRecord(folder, folder.resolve().name)
    run.history = read_history(folder / HISTORY_NAME)
    state = _read(run, STATE_NAME, read_object) or {}
    run.history = run.history or _entries(state.get("log_history"))
    log = _read(run, LOG_NAME, read_log)
    if log is not None:
        run.header = log.header
        run.steps = _read(run, LOG_NAME, lambda path: list(log)) or []
    # That of the trainer is written at the end, so it may be of a run that was here before.
    run.state = _read(run, BEGIN_NAME, read_object) or state
    run.settings = _read(run, SETTINGS_NAME, read_yaml) or {}
    run.task = _read(run, TASK_NAME, read_object) or {}
    run.results = _read(run, RESULTS_NAME, read_object) or {}
    run.measured = _read(run, COMMAND_NAME, read_object) or {}
    run.completions = _read(run, COMPLETIONS_NAME, lambda path: list(_completions(path))) or []
    _leave_out_the_run_before(run)
    if not (run.history or run.steps or run.results):
        why = "; ".join(run.problems) or f"no {HISTORY_NAME}, {LOG_NAME} or {RESULTS_NAME}"
        raise ValueError(f"{folder} holds no run ({why}); give the output_dir of a run")
    return run


def _leave_out_the_run_before(run: RunRecord) -> None:
    """Drop what is written at the end of a run, if this one has not come to it."""
    if not run.finished and (run.history or run.steps):
        for name, values in ((RESULTS_NAME, run.results), (COMMAND_NAME, run.measured)):
            if values:
                run.problems.append(f"{name} is left out: it is of a run that was here before")
        run.results, run.measured = {}, {}
    if run.step:
        run.completions = [one for one in run.completions if one.step <= run.step]


def gather_all(folders: list[Path]) -> list[RunRecord]:
    """Read the folders of several runs, and name each so that it can be told from the others.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: one is not the folder of a run, or is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    for place, folder in enumerate(whole):
        if folder in whole[:place]:
            raise ValueError(f"{folders[place]} is given twice")
    runs = [gather(folder) for folder in folders]
    depth = 1
    while len({_last(folder, depth) for folder in whole}) < len(whole):
        depth += 1
    for run, folder in zip(runs, whole, strict=True):
        run.name = _last(folder, depth)
    return runs


def _last(folder: Path, depth: int) -> str:
    return "/".join(folder.parts[-depth:])


def _read(run: RunRecord, name: str, read: Callable[[Path], T]) -> T | None:
    """Read a file that may be missing or damaged."""
    try:
        return read(run.folder / name)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        run.problems.append(f"{name} cannot be read: {error}")
        return None


def _entries(found: Any) -> list[dict[str, Any]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _completions(path: Path) -> Iterator[Completion]:
    """Read ``completions.jsonl``; a line that was not finished is left out.

    Each line has ``step``, ``prompt``, ``completion``, and ``total`` with the ``rewards`` by name.
    A line may say what the untrained model wrote, as ``before`` with ``reward_before``.
    """
    found: dict[tuple[int, str], Completion] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            continue
        prompt = _text(row.get("prompt"))
        if isinstance(row.get("before"), str):
            total = _number(row.get("reward_before"))
            found.setdefault((0, prompt), Completion(0, prompt, row["before"], total))
        rewards = row.get("rewards")
        each = rewards.items() if isinstance(rewards, dict) else ()
        # A run that was resumed writes some of its evaluations twice: the later counts.
        found[row["step"], prompt] = Completion(
            row["step"],
            prompt,
            _text(row.get("completion")),
            _number(row.get("total", row.get("reward"))),
            {name: _number(value) for name, value in each},
        )
    yield from sorted(found.values(), key=lambda one: one.step)


def _text(value: Any) -> str:
    """Return a text; of a conversation, its messages one below the other."""
    if isinstance(value, list):
        messages = (one if isinstance(one, dict) else {"content": one} for one in value)
        return "\n".join(
            f"{one['role']}: {one.get('content')}" if "role" in one else str(one.get("content"))
            for one in messages
        )
    return "" if value is None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
