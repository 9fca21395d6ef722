"""``forms``: does the linear form of adapters, which other tools serve, learn as the other does?

Both train on film reviews with the settings of ``rates`` and the measured rate: the bottleneck with
its activation, and ``form: lora``, whose factors are those of a LoRA. Each is put where it is by
default, and has the same rank of the tensor trains, so their numbers of parameters differ.
"""

from functools import partial
from typing import Any

from adazeta.optim.rate import AUTO
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.measure.log import Log
from benchmarks.subjects.learning_tasks import TASKS
from benchmarks.suites import rates

FORMS: dict[str, dict[str, Any]] = {"bottleneck": {}, "lora": {"form": "lora", "bias": None}}


def rows(options: Options) -> list[Row]:
    """Train both forms with every seed that is not in the file yet."""
    if options.small:
        raise Refused("forms has no small size; leave --small out")
    data = rates.shortened(TASKS["film"].load())
    steps = 3 if options.quick else rates.STEPS
    log = Log(options, "forms", "train", partial(is_current, steps=steps))
    for seed in options.seeds:
        for form, changed in FORMS.items():
            if options.wants("forms", "train", form) and not log.known(form, seed):
                cell = Cell("forms", "train", form, "seed", seed, options.device)
                settings = TASKS["film"].settings
                log.add(rates.trained(cell, "adazeta", settings, data, AUTO, steps, changed))
    return log.finished()


def is_current(row: Row, steps: int) -> bool:
    """Tell whether a row is of the present settings of its form."""
    return row["mode"] in FORMS and rates.is_current(row, steps, FORMS[row["mode"]])
