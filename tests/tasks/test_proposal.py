"""Templates and label words proposed from the rows of a file."""

import pytest

from adazeta.tasks.proposal import (
    QUESTIONS,
    label_values,
    proposed_templates,
    proposed_words,
    text_columns,
)
from adazeta.tasks.records import Records
from tests.helpers.tiny_models import tiny_tokenizer

REVIEW = "the movie was really very good"


def records(*rows, **options):
    return Records(rows, "data.csv", **options)


def labelled(*values):
    """Each label several times, as in real data."""
    return records(*({"y": value} for value in values * 4))


def test_labels_are_sorted_and_each_is_there_once():
    assert label_values(labelled("10", "2", "2.0", " 2 ", None, "1"), "y") == ["1", "2", "10"]
    found = label_values(labelled("sports", True, "true", "arts"), "y")
    assert found == ["True", "arts", "sports"]


def test_names_of_classes_are_the_labels():
    rows = [{"y": 1}, {"y": 0}] * 2
    assert label_values(records(*rows, names={"y": ["world", "sport"]}), "y") == ["sport", "world"]


def test_a_missing_column_is_named_with_those_that_there_are():
    rows = records({"text": "a", "label": "b"})
    with pytest.raises(ValueError, match=r"no column 'lable' .* there are 'text', 'label'"):
        label_values(rows, "lable")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"] * 5, "only the label 'a'"),
        ([None, " "], "no label"),
        ([f"text {n}" for n in range(200)], "200 different values in 200 rows"),
    ],
)
def test_columns_that_hold_no_labels_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        label_values(records(*({"y": value} for value in values)), "y")


def test_columns_of_texts_are_found():
    row = {"id": "17", "text": REVIEW, "title": "a good film to see", "note": None, "cat": "film"}
    chosen, left = text_columns(records(*[{**row, "y": "0"}] * 3), "y")
    assert chosen == ["text", "title"]
    assert left == {"id": "no text", "note": "often empty", "cat": "single words"}


def test_single_words_are_texts_where_there_are_no_others():
    assert text_columns(records({"word": "film", "y": 1}, {"word": "dog", "y": 2}), "y") == (
        ["word"],
        {},
    )


def test_data_without_texts_are_refused():
    rows = records({"id": "1", "a{b}": REVIEW, "y": "0"})
    with pytest.raises(ValueError, match=r"no column of texts .*'id' \(no text\).*Set --template"):
        text_columns(rows, "y")


@pytest.mark.parametrize(
    ("columns", "masked", "template"),
    [
        (["text"], False, "{text}\nNews topic:"),
        (["text"], True, "{text}\nNews topic: {mask}"),
        (
            ["premise", "my_idea"], False,
            "Premise: {premise}\nMy idea: {my_idea}\nNews topic:",
        ),
    ],
)  # fmt: skip
def test_templates(columns, masked, template):
    first, *others = proposed_templates(columns, "news_topic", masked=masked)
    assert first == template
    assert [other.replace(name, "News topic") for other, name in zip(others, QUESTIONS, strict=True)
            ] == [template] * len(QUESTIONS)  # fmt: skip


def test_a_template_is_proposed_once():
    found = proposed_templates(["text"], "topic", masked=False)
    assert len(set(found)) == len(found) == len(QUESTIONS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["negative", "positive"], ["negative", "positive"]),
        (["Negative", "Positive"], ["negative", "positive"]),
        (["False", "True"], ["false", "true"]),
        # Both have "house": the other one has the next.
        (["a red house", "a blue house"], ["house", "blue"]),
        # Only its beginning is a word that the tokenizer knows.
        (["catalogue", "moviegoer"], ["cat", "movie"]),
    ],
)
def test_words(labels, words):
    (found,) = proposed_words("{text} :", labels, tiny_tokenizer())
    assert list(found.values()) == words
    assert list(found) == labels


@pytest.mark.parametrize("labels", [["0", "1"], ["0.0", "1.0"]])
def test_zero_and_one_may_be_signs_or_answers(labels):
    found = proposed_words("{text} :", labels, tiny_tokenizer())
    assert [list(words.values()) for words in found] == [["negative", "positive"], ["no", "yes"]]
    assert all(list(words) == labels for words in found)


def test_a_label_without_a_word_is_named_with_the_flag():
    with pytest.raises(
        ValueError, match=r"label 'xyzzy' has no word.*--label_words '\{dog: \.\.\."
    ):
        proposed_words("{text} :", ["dog", "xyzzy"], tiny_tokenizer())


def test_rows_stay_on_their_side_when_others_are_added():
    rows = [{"text": f"{n}", "y": n % 2} for n in range(2000)]
    few, many = records(*rows[:1000], lines=list(range(2, 1002))).split(0.1), records(*rows)
    train, kept = many.split(0.1)
    assert 150 < len(kept) < 250
    assert [row for row in rows[:1000] if row in kept] == few[1]
    assert len(train) + len(kept) == len(rows)
    assert few[1].place(0) == f"data.csv, line {2 + rows.index(few[1][0])}"
