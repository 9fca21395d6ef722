"""The command ``adazeta replay``."""

import dataclasses
import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from adazeta.cli.output import show
from adazeta.support.settings import OneLineParser


def run_replay(arguments: list[str]) -> int:
    """Run ``adazeta replay``; return the exit status."""
    parser = OneLineParser(
        prog="adazeta replay",
        description=(
            "Make the trained parameters again from the base model and the probe log of a run: no "
            "data, no forward pass, the same bits."
        ),
    )
    parser.add_argument("log", help="probes.log of a run, or its output_dir")
    parser.add_argument("--to-step", type=int, help="steps to have done (default: all)")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="where to save what the run saved: the adapters, or the model",
    )
    parser.add_argument("--model", help="base model, if it is no longer where it was")
    parser.add_argument("--show", action="store_true", help="print the records as JSON, and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)

    from adazeta.recording.first_order import is_first_order
    from adazeta.recording.folder import LOG_NAME
    from adazeta.recording.probe_log import read_log

    path = Path(options.log)
    file = path / LOG_NAME if path.is_dir() else path
    if is_first_order(file.parent) and not file.exists():
        raise ValueError(
            f"{path} is of a run with order='first': gradients leave no log of a few bytes a step "
            "to replay; its adapters are in the folder, and its checkpoints go on with adazeta "
            "train --resume_from_checkpoint true"
        )
    log = read_log(file)
    if options.show:
        for record in log:
            if options.to_step is None or record.step < options.to_step:
                print(json.dumps(dataclasses.asdict(record)))
        return 0

    from adazeta.recording.identity import fingerprint_of_parameters
    from adazeta.recording.replay import rebuild, save_rebuilt

    model, optimizer = rebuild(log, to_step=options.to_step, model=options.model)
    row: dict[str, Any] = {
        "steps": optimizer.steps,
        "loss": math.nan if optimizer.last is None else optimizer.last.loss,
        "parameters": fingerprint_of_parameters(optimizer),
    }
    with optimizer.averaged() if optimizer.averages else nullcontext():
        if optimizer.averages:
            row["average"] = fingerprint_of_parameters(optimizer)
        if options.output is not None:
            save_rebuilt(model, options.output)
            if options.to_step is None:
                _tell_other_weights(Path(options.output), file.parent)
    row["saved in"] = options.output or "-"
    show([row], as_json=options.json)
    return 0


def _tell_other_weights(saved: Path, run: Path) -> None:
    """Say so where a run's folder holds other weights than those of its last step."""
    from safetensors.torch import load_file
    from transformers.trainer import TRAINER_STATE_NAME

    from adazeta.adapters.files import WEIGHTS_NAME
    from adazeta.support.batches import same_values
    from adazeta.support.files import read_object

    files = saved / WEIGHTS_NAME, run / WEIGHTS_NAME
    if not all(file.is_file() for file in files):
        return
    ours, theirs = map(load_file, files)
    if ours.keys() == theirs.keys() and all(same_values(ours[name], theirs[name]) for name in ours):
        return
    state = run / TRAINER_STATE_NAME
    best = read_object(state).get("best_global_step") if state.is_file() else None
    hint = f"--to-step {best} gives them" if best else "--to-step chooses a step"
    print(
        f"adazeta: {run} holds other weights than those of the last step, which are in {saved}: "
        f"with load_best_model_at_end a run saves those of its best step; {hint}",
        file=sys.stderr,
    )
