"""The tables of ``rates``, ``forms``, ``orders`` and ``rewards``, from rows."""

from benchmarks.measure.harness import Cell
from benchmarks.report.tables.costs import NO_ORDERS, orders_table
from benchmarks.report.tables.learning import NO_FORMS, NO_RATES, forms_table, rates_table
from benchmarks.report.tables.rewards import NO_REWARDS, rewards_table


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_are_compared_with_the_best_of_the_grid():
    rows = []
    accuracies = {"rate_0.01": (0.6, 0.7), "rate_0.1": (0.8, 0.82), "auto": (0.7, 0.9)}
    for provider, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            cell = Cell("rates", "train", "film", "seed", seed, "cpu")
            for metric, value in (("test_accuracy", accuracy), ("diverged", 0.0), ("rate", 0.05)):
                rows.append(cell.row(provider, metric, "1", [value], {"test": 100}))
    for seed in range(2, 5):
        cell = Cell("rates", "train", "film", "seed", seed, "cpu")
        rows.append(cell.row("auto", "diverged", "1", [float(seed == 4)], {"test": 100}))
    found = cells_of(rates_table(rows).splitlines()[2])
    assert found[:4] == ["film reviews", "65.0%", "81.0%", "80.0%"]
    assert found[4:] == ["0.05, 0.05", "-1.0 points", "9.0 points", "1 of 5"]
    one = [row for row in rows if row["x_value"] == 0]
    assert cells_of(rates_table(one).splitlines()[2])[5:] == [
        "-10.0 points",
        "4.0 points",
        "0 of 1",
    ]
    assert rates_table([]) == NO_RATES


def test_forms_share_their_test_texts():
    rows = []
    for form, values in {"bottleneck": (0.8, 0.9), "lora": (0.7, 0.8)}.items():
        for seed, accuracy in enumerate(values):
            cell = Cell("forms", "train", form, "seed", seed, "cpu")
            made = {"test_accuracy": accuracy, "test_loss": 0.5, "rate": 0.01, "seconds": 9 + seed}
            rows += [cell.row("adazeta", m, "1", [v], {"test": 100}) for m, v in made.items()]
    found = [cells_of(line) for line in forms_table(rows).splitlines()[2:]]
    assert found[0][:4] == ["`bottleneck`", "80.0%", "90.0%", "85.0%"]
    assert found[0][4:] == ["76.7 to 90.7%", "0.500", "9 to 10"]
    assert found[1][3] == "75.0%"
    assert forms_table([]) == NO_FORMS


def test_orders_are_means_over_the_seeds():
    cell = Cell("orders", "train", "film", "seeds", 2, "cpu")
    values = {"test_accuracy": [0.8, 0.9], "minutes": [1.0, 2.0], "peak": [900.0, 1300.0]}
    rows = [
        cell.row(order, metric, "1", each, {"values": each})
        for order in ("zeroth", "first")
        for metric, each in values.items()
    ]
    lines = [cells_of(line) for line in orders_table(rows).splitlines()[2:]]
    assert [line[1:] for line in lines] == [["85.0%", "1.5", "1,100 MiB"]] * 2
    assert orders_table([]) == NO_ORDERS


def test_a_score_is_beyond_the_interval_of_the_start_or_not():
    rows = []
    for seed, after in ((1, 0.21), (0, 0.3)):
        cell = Cell("rewards", "train", "concise", "seed", seed, "cpu")
        config = {"ci95_low": 0.1, "ci95_high": 0.22, "steps": 60}
        for provider, metric, value in (
            ("zero_shot", "reward", 0.16), ("adazeta", "reward", after),
            ("adazeta", "generations", 5760), ("zero_shot", "distinct_bigrams", 0.7),
            ("adazeta", "distinct_bigrams", 0.5), ("zero_shot", "base_perplexity", 4.04),
            ("adazeta", "base_perplexity", 7.9),
        ):  # fmt: skip
            rows.append(cell.row(provider, metric, "1", [value], config))
    first, second = (cells_of(line)[1:] for line in rewards_table(rows).splitlines()[2:])
    assert first == [
        "0", "0.160", "0.100 to 0.220", "0.300", "yes", "5,760", "60", "70% to 50%", "4.0 to 7.9",
    ]  # fmt: skip
    assert second[4] == "no"
    assert rewards_table([]) == NO_REWARDS
