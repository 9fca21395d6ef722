"""SQuAD's rules of comparison, on cases worked out by hand."""

import pytest

from adazeta.support.answers import exact_match, normalised, token_f1


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The  Cat!", "cat"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("anthem", "anthem"),
        ("a-b", "ab"),
        ("", ""),
        ("the", ""),
    ],
)
def test_what_does_not_count_is_removed(answer, plain):
    assert normalised(answer) == plain


def test_the_best_reference_counts():
    assert exact_match("The Nile.", ["Amazon", "nile"]) == 1.0
    assert exact_match("Niles", ["Amazon", "nile"]) == 0.0
    # 2 of 3 words right, 2 of 2 found: 2 * 2 / (3 + 2).
    assert token_f1("the big river Nile", ["Amazon", "river nile"]) == pytest.approx(0.8)
    assert token_f1("red red", ["red blue"]) == pytest.approx(0.5)
    assert token_f1("red", ["blue"]) == 0.0


def test_an_empty_answer_is_right_only_where_nothing_is():
    assert token_f1("", [""]) == 1.0
    assert token_f1("the", ["an"]) == 1.0
    assert token_f1("", ["x"]) == token_f1("x", [""]) == 0.0


@pytest.mark.parametrize("measure", [exact_match, token_f1])
def test_no_reference_is_an_error(measure):
    with pytest.raises(ValueError, match="no reference"):
        measure("x", [])
