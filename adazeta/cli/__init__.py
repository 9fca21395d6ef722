"""The commands of ``adazeta``, see :data:`_COMMANDS`.

Every command imports what it needs when it runs, so that help and mistakes are answered at once.
"""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

from adazeta.cli.about import INFO_TEXT, METHODS_TEXT, run_info, run_methods
from adazeta.cli.benchmark import run_benchmark
from adazeta.cli.export import run_export
from adazeta.cli.generate import GENERATE_TEXT, run_generate
from adazeta.cli.replay import run_replay
from adazeta.cli.report import REPORT_TEXT, run_report
from adazeta.cli.train import run_train
from adazeta.cli.use import run_eval, run_predict
from adazeta.support.settings import OneLineParser, nearest
from adazeta.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the command line; by default the process's own.

    Returns:
        The exit status: 0, 2 after an error (one line on stderr; with ``ADAZETA_DEBUG=1`` it is
        raised instead), 130 after an interrupt.
    """
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("ADAZETA_DEBUG") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(
            error, ValueError | TypeError | OSError | ImportError | FloatingPointError
        ):
            message = f"{type(error).__name__}: {message} (ADAZETA_DEBUG=1 shows where)"
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"adazeta: error{rank}: {message}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in _COMMANDS:
        return _COMMANDS[arguments[0]][0](arguments[1:])
    if arguments and not arguments[0].startswith("-"):
        hint = nearest(arguments[0], _COMMANDS) or f"there are {', '.join(_COMMANDS)}"
        raise ValueError(f"unknown command {arguments[0]!r}; {hint}")
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in _COMMANDS.items())
    parser = OneLineParser(
        prog="adazeta",
        usage="adazeta COMMAND ...",
        description="Fine-tune language models with forward passes only.\n\ncommands:\n" + commands,
        epilog="adazeta COMMAND --help explains a command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"adazeta {__version__}")
    parser.parse_args(arguments)
    parser.print_help()
    return 0


def _demo(arguments: list[str]) -> int:
    if arguments[:1] == ["rewards"]:
        parser = OneLineParser(
            prog="adazeta demo rewards", description="let a small model learn from scores"
        )
        from adazeta.demo import rewards

        rewards.add_arguments(parser)
        return rewards.run(parser.parse_args(arguments[1:]))
    parser = OneLineParser(
        prog="adazeta demo",
        description=_COMMANDS["demo"][1],
        epilog="adazeta demo rewards learns from scores of texts instead of labels.",
    )
    from adazeta.demo import run as demo

    demo.add_arguments(parser)
    return int(demo.run(parser.parse_args(arguments)))


_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (run_train, "fine-tune a model: adazeta train config.yaml [--key value ...]"),
    "eval": (run_eval, "score a trained model: adazeta eval FOLDER --data FILE"),
    "predict": (run_predict, 'label or answer texts: adazeta predict FOLDER "text" ...'),
    "export": (
        run_export,
        "write adapters for others: adazeta export FOLDER --to lora --output DIR",
    ),
    "generate": (
        run_generate,
        f'{GENERATE_TEXT}: adazeta generate MODEL --prompt "A review:" --output FILE',
    ),
    "replay": (run_replay, "make the adapters again from the base model and a run's log"),
    "report": (run_report, REPORT_TEXT),
    "benchmark": (run_benchmark, "train and test by the field's protocol, on its 25 tasks"),
    "methods": (run_methods, METHODS_TEXT),
    "demo": (_demo, "fine-tune a small model from end to end"),
    "info": (run_info, INFO_TEXT),
}
