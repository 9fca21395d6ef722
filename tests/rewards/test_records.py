"""Data sets in TRL's format, and its documented kinds of reward functions on them."""

import re

import pytest

from adazeta.rewards.calling import Rewards
from adazeta.rewards.records import columns_of, completions_of, text_of

ASKED = [{"role": "user", "content": "2 + 2?"}]


def test_prompts_and_columns_are_separated():
    records = [
        {"prompt": "a", "solution": "1", "completion": "x", "completion_ids": [1]},
        {"solution": None, "prompt": "b", "completion": "y", "completion_ids": [2]},
    ]
    assert columns_of(records) == (["a", "b"], {"solution": ["1", None]})
    assert columns_of([{"prompt": ASKED}]) == ([ASKED], {})
    assert columns_of([]) == ([], {})


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a"}], "record 0 has the prompt None"),
        ([{"prompt": "a"}, {"prompt": []}], r"record 1 has the prompt \[\]"),
        ([{"prompt": [{"content": "a"}]}], "a list of messages with 'role' and 'content'"),
        ([{"prompt": "a"}, {"prompt": ASKED}], "record 1 has a prompt of another kind"),
        ([{"prompt": "a", "x": 1}, {"prompt": "b"}], "column 'x' is in record 0 or record 1"),
    ],
)
def test_what_is_no_data_set_of_prompts_is_refused(records, message):
    with pytest.raises(ValueError, match=message):
        columns_of(records)


def test_completions_have_the_form_of_their_prompts():
    assert completions_of(["a", "b"], ["c", "d"]) == ["c", "d"]
    (one,) = completions_of([ASKED], ["4"])
    assert one == [{"role": "assistant", "content": "4"}] and text_of(one) == "4"
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]
    assert text_of([{"role": "assistant", "content": parts}]) == "42"
    with pytest.raises(ValueError, match="no text"):
        text_of([])


class OverlongPunishment:
    """As TRL's ``get_soft_overlong_punishment`` (equation 13 of arXiv 2503.14476)."""

    __name__ = "soft_overlong_punishment_reward"

    def __init__(self, longest, soft):
        self.longest, self.soft = longest, soft

    def __call__(self, completion_ids, **kwargs):
        over = [len(ids) - (self.longest - self.soft) for ids in completion_ids]
        return [max(-1.0, -max(0, one) / self.soft) for one in over]


def think_format(completions, **kwargs):
    pattern = r"^<think>(?!.*<think>)(.*?)</think>.*$"
    texts = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, text, re.DOTALL | re.MULTILINE) else 0.0 for text in texts]


def accuracy(completions, solution, log_extra=None, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    found = [re.findall(r"\d+", text)[-1:] for text in texts]
    if log_extra is not None:
        log_extra("answer", [one[0] if one else "" for one in found])
    return [
        None if wanted is None else float(one == [wanted])
        for one, wanted in zip(found, solution, strict=True)
    ]


async def judged(prompts, completions, trainer_state=None, **kwargs):
    return [float(trainer_state is None)] * len(prompts)


def test_functions_of_trl_s_signature_run_on_a_data_set_of_its_format():
    records = [
        {"prompt": ASKED, "solution": "4", "source": "sums"},
        {"prompt": ASKED, "solution": None, "source": "open"},
    ]
    prompts, columns = columns_of(records)
    texts = ["<think>\n2 and 2\n</think>\nIt is 4.", "5"]
    rewards = Rewards([think_format, accuracy, OverlongPunishment(10, 5), judged], [1, 2, 1, 0.5])
    rewards.check([*columns, "completion_ids"])
    ids = [[1] * 8, [1] * 20]
    scores = rewards(prompts, completions_of(prompts, texts), completion_ids=ids, **columns)
    assert scores.faults == []
    assert scores.each["accuracy"].isnan().tolist() == [False, True]
    assert scores.total.tolist() == pytest.approx([1 + 2 - 0.6 + 0.5, 0 - 1 + 0.5])
    assert scores.extra == {"answer": ["4", "5"]}
