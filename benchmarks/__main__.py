"""The command line: ``python -m benchmarks SUITE [SUITE ...] [--json FILE]``."""

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.measure import compare, targets
from benchmarks.measure.harness import Options, Refused, Row

Suite = Callable[[Options], list[Row]]

# Name -> module with ``rows(options) -> rows``, imported when it is asked for. A suite raises
# Refused when a correctness check fails.
SUITES = {
    "drift": "benchmarks.suites.drift",
    "noise": "benchmarks.suites.noise",
    "tt": "benchmarks.suites.tt",
    "step": "benchmarks.suites.step",
    "full_parameter": "benchmarks.suites.full_parameter",
    "memory": "benchmarks.suites.memory",
    "low_memory": "benchmarks.suites.low_memory",
    "accuracy": "benchmarks.suites.accuracy",
    "learning": "benchmarks.suites.learning",
    "rates": "benchmarks.suites.rates",
    "forms": "benchmarks.suites.forms",
    "orders": "benchmarks.suites.orders",
    "rewards": "benchmarks.suites.rewards",
    "robust": "benchmarks.suites.robust",
    "embedding": "benchmarks.suites.embedding",
    "mixer": "benchmarks.suites.mixer",
    "recovery": "benchmarks.suites.recovery",
    "zsaq": "benchmarks.suites.zsaq",
    "large_batch": "benchmarks.suites.large_batch",
    "gpu": "benchmarks.suites.gpu",
    "large": "benchmarks.suites.large",
    "reward_memory": "benchmarks.suites.reward_memory",
    "host": "benchmarks.suites.host",
    "int8": "benchmarks.suites.int8",
    "quantised": "benchmarks.suites.quantised",
}
# What has a command line and rows of its own: a module with ``main(arguments)``.
REPORTS = {
    "evidence": "benchmarks.report.evidence",
    "kernels": "benchmarks.static.suite",
    "plot": "benchmarks.report.figures",
}
ALL = ("drift", "noise", "tt", "step", "full_parameter", "memory", "accuracy")
QUICK = ("noise", "tt", "step")


def main(arguments: list[str] | None = None) -> int:
    """Run suites, print their rows and write them as JSON.

    Returns:
        The exit status: 1 if a suite refused to report, or with ``--strict`` if a result got worse.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in REPORTS:
        status: int = importlib.import_module(REPORTS[arguments[0]]).main(arguments[1:])
        return status
    options, given = parse(arguments)
    logging.disable_progress_bar()
    names = list(dict.fromkeys(given.suites))
    if names == ["all"]:
        names = list(QUICK if given.quick else ALL)
        if options.device == "cuda":
            names[:0] = ["gpu", "large"]
    fresh: list[Row] = []
    status = 0
    for name in names:
        try:
            found = suite(name)(options)
        except Refused as error:
            print(f"{name}: {error}", file=sys.stderr)
            found, status = [], 1
        except Exception:
            # Of many suites that run unattended, one that breaks must not take the others along.
            if len(names) == 1:
                raise
            traceback.print_exc()
            found, status = [], 1
        for row in found:
            if row["op"] != "run":  # of accuracy: the summary over the seeds says it
                print(describe(row), flush=True)
        fresh += found
        if given.json:
            write(given.json, fresh)
    for line in targets.report(fresh):
        print(line)
    if given.compare:
        lines, worse = compare.report(fresh, compare.load(given.compare))
        print("\n".join(lines))
        if worse:
            print(f"{worse} results are worse than the committed ones by more than a quarter")
            status = status or int(given.strict)
    return status


def suite(name: str) -> Suite:
    """Import a suite."""
    rows: Suite = importlib.import_module(SUITES[name]).rows
    return rows


def parse(arguments: list[str]) -> tuple[Options, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites", nargs="+", metavar="suite", choices=[*SUITES, *REPORTS, "all"],
        help=f"{', '.join(SUITES)}; several of them, or all. {', '.join(REPORTS)} have options of "
        "their own, see the --help of each",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="file for the rows; cells it has are replaced")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="tiny sizes and a tiny random model")
    parser.add_argument("--quick", action="store_true", help="a subset that takes two minutes")
    parser.add_argument("--only", default="", help="cells whose name has all of these words")
    parser.add_argument("--seconds", type=float, default=20, help="limit of a cell's repetitions")
    parser.add_argument("--rounds", type=int, default=15, help="most rounds of a cell")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--budget", type=int, default=600, help="accuracy: evaluations of a run")
    parser.add_argument(
        "--seeds", type=seeds_of, default=(0, 1, 2),
        help="seeds of suites that train, separated by commas, or how many: 3 is 0,1,2",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", default="", help="learning, rates and rewards: names separated by commas"
    )
    parser.add_argument(
        "--methods", default="",
        help="accuracy: names separated by commas, or all: those of 'adazeta methods'",
    )  # fmt: skip
    parser.add_argument(
        "--compare", type=Path, nargs="?", const=compare.RESULTS,
        help="print ratios to committed rows (default: benchmarks/results)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="exit 1 if a result got worse")
    given = parser.parse_args(arguments)
    for name in ("all", *REPORTS):
        if name in given.suites and given.suites != [name]:
            parser.error(f"{name} runs alone, not in {' '.join(given.suites)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda: torch sees no CUDA device here; leave it out to run on the CPU"
        )
    if given.threads:
        torch.set_num_threads(given.threads)
    options = Options(
        device=given.device, small=given.small, quick=given.quick, only=given.only,
        seconds=given.seconds, rounds=given.rounds, json=given.json, budget=given.budget,
        seeds=given.seeds, methods=given.methods, tasks=given.tasks,
    )  # fmt: skip
    return options, given


def seeds_of(text: str) -> tuple[int, ...]:
    """Read ``"3"``, how many seeds, or ``"0,1,2"``, which.

    Raises:
        argparse.ArgumentTypeError: it asks for none.
    """
    if "," in text:
        found = tuple(int(part) for part in text.split(",") if part)
    else:
        found = tuple(range(int(text)))
    if not found:
        raise argparse.ArgumentTypeError(
            f"{text!r} asks for no seed; write how many, or '0,' for seed 0 alone"
        )
    return found


def describe(row: Row) -> str:
    """Return one line for people."""
    name = f"{row['benchmark']} {row['op']} {row['mode']} {row['x_name']}={row['x_value']:,}"
    return (
        f"{name:48} {row['provider']:26} {row['metric']:22} {row['median']:12.4g} {row['unit']:8} "
        f"({row['p20']:.4g} to {row['p80']:.4g})"
    )


def write(file: Path, fresh: list[Row]) -> None:
    """Write rows into a file; those of other cells that it has stay."""
    before = compare.load(file) if file.is_file() else []
    # A cell is replaced whole, so that its ratios fit its times; two suites keep logs of their own.
    cells = {_cell(row) for row in fresh}
    kept = [row for row in before if _cell(row) not in cells]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([*kept, *fresh], indent=1) + "\n")


def _cell(row: Row) -> tuple[object, ...]:
    if row["benchmark"] in ("accuracy", "learning"):
        return (row["benchmark"],)
    keys = ("benchmark", "op", "mode", "dtype", "x_name", "x_value", "device")
    return tuple(row[key] for key in keys)


if __name__ == "__main__":
    sys.exit(main())
