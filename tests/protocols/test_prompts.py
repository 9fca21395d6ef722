"""The prompts and words of the field's tasks, as MeZO's and LM-BFF's tables have them."""

import pytest

from adazeta.protocols.columns import derived
from adazeta.protocols.data import prepared
from adazeta.protocols.suites import load_suite
from adazeta.tasks.registry import make_task
from tests.helpers.field_tasks import ROWS, byte_tokenizer

LARGE = {
    "SST2": [("a dull film It was", " terrible"), ("a great cast It was", " great")],
    "RTE": [
        ('A cat sat.\nDoes this mean that "An animal sat." is true? Yes or No?\n', "Yes"),
        ('A cat sat.\nDoes this mean that "A dog sat." is true? Yes or No?\n', "No"),
    ],
    "CB": [
        ('Suppose It is late. Can we infer that "it is late"? Yes, No, or Maybe?\n', "Yes"),
        ('Suppose It is late. Can we infer that "it is early"? Yes, No, or Maybe?\n', "No"),
        ('Suppose It may be late. Can we infer that "it is late"? Yes, No, or Maybe?\n', "Maybe"),
    ],
    "BoolQ": [
        ("Tea -- Tea is a drink. Is tea a drink?\n", "Yes"),
        ("Tea -- Tea is a drink. Is tea a stone?\n", "No"),
    ],
    "WSC": [
        (
            "Mark told Pete many lies. He was hurt.\nIn the previous sentence, does the pronoun "
            '"he" refer to Pete? Yes or No?\n',
            "Yes",
        ),
        (
            "Mark told Pete many lies. He was hurt.\nIn the previous sentence, does the pronoun "
            '"he" refer to Mark? Yes or No?\n',
            "No",
        ),
    ],
    "WIC": [
        (
            'Does the word "bed" have the same meaning in these two sentences? Yes, No?\n'
            "A river bed.\nHe lay in bed.\n",
            "No",
        ),
        (
            'Does the word "bed" have the same meaning in these two sentences? Yes, No?\n'
            "A soft bed.\nHe lay in bed.\n",
            "Yes",
        ),
    ],
    "MultiRC": [
        (
            'Ann ran.\nQuestion: Who ran?\nI found this answer "Ann". Is that correct? '
            "Yes or No?\n",
            "Yes",
        ),
        (
            'Ann ran.\nQuestion: Who ran?\nI found this answer "Bob". Is that correct? '
            "Yes or No?\n",
            "No",
        ),
    ],
    "COPA": [
        ("The man lost his balance so", " he fell off the ladder."),
        ("The sun rose because", " it was morning."),
    ],
    "ReCoRD": [
        ("Ann met Bob in Rome.\n- Ann liked Rome\n-", " In the end Ann liked it"),
        ("Bob ran home.\n- Bob was late\n-", " So Bob ran"),
    ],
    "SQuAD": [
        ("Title: Tea\nContext: Tea is a drink.\nQuestion: What is tea?\nAnswer:", " a drink\n"),
        ("Title: Rome\nContext: Rome is a city.\nQuestion: What is Rome?\nAnswer:", " a city\n"),
    ],
    "DROP": [
        ("Passage: Ann had two cats.\nQuestion: How many cats?\nAnswer:", " two\n"),
        ("Passage: Bob had one dog.\nQuestion: Who had a dog?\nAnswer:", " Bob\n"),
    ],
}
SENTIMENT = {0: "terrible", 1: "great"}
ENTAILED = {0: "Yes", 1: "No"}
NLI = {0: "Yes", 1: "Maybe", 2: "No"}
SAME = {0: "No", 1: "Yes"}
MEDIUM = {
    "SST-2": ("a dull film . It was{}.", SENTIMENT),
    "sst-5": (
        "a dull film . It was{}.",
        {0: "terrible", 1: "bad", 2: "okay", 3: "good", 4: "great"},
    ),
    "mr": ("a dull film . It was{}.", SENTIMENT),
    "cr": ("a dull film . It was{}.", SENTIMENT),
    "mpqa": ("a dull film . It was{}.", SENTIMENT),
    "subj": ("a dull film . This is{}.", {"subjective": "subjective", "objective": "objective"}),
    "trec": (
        "{}: What is it , 0 ?",
        {0: "Expression", 1: "Entity", 2: "Description", 3: "Human", 4: "Location", 5: "Number"},
    ),
    "CoLA": ("They is here. This is{}.", {0: "incorrect", 1: "correct"}),
    "MNLI": ("Is it A film?{}, it is one 0.", NLI),
    "SNLI": ("Is it A film?{}, it is one 0.", NLI),
    "QNLI": ("Is it A film?{}, it is one 0.", ENTAILED),
    "RTE": ("Is it A film?{}, it is one 0.", ENTAILED),
    "MRPC": ("Is it A film?{}, it is one 0.", SAME),
    "QQP": ("Is it A film?{}, it is one 0.", SAME),
}


