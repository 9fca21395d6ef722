"""Comparison of an answer with reference answers by the rules of SQuAD.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016, and
for empty answers Rajpurkar et al., "Know What You Don't Know", ACL 2018.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Return an answer in lower case, without ASCII punctuation, English articles, extra spaces."""
    plain = answer.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, references: Iterable[str]) -> float:
    """Return 1.0 if the normalised answer is one of the normalised references, otherwise 0.0.

    Raises:
        ValueError: there is no reference.
    """
    return _best(lambda one, other: float(one == other), answer, references)


def token_f1(answer: str, references: Iterable[str]) -> float:
    """Return the F1 of the words of the normalised answer, over the references the highest.

    Words are counted as often as they occur. Where one side is empty, only the other empty side is
    right.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: there is no reference.
    """
    return _best(_f1, answer, references)


def _best(measure: Callable[[str, str], float], answer: str, references: Iterable[str]) -> float:
    scores = [measure(normalised(answer), normalised(reference)) for reference in references]
    if not scores:
        raise ValueError("there is no reference answer to compare with")
    return max(scores)


def _f1(answer: str, reference: str) -> float:
    words, wanted = answer.split(), reference.split()
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted))
