"""Training on rewards: signals, faults, replay, resuming, and what is refused."""

import asyncio
import json
import math
import re
from pathlib import Path

import pytest
import torch

from adazeta import ZOTrainer
from adazeta.estimation.displacement import REACH
from adazeta.parameters.space import ParameterSpace
from adazeta.recording.folder import COMPLETIONS_NAME, LOG_NAME
from adazeta.recording.identity import fingerprint_of_state
from adazeta.recording.probe_log import read_log
from adazeta.recording.replay import replay
from adazeta.training.rollouts import distinct_bigrams
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.rewards import PROMPTS, arguments, data, lively_llama, task, trainer, vowels
from tests.helpers.runs import crash_after

EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}


def test_the_score_rises(tmp_path):
    def early(completions, **columns):
        return [sum(c < "m" for c in text) / max(len(text), 1) for text in completions]

    options = {"learning_rate": 0.1, "lr_scheduler_type": "constant", "queries": 4}
    run = trainer(tmp_path, early, max_steps=15, save_strategy="no", **options)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_reward"] > before["eval_reward"] + 0.1
    assert after["eval_loss"] == pytest.approx(-after["eval_reward"], abs=1e-5)
    assert before["eval_kl"] >= 0 and after["eval_kl"] > before["eval_kl"]
    logged = [entry for entry in run.state.log_history if "informative_pairs" in entry]
    assert len(logged) == 15
    for name in ("reward", "reward_std", "tokens_per_second", "completion_length"):
        assert math.isfinite(logged[0][name])
    assert logged[0]["loss"] == pytest.approx(-logged[0]["reward"])
    assert any(entry["informative_pairs"] > 0 for entry in logged)


