"""The examples of a benchmark: from the hub or a folder, in the field's splits, as files."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from adazeta.protocols.columns import derived
from adazeta.protocols.splits import Split, kshot_split, sampled_split
from adazeta.protocols.suites import Benchmark, Suite
from adazeta.support.files import write_whole
from adazeta.tasks.records import Record, Records, load_records

_SUFFIXES = (".jsonl", ".csv", ".tsv")


def load_split(benchmark: Benchmark, split: str, folder: str | Path | None) -> Records:
    """Load one split of a benchmark.

    Args:
        benchmark: the task.
        split: its name.
        folder: with ``<task>/<split>.jsonl`` (or .csv, .tsv) in the columns of the hub's data set;
            None for the hub.

    Raises:
        FileNotFoundError: the folder lacks the file.
        ValueError: the task has no data set on the hub; or see
            :func:`~adazeta.tasks.records.load_records`.
    """
    if folder is not None:
        place = Path(folder) / benchmark.name
        found = [place / f"{split}{suffix}" for suffix in _SUFFIXES]
        path = next((path for path in found if path.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"no {split}.jsonl, .csv or .tsv in {place}; it holds the columns of "
                f"{benchmark.hub or 'the task'}"
            )
        return load_records(path)
    if benchmark.hub is None:
        raise ValueError(
            f"{benchmark.name} has no data set on the hub that is known to be the field's; give a "
            f"folder with its files as --data_dir, in it {benchmark.name}/train.csv"
        )
    name = benchmark.hub if benchmark.config is None else f"{benchmark.hub}:{benchmark.config}"
    return load_records(name, split)


def split_of(suite: Suite, benchmark: Benchmark, seed: int, train: Records, test: Records) -> Split:
    """Choose the examples of a seed by the suite's protocol.

    Raises:
        ValueError: there are too few.
    """
    if suite.split == "kshot":
        labels = [str(_value(record, benchmark.label_column)) for record in train]
        return kshot_split(
            seed, labels, len(test), k=suite.k, test=suite.test, test_seed=suite.test_seed
        )
    dev = suite.dev if benchmark.dev is None else benchmark.dev
    return sampled_split(seed, len(train), len(test), train=suite.train, dev=dev, test=suite.test)


def prepared(record: Record, benchmark: Benchmark, tokenizer: PreTrainedTokenizerBase) -> Record:
    """Return a record with the columns of the benchmark's prompt.

    Raises:
        ValueError: a column is missing or unusable.
    """
    made = derived(record, benchmark.derive)
    for name, limit in benchmark.limits.items():
        made[name] = _cut(str(_value(made, name)), limit, tokenizer)
    return made


def write_split(
    suite: Suite,
    benchmark: Benchmark,
    seed: int,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    source: str | Path | None = None,
) -> dict[str, Path]:
    """Write the examples of a seed to files, as a run reads them.

    Args:
        suite: the protocol.
        benchmark: one of its tasks.
        seed: of the split.
        folder: where to.
        tokenizer: of the model, which counts the tokens that columns are cut to.
        source: see :func:`load_split`.

    Returns:
        The files of ``"train"``, ``"dev"`` and ``"test"``.

    Raises:
        ValueError: an example is unusable; the message says where it came from.
    """
    train, test = (
        _kept(load_split(benchmark, split, source), benchmark)
        for split in (benchmark.train_split, benchmark.test_split)
    )
    split = split_of(suite, benchmark, seed, train, test)
    paths = {}
    for name, records, chosen in (
        ("train", train, split.train),
        ("dev", train, split.dev),
        ("test", test, split.test),
    ):
        lines = []
        for index in chosen:
            try:
                made = prepared(records[index], benchmark, tokenizer)
            except ValueError as error:
                raise ValueError(f"{records.place(index)}: {error}") from None
            lines.append(json.dumps(made, ensure_ascii=False, default=_plain))
        paths[name] = Path(folder) / f"{name}.jsonl"
        write_whole(paths[name], ("\n".join(lines) + "\n").encode())
    return paths


def _kept(records: Records, benchmark: Benchmark) -> Records:
    if not benchmark.drop:
        return records
    indices = [
        index
        for index, record in enumerate(records)
        if all(str(record.get(name)) != str(value) for name, value in benchmark.drop.items())
    ]
    return records.chosen(indices)


def _value(record: Record, column: str) -> Any:
    if column not in record:
        raise ValueError(f"no column {column!r}; there are {', '.join(map(repr, record))}")
    return record[column]


def _cut(text: str, limit: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut a text to its first tokens."""
    quiet: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    found = tokenizer(text, return_offsets_mapping=True, **quiet)
    if len(found["input_ids"]) <= limit:
        return text
    return text[: found["offset_mapping"][limit - 1][1]]


def _plain(value: Any) -> Any:
    """Turn what data sets of the hub hold into JSON: NumPy's numbers and arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
