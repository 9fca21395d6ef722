"""The static report: ``python -m benchmarks kernels --json FILE``; needs no GPU.

Compiles the kernels ahead of time for every target, and says of each variant what its machine code
holds. The variants are those of ``kernels/variants.py``, all that dispatch can choose; by default
a set of them in which every two settings meet (``static/cover.py``), with ``--every`` all. Rows of
FILE whose kernel, settings and triton are the same as now are kept, so a run that was stopped goes
on and a changed kernel is compiled alone.

The prediction for the H100 is described in ``static/model.py``. How loops are counted: the code is
cut into basic blocks, natural loops are found, and an execution is counted as each block outside
loops once and each loop's body times the iterations that the variant states for a typical call
(one probe). Of two branches the shorter one counts, which leaves out the ends of tensors; code that
is called only for subnormal or infinite operands is left out.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

import triton

from adazeta.kernels.gpu.variants import Variant, all_variants
from benchmarks.static.compile import TARGETS, survey, threads_of
from benchmarks.static.cover import covering
from benchmarks.static.fingerprint import fingerprint
from benchmarks.static.measured import table
from benchmarks.static.report import Row, report, with_occupancy
from benchmarks.static.summary import faults, summary

# The kernels of static/roots.py: what correct rounding costs in fused operations.
EXPANSIONS = ("expansion/root", "expansion/quotient")
# Variants that every report holds: of these the tests state what an element may cost.
HELD = tuple(
    f"add_noise/{dtype}/{distribution}/aligned/nearest"
    for dtype in ("float32", "bfloat16")
    for distribution in ("gaussian", "pairs")
)
# Variants that are compiled between two writes of the file.
CHUNK = 16


def rows(
    names: Sequence[str] = ("*",),
    targets: Sequence[str] = TARGETS,
    *,
    triton_path: Path | None = None,
    jobs: int = 1,
) -> list[Row]:
    """Compile variants and report on each; arguments as in ``static.compile.survey``."""
    sources = {
        variant.name: fingerprint(variant)
        for variant in all_variants()
        if _fits(variant.name, names)
    }
    found = survey([*names, *EXPANSIONS], targets, triton_path=triton_path, jobs=jobs)
    expansions = {
        (facts["variant"], facts["target"]): facts
        for facts in found
        if facts["variant"] in EXPANSIONS
    }
    return [
        {
            **report(facts, [expansions[name, facts["target"]] for name in EXPANSIONS]),
            "source": sources[facts["variant"]],
        }
        for facts in found
        if facts["variant"] not in EXPANSIONS
    ]


def chosen(*, every: bool = False) -> list[Variant]:
    """List the variants of a report: all, or a covering set of all."""
    variants = {variant.name: variant for variant in all_variants()}
    names = variants if every else {*covering(variants), *HELD}
    return [variant for name, variant in variants.items() if name in names]


def refreshed(
    before: Sequence[Row],
    variants: Sequence[Variant],
    targets: Sequence[str] = TARGETS,
    *,
    patterns: Sequence[str] = ("*",),
    triton_path: Path | None = None,
    jobs: int = 1,
) -> Iterator[list[Row]]:
    """Bring the rows of a report up to date.

    Args:
        before: rows of an earlier report; those of other variants are dropped.
        variants: what the report is to hold.
        targets: from ``TARGETS``.
        patterns: the rows of other names stay as they are.
        triton_path: as in ``static.compile.survey``.
        jobs: processes.

    Yields:
        All rows so far, first those that stay, then more of them as they come.
    """
    version = version_of(triton_path)
    sources = {variant.name: fingerprint(variant) for variant in variants}
    asked = {name for name in sources if _fits(name, patterns)}
    threads = {
        (variant.name, target): threads_of(variant, target)
        for variant in variants
        for target in TARGETS
    }
    held = {
        (row["variant"], row["target"]): with_occupancy(row, threads[row["variant"], row["target"]])
        for row in before
        if (row["variant"], row["target"]) in threads
        and row["triton"] == version
        and (row["variant"] not in asked or row.get("source") == sources[row["variant"]])
    }
    missing = [
        name
        for name in sources
        if name in asked and any((name, target) not in held for target in targets)
    ]
    order = [(name, target) for name in sources for target in TARGETS]
    yield [held[key] for key in order if key in held]
    for start in range(0, len(missing), CHUNK):
        for row in rows(
            missing[start : start + CHUNK], targets, triton_path=triton_path, jobs=jobs
        ):
            held[row["variant"], row["target"]] = row
        yield [held[key] for key in order if key in held]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def version_of(triton_path: Path | None) -> str:
    """Version of the installed triton, or of the one in a folder.

    Raises:
        ValueError: the folder holds none.
    """
    if triton_path is None:
        return str(triton.__version__)
    for found in distributions(name="triton", path=[str(triton_path)]):
        return found.version
    raise ValueError(
        f"{triton_path} holds no triton; make it by `pip install --target "
        f"{triton_path} --no-deps triton==X`"
    )


def load(file: Path) -> list[Row]:
    """Read the rows of a report; none if there is no file."""
    found: list[Row] = json.loads(file.read_text()) if file.is_file() else []
    return found


def write(file: Path, found: Sequence[Row]) -> None:
    """Write rows as JSON, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found)
    file.write_text(f"[{lines}]\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the report.

    Returns:
        The exit status: 1 if a kernel spills or a noise kernel fuses.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="file for the rows; brought up to date")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument(
        "--names",
        nargs="+",
        default=["*"],
        help="patterns of the variants to compile; rows of others stay",
    )
    parser.add_argument("--every", action="store_true", help="every configuration (hours)")
    parser.add_argument(
        "--triton-path",
        type=Path,
        help="folder made by `pip install --target FOLDER --no-deps triton==X`",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--summary",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="compile nothing; print the tables of the README from reports",
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="compile nothing; print what the model predicts beside what an H100 took",
    )
    options = parser.parse_args(arguments)
    if options.measured:
        print(table())
        return 0
    if options.summary:
        print(summary([load(file) for file in options.summary]))
        return 0
    before = load(options.json) if options.json else []
    found: list[Row] = []
    for found in refreshed(
        before,
        chosen(every=options.every),
        options.targets,
        patterns=options.names,
        triton_path=options.triton_path,
        jobs=options.jobs,
    ):
        if options.json:
            write(options.json, found)
    print(summary([found]))
    bad = faults(found)
    print("\n".join(bad), file=sys.stderr, end="\n" if bad else "")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
