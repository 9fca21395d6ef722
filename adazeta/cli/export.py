"""The command ``adazeta export``."""

from adazeta.cli.output import add_folder, add_scale, show
from adazeta.support.settings import OneLineParser


def run_export(arguments: list[str]) -> int:
    """Run ``adazeta export``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta export",
        description=(
            "Write trained adapters for others: a LoRA for peft (lora), a plain model of "
            "transformers (merged), or a LoRA for llama.cpp (gguf-lora). The adapters must be of "
            "the linear form (form: lora), or bottlenecks with activation: linear."
        ),
    )
    add_folder(parser)
    parser.add_argument("--to", required=True, help="lora, merged or gguf-lora")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder to write to")
    add_scale(parser)
    options = parser.parse_args(arguments)

    from adazeta.runs.export import export

    row = export(
        options.folder, options.to, options.output, model=options.model, dtype=options.dtype,
        scale=options.scale,
    )  # fmt: skip
    show([row], as_json=options.json)
    return 0
