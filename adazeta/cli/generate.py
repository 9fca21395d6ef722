"""The command ``adazeta generate``."""

import json
from pathlib import Path

from adazeta.support.settings import OneLineParser

GENERATE_TEXT = "let a model write texts to train on"


def run_generate(arguments: list[str]) -> int:
    """Run ``adazeta generate``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta generate",
        description=(
            "Let a causal language model write texts, as 'train_data' for a run with a teacher. "
            "Each line of the file has a text, its prompt, and the seed that draws it."
        ),
    )
    parser.add_argument("model", help="hub id, folder or .gguf file")
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="what a text follows (repeatable: they take turns)",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="new .jsonl file")
    parser.add_argument("--count", type=int, default=1000, help="of texts, all different")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=int, default=64, help="longest text in tokens"
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="what ends a text (default: a line break)"
    )
    parser.add_argument(
        "--chat", action="store_true", help="make the prompt a user's message in a chat"
    )
    parser.add_argument("--batch_size", "--batch-size", type=int, default=64)
    parser.add_argument("--dtype", default="auto", help="of the model (default: auto)")
    parser.add_argument("--quantise", default="none", help="see 'adazeta train' (default: none)")
    options = parser.parse_args(arguments)
    output = Path(options.output)
    if output.suffix != ".jsonl":
        raise ValueError(f"--output must be a .jsonl file, got {options.output}")
    if output.exists():
        raise ValueError(f"{output} exists; remove it, or choose another --output")

    from adazeta.runs.written import write_texts

    records = write_texts(
        options.model, options.prompt, options.count, seed=options.seed,
        temperature=options.temperature, max_new_tokens=options.max_new_tokens,
        stop=options.stop or ["\n"], chat=options.chat, batch_size=options.batch_size,
        dtype=options.dtype, quantise=options.quantise,
    )  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(records)} texts: {output}")
    return 0
