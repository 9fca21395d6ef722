"""The command ``adazeta report``."""

from pathlib import Path

from adazeta.support.settings import OneLineParser

REPORT_TEXT = "write a page on one run, or comparing several: adazeta report FOLDER ..."


def run_report(arguments: list[str]) -> int:
    """Run ``adazeta report``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta report",
        description=(
            "Write one HTML page on a run, or on several compared: curves, settings, results and "
            "completions. The page fetches nothing; it can be sent and kept as it is."
        ),
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="where to write it (default: report.html in the run, or here for several)",
    )
    options = parser.parse_args(arguments)
    output = options.output
    if output is None:
        output = (options.runs[0] if len(options.runs) == 1 else Path()) / "report.html"
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file in it")

    from adazeta.report.gathering import gather_all
    from adazeta.report.page import page
    from adazeta.support.files import write_whole

    write_whole(output, page(gather_all(options.runs)).encode())
    print(f"wrote {output}")
    return 0
