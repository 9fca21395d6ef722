"""The command line of the benchmarks."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import ops

SUITES = {"ops": ops.rows}


def main(arguments: list[str] | None = None) -> int:
    """Run a suite, print its rows and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds of each provider")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args(arguments)
    rows = SUITES[options.suite](options.device, options.repeats, small=options.small)
    for row in rows:
        print(
            f"{row['op']:12} {row['provider']:10} {row['x_name']}={row['x_value']:<10,} "
            f"{row['median']:10.3f} {row['unit']} ({row['p20']:.3f} to {row['p80']:.3f})"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