def set_up(suite, name):
    tokenizer, benchmark = byte_tokenizer(), load_suite(suite).tasks[name]
    task = make_task(benchmark.arguments(), tokenizer)
    records = [prepared(row, benchmark, tokenizer) for row in ROWS[suite][name]]
    return task, records


@pytest.mark.parametrize("name", LARGE)
def test_a_large_models_prompt_and_answer(name):
    task, records = set_up("superglue", name)
    assert [task.demonstration(record) for record in records] == LARGE[name]
    example = task.encode(records[0])
    prompt = example["input_ids"] if "candidates" in example else example.get("prompt_ids")
    prompt = prompt or example["input_ids"]
    assert task.tokenizer.decode(prompt) == f"<s>{LARGE[name][0][0]}"


@pytest.mark.parametrize("name", MEDIUM)
def test_a_masked_models_prompt_and_words(name):
    template, words = MEDIUM[name]
    task, records = set_up("kshot", name)
    shown = task.tokenizer.decode(task.encode(records[0])["input_ids"])
    assert shown == f"<s>{template.format('<mask>')}</s>"
    expected = {str(label): f" {word}" for label, word in words.items()}
    assert dict(zip(task.labels, task.words, strict=True)) == expected
    found = [task.tokenizer.decode([token]) for token in task.candidates.tolist()]
    assert found == task.words


def test_the_suites_hold_the_fields_tasks():
    large, medium = load_suite("superglue"), load_suite("kshot")
    assert list(large.tasks) == list(LARGE) and len(LARGE) == 11
    assert list(medium.tasks) == list(MEDIUM) and len(MEDIUM) == 14
    assert (large.train, large.dev, large.test) == (1000, 500, 1000)
    assert {t.name: t.dev for t in large.tasks.values() if t.dev} == {"CB": 100, "COPA": 100}
    likely = {t.name for t in large.tasks.values() if t.objective == "likelihood"}
    assert likely == {"COPA", "ReCoRD"}
    assert medium.seeds == [13, 21, 42, 87, 100] and (medium.k, medium.test) == (16, 1000)
    lengths = {t.name: t.max_length for t in medium.tasks.values() if t.max_length != 128}
    assert lengths == {"MNLI": 256, "SNLI": 256, "RTE": 256}
    assert medium.tasks["CoLA"].metrics == ["matthews"]
    assert medium.tasks["MRPC"].metrics == ["f1", "accuracy"]
    assert large.tasks["SQuAD"].metrics[0] == "f1"


def test_every_right_answer_of_record_is_right():
    task, records = set_up("superglue", "ReCoRD")
    assert task.encode(records[0])["right"] == [0, 2]


def test_a_long_sentence_is_cut_to_its_tokens():
    tokenizer, benchmark = byte_tokenizer(), load_suite("kshot").tasks["mr"]
    record = prepared({"text": "great film " * 100, "label": 1}, benchmark, tokenizer)
    assert len(tokenizer(record["text"], add_special_tokens=False)["input_ids"]) == 110
    assert record["text"].startswith("great film great")


@pytest.mark.parametrize(
    ("edit", "value", "expected"),
    [
        ({"ending": "?"}, "is it", "is it?"),
        ({"ending": "?"}, "is it?", "is it?"),
        ({"without_ending": "."}, "so.", "so"),
        ("lower_first_word", "The Dog", "the Dog"),
        ("lower_first_word", "I ran", "I ran"),
        ("upper_first", "", ""),
        ({"take": "text"}, {"text": ["a"]}, ["a"]),
        ({"take": "text"}, ["a"], ["a"]),
        ({"map": {"effect": "so"}}, "effect", "so"),
    ],
)
def test_an_edit(edit, value, expected):
    assert derived({"x": value}, {"y": ("x", [edit])})["y"] == expected


def test_an_edit_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="column 'x' holds 'other'.*map"):
        derived({"x": "other"}, {"y": ("x", [{"map": {"effect": "so"}}])})
    with pytest.raises(ValueError, match="no column 'z'; there are 'x'"):
        derived({"x": "other"}, {"y": ("z", ["strip"])})