def test_texts_of_an_evaluation_are_shown_and_kept(tmp_path, capsys):
    trainer(tmp_path, **EVALUATED).train()
    lines = [json.loads(x) for x in (tmp_path / COMPLETIONS_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [3] * 6 + [6] * 6
    assert {"prompt", "completion", "reward", "before", "reward_before"} < set(lines[0])
    assert lines[0]["before"] == lines[6]["before"]  # the base writes the same
    shown = capsys.readouterr().out
    assert "before" in shown and "now" in shown


@pytest.mark.parametrize(
    ("made", "options"),
    [
        ({}, {}),
        ({"temperature": 0.8}, {"probes": "batch", "queries": 2, "shaping": "rank"}),
        ({"adapt": "answer", "stop": ["the"]}, {"shaping": "pass@2"}),
    ],
    ids=["greedy", "sampled", "answers"],
)
def test_a_log_replays_and_a_run_resumes_to_the_same_bits(tmp_path, options, made):
    whole = trainer(tmp_path / "whole", reward_task=task(**made), **options)
    whole.train()
    again = trainer(tmp_path / "again", reward_task=task(**made), **options)
    again.train()
    log = (tmp_path / "whole" / LOG_NAME).read_bytes()
    assert (tmp_path / "again" / LOG_NAME).read_bytes() == log
    stopped = trainer(tmp_path / "stopped", reward_task=task(**made), **options)
    crash_after(stopped, 3)
    resumed = trainer(tmp_path / "stopped", reward_task=task(**made), **options)
    resumed.train(resume_from_checkpoint=True)
    assert (tmp_path / "stopped" / LOG_NAME).read_bytes() == log
    assert_same_bits(resumed.model, bits(whole.model))
    model = lively_llama()
    optimizer = replay(tmp_path / "whole" / LOG_NAME, model)
    assert_same_bits(model, bits(whole.model))
    assert fingerprint_of_state(optimizer) == fingerprint_of_state(whole.zo_optimizer)


def test_anchored_decay_pulls_to_the_start_and_replays(tmp_path):
    options = {"weight_decay": 0.9, "anchored_decay": True, "learning_rate": 0.5}

    def nothing(completions, **columns):
        return [0.0] * len(completions)

    start = [p.detach().clone() for p in lively_llama().parameters()]
    run = trainer(tmp_path / "flat", nothing, eps="0.1", **options)
    with pytest.warns(UserWarning, match="pairs had different scores"):
        run.train()  # no signal: anchored parameters stay where they began, up to rounding
    for parameter, value in zip(run.model.parameters(), start, strict=True):
        torch.testing.assert_close(parameter, value, atol=1e-6, rtol=1e-6)
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    model = lively_llama()
    replay(tmp_path / "whole" / LOG_NAME, model)
    assert_same_bits(model, bits(whole.model))
    stopped = trainer(tmp_path / "stopped", **options)
    crash_after(stopped, 3)
    resumed = trainer(tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_bits(resumed.model, bits(whole.model))


def test_missing_scores_drop_their_probes(tmp_path):
    def some(prompts, completions, place, **columns):
        values = vowels(prompts, completions)
        return [None if p % 2 else v for p, v in zip(place, values, strict=True)]

    run = trainer(tmp_path, some, train_sampling_strategy="sequential", **EVALUATED)
    run.train()
    lines = [json.loads(x) for x in (tmp_path / COMPLETIONS_NAME).read_text().splitlines()]
    assert [line["reward"] is None for line in lines] == [False, True] * 6
    assert lines[0]["rewards"] == {"some": lines[0]["reward"]}
    log = read_log(tmp_path / LOG_NAME)
    for record in log:
        assert record.dropped == 2 and len(record.seeds) == 2
    logged = [entry for entry in run.state.log_history if "missing_scores" in entry]
    assert [entry["missing_scores"] for entry in logged] == [4] * 6  # two prompts, both sides
    assert [entry["dropped_probes"] for entry in logged] == [2] * 6


def test_a_reward_that_raises_ends_no_run(tmp_path, caplog):
    def broken(completions, **columns):
        raise RuntimeError("no server")

    run = trainer(tmp_path, broken, eps="0.1")
    start = bits(run.model)
    with pytest.warns(UserWarning, match="pairs had different scores"):
        run.train()
    assert_same_bits(run.model, start)
    assert "no server" in caplog.text
    assert all(record.dropped == 4 and not record.seeds for record in read_log(tmp_path / LOG_NAME))


def test_few_informative_pairs_are_told_of(tmp_path):
    def same(completions, **columns):
        return [1.0] * len(completions)

    with pytest.warns(UserWarning, match="partial credit"):
        trainer(tmp_path, same).train()


def test_eps_is_chosen_by_the_share_of_completions_that_change(tmp_path):
    run = trainer(tmp_path, eps_share=0.5, max_steps=1, save_strategy="no")
    run.train()
    eps = run.zo_optimizer.estimator.eps
    fresh = lively_llama()  # at the start, where it was measured
    space, batch = ParameterSpace(fresh), run.rollouts.task.collate(data(6))
    differs = run.rollouts.of(fresh, space, 0).differs(batch)
    shares = []
    for scale in (eps / 10, eps, eps * 10):
        seeds = torch.arange(60, dtype=torch.int64)
        repeated = {
            n: v.repeat(10, 1) if isinstance(v, torch.Tensor) else v for n, v in batch.items()
        }
        with space.stacked(seeds, torch.full((60,), scale)):
            shares.append(differs(repeated).mean().item())
    assert shares[0] < 0.5 and 0.15 < shares[1] < 0.9 and shares[2] > shares[0]


@pytest.mark.parametrize(("method", "unit"), [("zo-adam", 1.0), ("mezo", None)])
def test_the_rate_of_scores_goes_with_eps(tmp_path, method, unit):
    """Nothing is measured: a run's random moves go as far as some perturbations do."""
    run = trainer(
        tmp_path, method=method, learning_rate="auto", max_steps=3, save_strategy="no", eps="auto"
    )
    given = trainer(
        tmp_path / "given", method=method, learning_rate=0.0, max_steps=3, save_strategy="no",
        eps="auto",
    )  # fmt: skip
    run.train(), given.train()
    assert run.evaluations == given.evaluations
    optimizer = run.zo_optimizer
    if unit is None:  # of the first step's slopes
        first = next(iter(read_log(tmp_path / LOG_NAME)))
        unit = math.sqrt(sum(c * c for c in first.coefficients))
    steps = math.sqrt(1 + 4 / 9 + 1 / 9)
    expected = REACH * optimizer.estimator.eps / (unit * steps)
    assert optimizer.auto_rate.chosen == pytest.approx(expected, rel=1e-5)


def test_conversations_and_columns_reach_functions_in_trls_form(tmp_path):
    seen = []

    def watch(prompts, completions, answer, **columns):
        seen.append((prompts, completions, answer))
        return [float(len(c[0]["content"])) for c in completions]

    made = task()
    made.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}answer :"
    rows = [
        {"prompt": [{"role": "user", "content": text}], "answer": text} for text in ("we", "it")
    ]
    run = trainer(tmp_path, watch, reward_task=made, max_steps=1, per_device_train_batch_size=2)
    run.train_dataset = rows
    run.train()
    prompts, completions, answer = seen[-1]
    assert prompts[0][0]["role"] == "user" and completions[0][0]["role"] == "assistant"
    assert [p[0]["content"] for p in prompts] == answer


def told(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


def accuracy_reward(completions, solution, **kwargs):
    """By a regular expression; None where there is nothing to compare with."""
    found = [re.findall(r"answer\W+(\w+)|(\w+)$", told(one)) for one in completions]
    last = ["".join(each[-1]) if each else "" for each in found]
    return [None if s is None else float(a == s) for a, s in zip(last, solution, strict=True)]


def format_reward(completions, **kwargs):
    return [1.0 if re.match(r"^(?!.*<think>).*$", told(one), re.DOTALL) else 0.0
            for one in completions]  # fmt: skip


def reward_len(completions, completion_ids, **kwargs):
    return [-abs(4 - len(ids)) - len(told(one)) / 100
            for one, ids in zip(completions, completion_ids, strict=True)]  # fmt: skip


async def async_reward(prompts, completions, trainer_state, **kwargs):
    await asyncio.sleep(0)
    assert trainer_state.global_step >= 0
    return [float("e" in told(one)) for one in completions]


@pytest.mark.parametrize("chat", [False, True], ids=["texts", "conversations"])
def test_a_data_set_of_trl_trains_by_functions_of_trls_signatures(tmp_path, chat):
    rows = [
        {"prompt": [{"role": "user", "content": text}] if chat else text,
         "solution": None if k == 2 else "was", "source": "here"}
        for k, text in enumerate(PROMPTS)
    ]  # fmt: skip
    made = task().tokenizer
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}answer :"
    run = ZOTrainer(
        lively_llama(),
        arguments(tmp_path, max_steps=2, save_strategy="no"),
        reward_funcs=[accuracy_reward, format_reward, reward_len, async_reward],
        train_dataset=rows,
        processing_class=made,  # as GRPOTrainer takes it
    )
    run.rollouts.task.decoding = task().decoding
    run.train()
    logged = [entry for entry in run.state.log_history if "informative_pairs" in entry]
    names = ["accuracy_reward", "format_reward", "reward_len", "async_reward"]
    assert all(math.isfinite(logged[-1][f"rewards/{name}/mean"]) for name in names)
    assert [entry["missing_scores"] for entry in logged] == [0, 0]  # None leaves one function out
    assert all(record.seeds for record in read_log(tmp_path / LOG_NAME))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"cache_trunk": "memory"}, "adapt='answer'"),
        ({"padding_free": "true", "probes": "batch"}, "padding_free"),
        ({"method": "zo-conservative"}, "ConservativeSGD"),
        ({"shaping": "pass@9"}, "raise queries"),
    ],
)
def test_settings_that_rewards_exclude_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).train()


