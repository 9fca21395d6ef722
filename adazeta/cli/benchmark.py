"""The command ``adazeta benchmark``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adazeta.cli.output import NOT_SET_BY_USERS
from adazeta.support.settings import (
    OneLineParser,
    add_flags,
    check_keys,
    flag_values,
    read_yaml,
    settings_of,
)

_OWN = {"method", "seed", "output_dir", "resume_from_checkpoint"}
"""Settings of training that a cell of the table chooses itself."""

_FIELD: Mapping[str, Mapping[str, int]] = {
    "superglue": {"max_steps": 20_000, "per_device_train_batch_size": 16},
    "kshot": {"max_steps": 100_000, "per_device_train_batch_size": 64},
}
"""What MeZO's runs take (2305.17333), where nothing else is asked for."""


def run_benchmark(arguments: list[str]) -> int:
    """Run ``adazeta benchmark``; return the exit status."""
    from adazeta.adapters.config import TTAdapterConfig
    from adazeta.models.arguments import ModelArguments
    from adazeta.protocols.suites import SUITES, load_suite, published_rows
    from adazeta.training.arguments import ZOTrainingArguments

    parser = OneLineParser(
        prog="adazeta benchmark",
        usage="adazeta benchmark --suite SUITE --model MODEL [--key value ...]",
        description=(
            "Train and test a model by the field's protocol: its tasks, prompts, splits, seeds and "
            "metrics; one table, with the results that papers print beside it. Started again, it "
            "goes on where it stopped. Settings of adapters and training are flags as in 'adazeta "
            "train', or keys of --config."
        ),
    )
    parser.add_argument("--suite", required=True, help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks of it (default: all)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["zero-shot", "zo-adam"],
        help="methods of 'adazeta methods', and zero-shot (default: zero-shot zo-adam)",
    )
    parser.add_argument("--seeds", nargs="+", default=[], help="default: those of the field")
    parser.add_argument("--k", help="examples of a class (kshot; default: 16)")
    parser.add_argument(
        "--data_dir",
        "--data-dir",
        metavar="FOLDER",
        help="folder with TASK/SPLIT.jsonl (or .csv, .tsv) instead of the hub",
    )
    parser.add_argument("--config", metavar="YAML", help="file with settings for all cells")
    parser.add_argument(
        "--output_dir", "--output-dir", metavar="DIR", default="runs/benchmark", help="of results"
    )
    kinds: list[tuple[str, type]] = [
        ("base model", ModelArguments),
        ("adapters", TTAdapterConfig),
        ("training", ZOTrainingArguments),
    ]
    hidden = NOT_SET_BY_USERS | _OWN
    brief = {"model": None, "rank": None, "layers": None, "learning_rate": None, "max_steps": None}
    for title, kind in kinds:
        add_flags(parser, kind, title, leave_out=hidden, briefly=brief)
    known = [name for _, kind in kinds for name in settings_of(kind, leave_out=hidden)]
    namespace, rest = parser.parse_known_args(arguments)
    if rest:
        flag = rest[0].split("=")[0].lstrip("-").replace("-", "_")
        own = ["suite", "tasks", "methods", "seeds", "k", "data_dir", "config", "output_dir"]
        check_keys([flag], [*own, *known], "the command line")
        raise ValueError(f"unexpected argument {rest[0]!r}; settings are --key value")
    flags = vars(namespace)
    options = {name: flags.pop(name) for name in ("tasks", "methods", "seeds")}
    suite_name, k, source, config, folder = (
        flags.pop(name) for name in ("suite", "k", "data_dir", "config", "output_dir")
    )
    suite = load_suite(suite_name)
    values = {} if config is None else read_yaml(config)
    check_keys(values, known, str(config))
    values = {**_FIELD[suite.name], **values, **flag_values(flags, [kind for _, kind in kinds])}

    from adazeta.protocols.cells import Bench, numbers_of
    from adazeta.protocols.table import as_markdown, table_of

    if k is not None:
        if suite.split != "kshot":
            raise ValueError(f"k={k} is for the suite kshot; leave it out")
        (number,) = numbers_of([k], "k")
        if number < 1:
            raise ValueError(f"k must be 1 or more, got {number}")
        suite = replace(suite, k=number)
    tasks = suite.chosen(_listed(options["tasks"]))
    seeds = numbers_of(_listed(options["seeds"]), "seeds") or suite.seeds
    place = Path(folder) / suite.name
    bench = Bench(suite, tasks, _listed(options["methods"]), seeds, values, place, source)
    cells = bench.run(print)
    model = str(values["model"])
    table = table_of(cells, published_rows(suite.name, suite.k), model=model)
    whole = {"suite": suite.name, "source": suite.source, "settings": values, **table}
    (place / "table.json").write_text(f"{json.dumps(whole, indent=2)}\n", encoding="utf-8")
    text = as_markdown(table)
    (place / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nThe protocol is that of {suite.source}. Saved in {place}.")
    return 0


def _listed(values: Sequence[str]) -> list[str]:
    """Take 'a,b' and 'a b' for the same list."""
    return [part for value in values for part in value.split(",") if part]
