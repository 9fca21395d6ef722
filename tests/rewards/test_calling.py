"""Reward functions of TRL's signature are called as there, and what fails says so."""

import asyncio
import functools
import gc
import math
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from adazeta.rewards.calling import Rewards

PROMPTS = ["p", "q", "r"]
COMPLETIONS = ["one", "three", ""]


def lengths(completions, **kwargs):
    return [float(len(one)) for one in completions]


def scored(function, *more, weights=None, timeout=None, completions=COMPLETIONS, **columns):
    rewards = Rewards([function, *more], weights, timeout=timeout)
    return rewards(["p"] * len(completions), completions, **columns)


def values(tensor):
    assert tensor.dtype == torch.float64
    return [None if math.isnan(value) else value for value in tensor.tolist()]


def test_the_total_is_the_weighted_sum():
    def first(prompts, completions, **kwargs):
        return [prompt == "p" for prompt in prompts]

    rewards = Rewards([lengths, first, lengths], [1, 10, 0.5])
    scores = rewards(PROMPTS, COMPLETIONS)
    assert rewards.names == ["lengths", "first", "lengths_2"]
    assert values(scores.total) == [14.5, 7.5, 0.0]
    assert values(scores.each["first"]) == [1.0, 0.0, 0.0]
    assert values(scores.each["lengths_2"]) == [3.0, 5.0, 0.0]
    assert scores.faults == []


def test_none_leaves_a_function_out_of_a_sum_and_the_completion_out_where_all_say_so():
    def sometimes(completions, **kwargs):
        return [1.0, None, None]

    def seldom(completions, **kwargs):
        return [None, 2.0, math.nan]

    scores = scored(sometimes, seldom, weights=[1, 3])
    assert values(scores.total) == [1.0, 6.0, None]
    assert values(scores.each["sometimes"]) == [1.0, None, None]
    assert scores.faults == []


def test_a_function_is_given_what_its_signature_asks_for():
    seen = {}

    def few(completions, answer):
        seen["few"] = answer
        return [0] * 3

    def many(prompts, completions, completion_ids, trainer_state=None, other=5, **kwargs):
        seen["many"] = (prompts, completion_ids, trainer_state, other, sorted(kwargs))
        return [0] * 3

    class Judge:
        def __call__(self, completions, **kwargs):
            return [0] * 3

    rewards = Rewards([few, many, Judge(), functools.partial(many, other=6)])
    assert rewards.names == ["few", "many", "Judge", "many_2"]
    columns = {"answer": [1, 2, 3], "completion_ids": [[1], [2], []], "trainer_state": "state"}
    rewards.check(columns)
    rewards(PROMPTS, COMPLETIONS, **columns)
    assert seen["few"] == [1, 2, 3]
    taken = ["answer", "log_extra", "log_metric"]
    assert seen["many"] == (PROMPTS, [[1], [2], []], "state", 6, taken)


def test_conversations_are_handed_over_as_they_are():
    def think(completions, **kwargs):
        return [float(one[0]["content"].startswith("<think>")) for one in completions]

    prompts = [[{"role": "user", "content": "hi"}]] * 2
    answers = [[{"role": "assistant", "content": text}] for text in ("<think>a", "b")]
    assert values(Rewards([think])(prompts, answers).total) == [1.0, 0.0]


def test_what_cannot_be_given_is_refused_by_name_before_any_call():
    def answered(completions, solution, **kwargs):
        raise AssertionError

    def agents(completions, environments, **kwargs):
        raise AssertionError

    with pytest.raises(
        ValueError, match=r"'answered' needs the argument 'solution': there are .*answer"
    ):
        Rewards([answered]).check(["answer"])
    with pytest.raises(ValueError, match="'agents' needs the argument 'environments'"):
        Rewards([agents])(PROMPTS, COMPLETIONS)
    with pytest.raises(ValueError, match="answer has 2 values for 3 completions"):
        scored(lengths, answer=[1, 2])


