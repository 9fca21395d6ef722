import json
import sys

import pytest
import torch

from adazeta.runs.generation import generate_answers
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.generation import GenerationTask
from adazeta.tasks.registry import make_task, task_from_dict
from tests.helpers.tiny_models import tiny_bart, tiny_gpt2, tiny_llama, tiny_t5, tiny_tokenizer

RECORDS = [
    {"question": "what is red ?".replace("what ", ""), "answer": ["the house", "a tree"]},
    {"question": "is the cat in the house with the dog ?", "answer": "yes"},
]


def task_of(**options):
    settings = {"prompt": "question : {question} answer :", "max_new_tokens": 5, **options}
    return GenerationTask(tiny_tokenizer(), " {answer}", "answer", **settings)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_t5, tiny_bart])
@torch.no_grad()
def test_answers_are_what_greedy_decoding_writes(build):
    model, decoder = build(), build in (tiny_t5, tiny_bart)
    task = task_of(decoder=decoder, stop=[])
    examples = task.encode_all(RECORDS)
    found = generate_answers(model, task, examples)
    for answer, record in zip(found, RECORDS, strict=True):
        prompt = torch.tensor([task.encode_prompt(record)["prompt_ids"]])
        written = [model.config.decoder_start_token_id] if decoder else []
        for _ in range(5):
            if decoder:
                given = {"input_ids": prompt, "decoder_input_ids": torch.tensor([written])}
            else:
                given = {"input_ids": torch.cat([prompt, torch.tensor([written]).long()], 1)}
            token = int(model(**given).logits[0, -1].argmax())
            if token == task.tokenizer.eos_token_id:
                break
            written.append(token)
        text = task.tokenizer.decode(written, skip_special_tokens=True)
        assert answer == text.strip()


def test_an_answer_ends_at_the_first_stop_text():
    task = task_of(stop=["\n", "Question"])
    assert task.answer_of(" the house\nQuestion: more") == "the house"
    assert task.answer_of("\n the house Question\n") == "the house"
    assert task.answer_of("the house") == "the house"
    assert task_of(stop=[]).answer_of(" one\ntwo ") == "one\ntwo"


@torch.no_grad()
def test_generation_stops_once_a_stop_text_is_written():
    model, plain = tiny_gpt2(), task_of(stop=[], max_new_tokens=12)
    words = generate_answers(model, plain, plain.encode_all(RECORDS[:1]))[0].split()
    stopping = task_of(stop=[words[1]], max_new_tokens=12)
    lengths = []
    forward = model.forward

    def counting(*args, **kwargs):
        lengths.append(1)
        return forward(*args, **kwargs)

    model.forward = counting
    found = generate_answers(model, stopping, stopping.encode_all(RECORDS[:1]))
    assert found[0] == " ".join(words[: words.index(words[1])])
    assert len(lengths) <= 2


@torch.no_grad()
def test_a_checkpoints_own_settings_of_generation_are_left_out():
    model, task = tiny_gpt2(), task_of(stop=[])
    examples = task.encode_all(RECORDS)
    plain = generate_answers(model, task, examples)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.min_new_tokens = 9
    own = model.generation_config
    assert generate_answers(model, task, examples) == plain
    assert model.generation_config is own


def test_references_are_a_text_a_list_or_what_squad_has():
    task = task_of()
    for value, expected in [
        ("yes", ["yes"]),
        (["yes", "yes", "no"], ["yes", "no"]),
        ({"text": ["yes", "no"], "answer_start": [1, 2]}, ["yes", "no"]),
        ({"spans": ["yes"], "types": ["span"]}, ["yes"]),
    ]:
        example = task.encode({**RECORDS[0], "answer": value})
        assert example["references"] == expected
        learnt = [token for token in example["labels"] if token >= 0]
        assert task.tokenizer.decode(learnt, skip_special_tokens=True) == "yes"
    for empty in ("", None, [], {"text": []}):
        with pytest.raises(ValueError, match="holds no answer"):
            task.encode({**RECORDS[0], "answer": empty})


def test_a_prompt_leaves_room_for_the_answer():
    task = task_of(max_length=20, max_new_tokens=5)
    ids = task.encode_prompt({"question": "dog " * 60})["prompt_ids"]
    assert len(ids) == 15


def test_a_task_of_answers_is_made_and_described():
    arguments = TaskArguments(
        template="{question}", completion=" {answer}", references="answer", stop=["."],
        metrics=["f1"], max_new_tokens=7,
    )  # fmt: skip
    task = make_task(arguments, tiny_tokenizer())
    assert isinstance(task, GenerationTask)
    again = task_from_dict(json.loads(json.dumps(task.to_dict())), tiny_tokenizer())
    assert again.to_dict() == task.to_dict()
    assert (again.stop, again.max_new_tokens, again.metric_names) == (["."], 7, ["f1"])


def test_what_generation_cannot_use_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="no column in braces"):
        task_of(prompt="")
    with pytest.raises(ValueError, match="max_new_tokens must be 1"):
        task_of(max_new_tokens=0)
    with pytest.raises(ValueError, match="empty text"):
        task_of(stop=[""])
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match=r"pip install adazeta\[rouge\]"):
        task_of(metrics=["rouge"])
