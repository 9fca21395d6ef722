"""``mixer``: do features of many depths make up for late blocks that are not run?

Film reviews are trained with the settings of ``rates`` (adapters on the last tokens, ``zo-adam``,
``eps`` and the rate measured) and, of each seed, with these adapters:

- ``last_10``, ``last_2`` and ``last_1``: tensor trains in the last ten blocks, two, and in one;
- ``mixer``: a feature mixer at the input of the last block, which reads five blocks below;
- ``mixer_2``: one at the input of the last block but one;
- ``no_redundancy``: the first without the redundancy rho, all of which is 1;
- ``no_features``: the same that reads none.

Each is trained for the same number of steps, hence of evaluations (``equal evaluations``), and all
but ``last_10`` once more for so many steps as take the time that ``last_10`` took
(``equal time``), by the seconds of these runs. The clock starts when all that is kept of the frozen
model is there. It counts what the processors do for the run, so that other work on the machine does
not matter; with one thread (``--threads 1``) that is the time on the wall of an idle machine.

What the adapters could learn is shown by gradients: ``last_10`` and mixers are trained by AdamW
as well (``gradients``), 40 steps of the same texts with each of two rates.

Rows are written after each run, and a call with the same file goes on from there.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch

from adazeta.adapters import mixer
from adazeta.optim.rate import AUTO
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.log import Log, as_written, named
from benchmarks.subjects.learning_tasks import TASKS
from benchmarks.suites import rates

STEPS = 200
_A_STEP = 2  # evaluations, on both sides of a direction
_MOST = 10  # times the steps, where an evaluation costs next to nothing
_MIXER = {"form": "mixer", "layers": None}
ARMS: dict[str, dict[str, Any]] = {
    "last_10": {},
    "last_2": {"layers": "last:2"},
    "last_1": {"layers": "last:1"},
    "mixer": _MIXER,
    "mixer_2": {**_MIXER, "late": 2},
    "no_redundancy": _MIXER,
    "no_features": {**_MIXER, "features": []},
}
BASE = "last_10"
"""The arm whose time the others get."""

EVALUATIONS, TIME = "equal evaluations", "equal time"

BY_GRADIENTS = ("last_10", "mixer", "mixer_2")
GRADIENT_STEPS = 40
GRADIENT_RATES = (0.005, 0.02)
_FIRST_ORDER = {"order": "first", "probes": None, "probes_per_forward": None}


def rows(options: Options) -> list[Row]:
    """Train the arms that are asked for and not in the file yet."""
    if options.small:
        raise Refused("mixer has no small size; leave --small out, or use --quick")
    data = rates.shortened(TASKS["film"].load())
    if options.quick:
        data = {name: [*records[:16], *records[-16:]] for name, records in data.items()}
    steps = 2 if options.quick else STEPS
    task = TASKS["film"].settings
    log = Log(options, "mixer", "train", partial(is_current, steps=steps))
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for arm, changed in ARMS.items():
            for equal in (EVALUATIONS, TIME):
                mode = f"{arm}, {equal}"
                if (arm, equal) == (BASE, TIME) or log.known(mode, seed):
                    continue
                if not options.wants("mixer", "train", mode):
                    continue
                count = steps
                if equal == TIME:
                    count = steps_in_time(log.finished(), arm, seed, steps)
                cell = Cell("mixer", "train", mode, "seed", seed, options.device)
                with _without_redundancy() if arm == "no_redundancy" else nullcontext():
                    found = rates.trained(cell, arm, task, data, AUTO, count, changed, costs=True)
                log.add([_of(row, steps) for row in found])
        for arm in BY_GRADIENTS:
            for rate in GRADIENT_RATES:
                mode = gradients(arm, rate)
                if log.known(mode, seed) or not options.wants("mixer", "train", mode):
                    continue
                cell = Cell("mixer", "train", mode, "seed", seed, options.device)
                count = steps if options.quick else GRADIENT_STEPS
                changed = {**ARMS[arm], **_FIRST_ORDER}
                found = rates.trained(cell, arm, task, data, rate, count, changed)
                log.add([_of(row, steps) for row in found])
    return log.finished()


def gradients(arm: str, rate: float) -> str:
    """Return the mode of a run by gradients."""
    return f"{arm}, gradients at {named(rate)}"


def _of(row: Row, steps: int) -> Row:
    return {**row, "config": {**row["config"], "base": steps}}


def _without_redundancy() -> Any:
    """Return a context in which each feature of a mixer counts once, however alike they are."""
    alone = mock.Mock(side_effect=lambda features: torch.ones_like(features[..., 0]))
    return mock.patch.object(mixer, "redundancy", alone)


def steps_in_time(known: Sequence[Row], arm: str, seed: int, steps: int) -> int:
    """Return the steps that an arm makes in the time that the base took for its own.

    Raises:
        Refused: the runs that tell are not among the rows.
    """
    found: dict[tuple[str, str], float] = {}
    for name in (BASE, arm):
        mode = f"{name}, {EVALUATIONS}"
        of = [row for row in known if (row["mode"], row["x_value"]) == (mode, seed)]
        if not of:
            raise Refused(
                f"the time of seed {seed} is not known before '{mode}' has run; leave --only out, "
                "or give the file of those rows with --json"
            )
        found |= {(name, row["metric"]): row["median"] for row in of}
    own, evaluations = found[arm, "processor_seconds"], found[arm, "evaluations"]
    # What measures eps and the rate before the first step is done once in both.
    more = (found[BASE, "processor_seconds"] - own) * evaluations / own
    return min(max(steps + round(more / _A_STEP), 1), _MOST * steps)


def is_current(row: Row, steps: int) -> bool:
    """Tell whether a row is of the present settings of its arm."""
    arm, config = row["provider"], row["config"]
    if arm not in ARMS or config.get("base") != steps:
        return False
    by_gradients = _FIRST_ORDER if ", gradients" in row["mode"] else {}
    settings = as_written(rates.own_settings({**ARMS[arm], **by_gradients}))
    return bool(config.get("settings") == settings)