def test_what_is_logged_comes_back():
    def logs(completions, log_extra=None, log_metric=None, **kwargs):
        log_extra("parsed", [one[:1] for one in completions])
        log_metric("found", 0.5)
        return [0.0] * len(completions)

    scores = scored(logs, logs)
    assert scores.extra == dict.fromkeys(["parsed", "logs_2.parsed"], ["o", "t", ""])
    assert scores.metrics == {"found": 0.5}


@pytest.mark.parametrize(
    "result",
    [
        [1, True, Fraction(1, 2)],
        (1.0, 1.0, 0.5),
        torch.tensor([1.0, 1.0, 0.5]),
        np.array([1.0, 1.0, 0.5]),
        [torch.tensor(1.0), np.float32(1), torch.tensor([0.5])],
    ],
)
def test_any_numbers_are_rewards(result):
    assert values(scored(lambda completions: result).total) == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], "returned 2 rewards for 3 completions"),
        (1.0, "returned float"),
        (None, "returned NoneType"),
        ("abc", "returned str"),
        ([1.0, "2", 3.0], "returned '2' for completion 1"),
        ([1.0, 2j, 3.0], "returned 2j for completion 1"),
        ([1.0, 2.0, [3.0]], r"returned \[3.0\] for completion 2"),
    ],
)
def test_another_result_than_numbers_is_an_error(result, message):
    with pytest.raises(ValueError, match=message):
        scored(lambda completions: result)


def test_infinity_is_a_fault_of_its_completion():
    scores = scored(lambda completions: [1.0, math.inf, -math.inf], lengths)
    assert values(scores.total) == [4.0, None, None]
    assert scores.faults == ["<lambda>: it returned inf (2 of 3 completions)"]


def test_where_examples_are_scored_alone_only_those_that_raise_have_no_reward():
    calls = []

    def inverse(completions, **kwargs):
        calls.append(list(completions))
        return [1 / len(one) for one in completions]

    scores = scored(inverse, lengths, completions=["ab", "", "abcd", ""])
    assert values(scores.each["inverse"]) == [0.5, None, 0.25, None]
    assert values(scores.total) == [2.5, None, 4.25, None]
    assert scores.faults == ["inverse: ZeroDivisionError: division by zero (2 of 4 completions)"]
    assert calls == [["ab", "", "abcd", ""], ["ab"], [""], ["abcd"], [""], ["ab", "abcd"]]


def test_where_rewards_depend_on_the_batch_none_is_made_of_a_part_of_it():
    def ranks(completions, **kwargs):
        if "" in completions:
            raise ValueError("empty\n text")
        return [sorted(completions).index(one) for one in completions]

    scores = scored(ranks, completions=["a", "b", "", "c"])
    assert values(scores.total) == [None] * 4
    assert scores.faults == ["ranks: ValueError: empty text (4 of 4 completions)"]


@pytest.mark.parametrize("completions", [[""], ["", "a"]])
def test_one_example_alone_says_nothing_of_a_batch(completions):
    scores = scored(
        lambda completions: [1 / len(one) for one in completions], completions=completions
    )
    assert values(scores.total) == [None] * len(completions)


def test_an_error_that_does_not_come_back_is_told_and_harmless():
    calls = []

    def flaky(completions, log_extra, **kwargs):
        log_extra("calls", [1])
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no answer")
        return [1.0] * len(completions)

    scores = scored(flaky)
    assert values(scores.total) == [1.0] * 3
    assert scores.faults == [
        "flaky: ConnectionError: no answer; called again, it worked (0 of 3 completions)"
    ]
    assert scores.extra == {}


