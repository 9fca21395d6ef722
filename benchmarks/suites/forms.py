"""``forms``: does the linear form of adapters, which other tools serve, learn as the other does?

Both train on film reviews with the settings of ``rates`` and the measured rate: the bottleneck with
its activation, and ``form: lora``, whose factors are those of a LoRA. Each is put where it is by
default, and has the same rank of the tensor trains, so their numbers of parameters differ.
"""

from typing import Any

from adazeta.optim.rate import AUTO
from benchmarks.measure.harness import Cell, Options, Refused, Row
from benchmarks.subjects.learning_tasks import TASKS
from benchmarks.suites import rates

FORMS: dict[str, dict[str, Any]] = {"bottleneck": {}, "lora": {"form": "lora", "bias": None}}


def rows(options: Options) -> list[Row]:
    """Train both forms with every seed."""
    if options.small:
        raise Refused("forms has no small size; leave --small out")
    data = rates.shortened(TASKS["film"].load())
    steps = 3 if options.quick else rates.STEPS
    found: list[Row] = []
    for seed in options.seeds:
        cell = Cell("forms", "train", "film", "seed", seed, options.device)
        for name, changed in FORMS.items():
            task = TASKS["film"].settings
            found += rates.trained(
                cell, task, data, seed, AUTO, steps, provider=name, changed=changed
            )
    return found