def test_settings_of_rewards_are_refused_without_them(tmp_path):
    for name, value in (("shaping", "rank"), ("eps_share", 0.3)):
        with pytest.raises(ValueError, match=f"{name}={value!r} is for rewards"):
            ZOTrainer(lively_llama(), arguments(tmp_path, **{name: value}))


def test_distinct_bigrams():
    assert distinct_bigrams(["a b a b", "b a"]) == pytest.approx(2 / 4)
    assert distinct_bigrams(["one"]) == 0.0


def test_the_folder_of_a_run_holds_no_weights_of_the_base(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    sizes = [p.stat().st_size for p in Path(tmp_path).rglob("*.safetensors")]
    assert sizes and max(sizes) < 100_000


@pytest.mark.parametrize("adapt", ["all", "answer"])
def test_the_first_texts_may_be_those_of_a_stack(tmp_path, adapt):
    # With eps given nothing is written before the first members, each with adapters of its own,
    # and what is checked beforehand is fewer rows than these.
    options = {"eps": 0.05, "max_steps": 1, "per_device_train_batch_size": 6}
    models = []
    for size in ("1", "2"):
        run = trainer(
            tmp_path / size, reward_task=task(adapt=adapt), probes_per_forward=size,
            save_strategy="no", **options,
        )  # fmt: skip
        run.train()
        models.append(run.model)
    assert_same_bits(models[0], [p.detach() for p in models[1].parameters()])