def test_a_missing_package_and_an_interrupt_are_not_faults_of_examples():
    def needs(completions, **kwargs):
        raise ImportError("install it")

    def stopped(completions, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(ImportError, match="install it"):
        scored(needs)
    with pytest.raises(KeyboardInterrupt):
        scored(stopped)


def test_a_watched_function_does_not_spoil_the_total():
    def broken(completions, **kwargs):
        raise ValueError

    scores = scored(lengths, broken, weights=[1, 0])
    assert values(scores.total) == [3.0, 5.0, 0.0]
    assert values(scores.each["broken"]) == [None] * 3
    assert scores.faults == ["broken: ValueError (3 of 3 completions)"]


def test_coroutines_run_together():
    barrier = []

    async def first(completions, **kwargs):
        while len(barrier) < 2:
            barrier.append("first")
            await asyncio.sleep(0)
        return [1.0] * 3

    class Second:
        async def __call__(self, completions, **kwargs):
            while "first" not in barrier:  # would never end if it ran before the other
                await asyncio.sleep(0)
            return [2.0] * 3

    scores = scored(Second(), first, lengths, timeout=60)
    assert values(scores.total) == [6.0, 8.0, 3.0]


def test_a_loop_lasts_for_clients_that_keep_connections_in_it():
    loops = []

    async def client(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        return [0.0] * 3

    rewards = Rewards([client])
    rewards(PROMPTS, COMPLETIONS)
    rewards(PROMPTS, COMPLETIONS)
    assert loops[0] is loops[1]
    del rewards
    gc.collect()
    assert loops[0].is_closed()


def test_coroutines_that_raise_are_called_alone_as_well():
    async def inverse(completions, **kwargs):
        await asyncio.sleep(0)
        return [1 / len(one) for one in completions]

    scores = scored(inverse, completions=["ab", "", "abcd"])
    assert values(scores.total) == [0.5, None, 0.25]


def test_a_coroutine_may_be_called_within_a_loop():
    async def reward(completions, **kwargs):
        return [1.0] * 3

    async def notebook():
        return scored(reward)

    assert values(asyncio.run(notebook()).total) == [1.0] * 3


def test_a_function_that_is_late_has_no_rewards_and_is_ended():
    ended = threading.Event()

    def endless(completions, **kwargs):
        try:
            while True:
                time.sleep(0.001)
        finally:
            ended.set()

    async def sleeps(completions, **kwargs):
        await asyncio.sleep(3600)

    for function in (endless, sleeps):
        scores = scored(function, lengths, timeout=0.05)
        assert values(scores.total) == [None] * 3
        assert values(scores.each["lengths"]) == [3.0, 5.0, 0.0]
        name = function.__name__
        assert scores.faults == [f"{name}: it took longer than 0.05 s (3 of 3 completions)"]
    assert ended.wait(60)


def test_a_coroutine_that_blocks_its_loop_does_not_spoil_the_next_batch():
    blocked = []

    async def judge(completions, **kwargs):
        while not blocked or time.monotonic() < blocked[0]:
            blocked[:] = blocked or [time.monotonic() + 3600]
            time.sleep(0.001)
        return [1.0] * len(completions)

    rewards = Rewards([judge], timeout=0.05)
    (fault,) = rewards(PROMPTS, COMPLETIONS).faults
    assert "took longer than 0.05 s" in fault
    blocked[:] = [0.0]
    rewards.timeout = 60
    assert values(rewards(PROMPTS, COMPLETIONS).total) == [1.0] * 3


def test_in_time_a_limit_changes_nothing():
    def own(completions, **kwargs):
        raise TimeoutError("of a server")

    def with_graph(completions, **kwargs):
        return [float(torch.is_grad_enabled())] * 3

    scores = scored(own, timeout=60)
    assert scores.faults == ["own: TimeoutError: of a server (3 of 3 completions)"]
    with torch.no_grad():
        assert values(scored(with_graph, timeout=60).total) == [0.0] * 3
    assert values(scored(with_graph, timeout=60).total) == [1.0] * 3


def test_no_completions_are_no_call():
    scores = Rewards([lambda completions: 1 / 0])([], [])
    assert scores.total.shape == (0,) and scores.faults == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([],), ValueError, "no reward function"),
        (([5],), TypeError, "5 is no reward function"),
        (([nn.Linear(1, 1)],), TypeError, "Linear is a model"),
        (([lengths], [1, 2]), ValueError, r"2 weights for 1 reward functions \(lengths\)"),
        (([lengths], [math.nan]), ValueError, "finite"),
        (([lengths, lengths], [0, 0]), ValueError, "not all 0"),
    ],
)
def test_what_is_no_set_of_rewards_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Rewards(*arguments)


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan])
def test_a_time_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match="timeout"):
        Rewards([lengths], timeout=timeout)
