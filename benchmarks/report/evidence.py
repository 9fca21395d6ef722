"""``evidence``: the tables of README.md and docs/, from the registry and measured rows."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.compare import RESULTS, load
from benchmarks.measure.harness import Row
from benchmarks.report.tables.costs import (
    FEW,
    MEMORY,
    memory_table,
    noise_table,
    orders_table,
    stacked_table,
    step_table,
)
from benchmarks.report.tables.embedding import embedding_table
from benchmarks.report.tables.int8 import int8_table
from benchmarks.report.tables.large_batch import adversarial_table, extrapolation_table
from benchmarks.report.tables.learning import forms_table, learning_table, rates_table
from benchmarks.report.tables.low_memory import low_memory_table
from benchmarks.report.tables.methods import (
    LABELS,
    accuracy_table,
    evidence_table,
    methods_table,
    reading,
)
from benchmarks.report.tables.mixer import mixer_table
from benchmarks.report.tables.quantised import arithmetic_table, quantised_table
from benchmarks.report.tables.recovery import recovery_table
from benchmarks.report.tables.rewards import rewards_table
from benchmarks.report.tables.robust import robust_table
from benchmarks.report.tables.zsaq import zsaq_table

_ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = _ROOT / "docs" / "adapters.md"
DOCUMENT = _ROOT / "docs" / "methods.md"
BENCHMARKS = _ROOT / "docs" / "benchmarks.md"
LEARNING = _ROOT / "docs" / "learning.md"
QUANTISED = _ROOT / "docs" / "quantised.md"
RELATED = _ROOT / "docs" / "related.md"
REWARDS = _ROOT / "docs" / "rewards.md"
README = _ROOT / "README.md"
ROWS = RESULTS / "methods.json"
ACCURACY = RESULTS / "accuracy.json"
TIMES = RESULTS / "cpu.json"
LEARNT = RESULTS / "learning.json"
HELD = RESULTS / "quantised.json"
FORMS = RESULTS / "forms.json"
RATES = RESULTS / "rates.json"
ORDERS = RESULTS / "orders.json"
WHOLE = RESULTS / "low_memory.json"
SCORES = RESULTS / "rewards.json"
ROBUST = RESULTS / "robust.json"
EMBEDDING = RESULTS / "embedding.json"
MIXER = RESULTS / "mixer.json"
RECOVERY = RESULTS / "recovery.json"
ZSAQ = RESULTS / "zsaq.json"
LARGE = RESULTS / "large_batch.json"


def main(arguments: Sequence[str]) -> int:
    """Write the tables into the documents.

    Returns:
        The exit status: 0, or 1 with ``--check`` if they were others.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks evidence", description=__doc__)
    parser.add_argument("--json", type=Path, default=ROWS, help="rows of accuracy, of all methods")
    parser.add_argument("--accuracy", type=Path, default=ACCURACY, help="rows of accuracy")
    parser.add_argument("--times", type=Path, default=TIMES, help="rows of step, noise and memory")
    parser.add_argument("--learning", type=Path, default=LEARNT, help="rows of learning")
    parser.add_argument("--quantised", type=Path, default=HELD, help="rows of quantised")
    parser.add_argument("--forms", type=Path, default=FORMS, help="rows of forms")
    parser.add_argument("--rates", type=Path, default=RATES, help="rows of rates")
    parser.add_argument("--orders", type=Path, default=ORDERS, help="rows of orders")
    parser.add_argument("--low-memory", type=Path, default=WHOLE, help="rows of low_memory")
    parser.add_argument("--rewards", type=Path, default=SCORES, help="rows of rewards")
    parser.add_argument("--robust", type=Path, default=ROBUST, help="rows of robust")
    parser.add_argument("--embedding", type=Path, default=EMBEDDING, help="rows of embedding")
    parser.add_argument("--mixer", type=Path, default=MIXER, help="rows of mixer")
    parser.add_argument("--recovery", type=Path, default=RECOVERY, help="rows of recovery")
    parser.add_argument("--zsaq", type=Path, default=ZSAQ, help="rows of zsaq")
    parser.add_argument("--large-batch", type=Path, default=LARGE, help="rows of large_batch")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    compared, accuracies, times = (
        _summaries(given.json), _summaries(given.accuracy), _rows(given.times)
    )  # fmt: skip
    tables = {
        ADAPTERS: {"forms": forms_table(_rows(given.forms))},
        DOCUMENT: {
            "methods": methods_table(),
            "evidence": evidence_table(compared),
            "rates": rates_table(_rows(given.rates)),
            "reading": reading(compared, _rows(given.json)),
        },
        BENCHMARKS: {
            "step": step_table(times),
            "stacked": stacked_table(times),
            "noise": noise_table(times),
            "memory": memory_table(times, MEMORY),
            "accuracy": accuracy_table(accuracies, LABELS),
            "int8": int8_table(times),
        },
        LEARNING: {"learning": learning_table(_rows(given.learning))},
        QUANTISED: {
            "quantised": quantised_table(_rows(given.quantised)),
            "arithmetic": arithmetic_table(),
        },
        RELATED: {
            "orders": orders_table(_rows(given.orders)),
            "robust": robust_table(_rows(given.robust)),
            "embedding": embedding_table(_rows(given.embedding)),
            "mixer": mixer_table(_rows(given.mixer)),
            "recovery": recovery_table(_rows(given.recovery)),
            "zsaq": zsaq_table(_rows(given.zsaq)),
            "extrapolation": extrapolation_table(_rows(given.large_batch)),
            "adversarial": adversarial_table(_rows(given.large_batch)),
            "low memory": low_memory_table(_rows(given.low_memory)),
        },
        REWARDS: {"rewards": rewards_table(_rows(given.rewards))},
        README: {
            "orders": orders_table(_rows(given.orders)),
            "memory": memory_table(times, FEW),
            "learning": learning_table(_rows(given.learning), brief=True),
        },
    }
    changed = False
    for document, sections in tables.items():
        before = after = document.read_text(encoding="utf-8")
        for name, content in sections.items():
            after = filled(after, name, content)
        if not given.check:
            document.write_text(after, encoding="utf-8")
        changed = changed or after != before
    return int(given.check and changed)


def _rows(file: Path) -> list[Row]:
    return load(file) if file.is_file() else []


def _summaries(file: Path) -> list[Row]:
    """Return the rows of accuracy that summarise the runs of a method, the best first."""
    found = [r for r in _rows(file) if (r["benchmark"], r["op"]) == ("accuracy", "fine_tune")]
    return sorted(found, key=lambda row: -row["config"]["mean"])


def filled(text: str, name: str, content: str) -> str:
    """Return a document with what stands between the marks of a section replaced.

    Raises:
        ValueError: the document has no such section.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the document has no section {name!r}: put {begin!r} and {end!r} in it")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}{content}\n{end}{rest.split(end, 1)[1]}"
