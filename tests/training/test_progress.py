import io
import re
import sys

import pytest
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from adazeta import TTAdapterConfig, ZOTrainer, add_tt_adapters
from adazeta.training.progress import BarAndLines, PlainLines, line_of
from tests.helpers.runs import CONFIG, arguments, causal_data, trainer
from tests.helpers.tiny_models import tiny_llama

TRAIN = {
    "loss": 4.889, "learning_rate": 0.0095, "epoch": 1.5, "queries": 1, "eps": 0.01,
    "projected_gradient_mean": 0.1, "evaluations": 1600, "probes_per_forward": 2,
    "dropped_probes": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            TRAIN,
            "step   100/1,000  train  loss     4.889  rate 0.0095     evaluations     1,600  "
            "epoch 1.50",
        ),
        (
            {"loss": 1.25e-05, "learning_rate": 1e-5, "dropped_probes": 3, "kl": 0.5},
            "step   100/1,000  train  loss 1.250e-05  rate 1e-05      dropped probes 3  kl 0.5000",
        ),
        (
            {
                "eval_loss": 0.61, "eval_accuracy": 0.7412, "eval_runtime": 12.2, "epoch": 1.5,
                "eval_samples_per_second": 5.0, "eval_steps_per_second": 2.0,
            },
            "step   100/1,000  eval   loss    0.6100  accuracy 0.7412  (12 s)",
        ),
        (
            {"eval_long_loss": 0.61, "eval_long_runtime": 1.0, "epoch": 1.0},
            "step   100/1,000  eval long  loss    0.6100  (1 s)",
        ),
        (
            {"train_runtime": 3121.4, "train_steps_per_second": 0.3204, "train_loss": 0.5},
            "done: 100 steps in 3,121 s, 0.32 steps a second, mean loss 0.5000",
        ),
        ({"train_runtime": 2}, "done: 100 steps in 2 s"),
        ({"note": "warm", "count": 3}, "step   100/1,000  note warm  count 3"),
        (
            {"loss": None, "learning_rate": "low", "evaluations": [1], "epoch": "?"},
            "step   100/1,000  train  loss      None  rate low        evaluations       [1]  "
            "epoch ?",
        ),
    ],
)  # fmt: skip
def test_a_log_is_a_line(logs, line):
    before = dict(logs)
    assert line_of(logs, 100, 1000) == line
    assert logs == before  # what other callbacks are given


def test_figures_are_below_each_other():
    first = line_of({**TRAIN, "learning_rate": 0.01, "evaluations": 8}, 1, 1000)
    last = line_of({**TRAIN, "loss": 0.5, "evaluations": 123456}, 1000, 1000)
    ends = [[match.end() for match in re.finditer("loss|rate|evaluations|epoch", line)]
            for line in (first, last)]  # fmt: skip
    assert ends[0] == ends[1] and len(first) == len(last)


def run(tmp_path, **options):
    found = ZOTrainer(
        add_tt_adapters(tiny_llama(), TTAdapterConfig(**CONFIG)),
        arguments(
            tmp_path / "run", max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4,
            per_device_eval_batch_size=4, **options,
        ),
        train_dataset=causal_data(),
        eval_dataset=causal_data(),
    )  # fmt: skip
    found.train()
    return found


STEPS = ["step 2/4  train  loss", "step 4/4  train  loss", "step 4/4  eval   loss", "done: 4 st"]


def assert_lines(text):
    lines = text.splitlines()
    assert len(lines) == len(STEPS)
    for line, begin in zip(lines, STEPS, strict=True):
        assert line.startswith(begin)
    assert "{" not in text


def test_training_without_bars_prints_a_line_for_each_log(tmp_path, capsys):
    found = run(tmp_path)
    captured = capsys.readouterr()
    assert_lines(captured.out)
    assert captured.err == ""
    assert [entry["step"] for entry in found.state.log_history] == [2, 4, 4, 4]
    assert found.state.log_history[0]["projected_gradient_mean"] > 0
    assert "total_flos" in found.state.log_history[-1]


def test_without_a_terminal_there_are_lines_and_no_bar(tmp_path, capsys):
    run(tmp_path, disable_tqdm=False)
    captured = capsys.readouterr()
    assert_lines(captured.out)
    assert captured.err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_one_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    found = run(tmp_path, disable_tqdm=False)
    shown = terminal.getvalue()
    assert "4/4 [" in shown and "evaluation 4/4" in shown
    assert shown.count("\n") == 1  # a second bar would begin a line below the first
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert_lines("\n".join(lines))
    terminal.truncate(0)
    found.evaluate()  # outside of training it has a bar of its own
    assert "evaluation" not in terminal.getvalue() and "4/4" in terminal.getvalue()
    assert found.callback_handler.callbacks[-1].prediction_bar is None


def test_a_bar_goes_on_where_the_run_does(tmp_path, monkeypatch):
    trainer(tmp_path / "run", max_steps=3).train()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    trainer(tmp_path / "run", max_steps=6, disable_tqdm=False).train(resume_from_checkpoint=True)
    assert "3/6 [" in terminal.getvalue() and "6/6 [" in terminal.getvalue()
    assert " 0/6 [" not in terminal.getvalue()


def test_ours_stands_in_the_place_of_the_usual_one(tmp_path):
    class Own(PrinterCallback):
        pass

    for disabled, ours, usual in (
        (True, PlainLines, PrinterCallback), (False, BarAndLines, ProgressCallback),
    ):  # fmt: skip
        found = trainer(tmp_path / "run", disable_tqdm=disabled)
        kinds = [type(callback) for callback in found.callback_handler.callbacks]
        assert ours in kinds and usual not in kinds
        found.remove_callback(usual)
        assert not [c for c in found.callback_handler.callbacks if isinstance(c, ours)]
    own, data, args = Own(), causal_data(), arguments(tmp_path / "run")
    found = ZOTrainer(found.model, args, train_dataset=data, callbacks=[own])
    assert own in found.callback_handler.callbacks
