"""Completions of evaluations in the loggers that are at work: tensorboard, wandb and trackio."""

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
from transformers import TrainerCallback

from adazeta.training.completion_loggers import as_markdown, log_completions, table_of_completions
from adazeta.training.rollouts import Shown
from tests.helpers.rewards import trainer, vowels

EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 3, "save_strategy": "no"}
NAMES = ["step", "prompt", "reward before", "before", "reward", "completion"]


def module(monkeypatch, name, **values):
    found = ModuleType(name)
    found.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(found).update(values)
    monkeypatch.setitem(sys.modules, name, found)
    return found


def logger(monkeypatch, name, **values):
    """A stand-in for a logger's package: keeps what is logged, and the arguments of tables."""
    logged = []
    module(
        monkeypatch, name, config=MagicMock(), log=logged.append, init=MagicMock(),
        Table=lambda **arguments: arguments, finish=MagicMock(), run=MagicMock(),
        context_vars=MagicMock(current_space_id=MagicMock(get=lambda: None)),
        __version__="1", **values,
    )  # fmt: skip
    return logged


def tables(logged):
    return [(entry["completions"], entry["train/global_step"]) for entry in logged
            if "completions" in entry]  # fmt: skip


def test_tensorboard_gets_a_text(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trainer(tmp_path / "run", report_to="tensorboard", **EVALUATED).train()
    found = events.EventAccumulator(str(tmp_path / "tb")).Reload()
    (entry,) = found.Tensors("completions/text_summary")
    text = entry.tensor_proto.string_val[0].decode()
    assert entry.step == 3 and text.splitlines()[0] == f"| {' | '.join(NAMES)} |"
    assert len(text.splitlines()) == 2 + 6 and "the film was" in text


def test_wandb_gets_a_table(tmp_path, monkeypatch):
    for name in ("wandb.sdk", "wandb.sdk.lib"):
        module(monkeypatch, name)
    module(monkeypatch, "wandb.sdk.lib.config_util", ConfigError=RuntimeError)
    logged = logger(monkeypatch, "wandb")

    def short(completions, **columns):
        return [float(len(text) < 9) for text in completions]

    trainer(tmp_path, [vowels, short], report_to="wandb", **EVALUATED).train()
    ((table, step),) = tables(logged)
    assert step == 3 and table["columns"] == [*NAMES, "rewards/vowels", "rewards/short"]
    assert len(table["data"]) == 6
    _, prompt, _, _, reward, _, *each = table["data"][0]
    assert prompt == "the film was" and reward == pytest.approx(sum(each))


@pytest.mark.parametrize("pandas", [False, True])
def test_trackio_gets_a_table(tmp_path, monkeypatch, pandas):
    logged = logger(monkeypatch, "trackio")
    frame = SimpleNamespace(DataFrame=lambda rows, columns: {"columns": columns, "data": rows})
    monkeypatch.setitem(sys.modules, "pandas", frame if pandas else None)
    trainer(tmp_path, report_to="trackio", **EVALUATED).train()
    ((table, step),) = tables(logged)
    table = table["dataframe"] if pandas else table
    assert step == 3 and table["columns"] == NAMES and len(table["data"]) == 6


def test_a_logger_that_is_not_at_work_gets_nothing(tmp_path, monkeypatch):
    logged = logger(monkeypatch, "wandb"), logger(monkeypatch, "trackio")
    trainer(tmp_path, report_to="none", **EVALUATED).train()
    assert logged == ([], [])
    log_completions([TrainerCallback()], [Shown("p", "c", 1.0)], 1)


def test_texts_stay_texts_in_a_table():
    talk = [{"role": "user", "content": "a|b"}]
    shown = [Shown(talk, "<think>\nx", 0.25), Shown(talk, "y", None)]
    columns, rows = table_of_completions(shown, 7)
    assert columns == ["step", "prompt", "reward", "completion"]  # no base to compare with
    lines = as_markdown(columns, rows).splitlines()
    assert lines[2] == "| 7 | user: a&#124;b | 0.25 | &lt;think&gt;<br>x |"
    assert lines[3] == "| 7 | user: a&#124;b | none | y |"
