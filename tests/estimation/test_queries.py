import pytest

from adazeta import QuerySchedule
from adazeta.estimation.queries import queries_at


def test_paper_formula_at_known_epochs():
    schedule = QuerySchedule()
    # floor(0.85 e^0.45), computed by hand; epochs 0 and 1 are lifted to one query.
    assert [schedule(epoch) for epoch in (0, 1, 5, 50, 126, 158, 526, 999)] == [
        1, 1, 1, 4, 7, 8, 14, 19,
    ]  # fmt: skip
    assert schedule(1117) == 20 and schedule(10**6) == 20


def test_constant_inside_an_epoch_and_never_falling():
    schedule = QuerySchedule(alpha=1.5, beta=0.7, maximum=9)
    assert schedule(3.0) == schedule(3.999)
    values = [schedule(epoch) for epoch in range(40)]
    assert values == sorted(values) and values[-1] == 9


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"alpha": 0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"beta": -0.1}, "beta"),
        ({"maximum": 0}, "maximum"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuerySchedule(**arguments)


def test_negative_epoch_is_an_error():
    with pytest.raises(ValueError, match="epoch"):
        QuerySchedule()(-1)


def test_fixed_number_ignores_the_epoch():
    assert queries_at(3, 100.0) == 3
