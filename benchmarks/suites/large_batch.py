"""``large_batch``: what extrapolation and adversarial embeddings give in large batches.

All weights of a small BERT (:mod:`benchmarks.subjects.encoder`) and a new head are trained on film
reviews by gradients, for six epochs. A large batch is 512 reviews, in micro-batches of 32.

- ``extrapolation``: SGD with momentum, large batches. ``none``; ``local``; ``gaussian``; ``ascent``
  (SAM); and ``local_half``, which is local for the first half of the steps.
- ``adversarial``: ``small`` is AdamW with batches of 32; the others have large ones: ``adamw``,
  ``lamb``, and ``lamb_random`` and ``lamb_gradient``, which move the embeddings at random, or
  uphill.

Each arm has three rates, and the table shows the one whose dev accuracy ends highest, in the mean
of the seeds: the dev loss rises again where a model is sure of its mistakes. Rows are written after
each run, and a call with the same file goes on from there.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from adazeta.demo.data import Record, film_reviews
from benchmarks.measure.harness import Cell, Options, Refused, Row, require
from benchmarks.measure.log import Log, named, provider_too
from benchmarks.subjects.encoder import encoded, encoder_folder
from benchmarks.subjects.review_classifier import BATCH as SMALL
from benchmarks.subjects.review_classifier import COMMON as OF_ALL
from benchmarks.subjects.review_classifier import SIZES, review_trainer

LOOKED = 256
"""Training texts, of both labels alike, whose loss is followed where it is asked for."""

LARGE = 512
EPOCHS, LOOKS = 6, 12
QUARTER = 0.25


class Arm(NamedTuple):
    """What is trained, and how.

    Attributes:
        part: that it belongs to.
        rates: learning rates, ascending.
        settings: of the run.
        batch: texts of a step.
    """

    part: str
    rates: tuple[float, ...]
    settings: dict[str, Any]
    batch: int = LARGE


_SGD = {"rule": "sgd", "rule_settings": {"momentum": 0.9}}
_SGD_RATES = (0.01, 0.03, 0.1)
_LAMB = {"rule": "lamb"}
_LAMB_RATES = (0.003, 0.01, 0.03)
_UPHILL = {"adversarial_radius": "auto"}
ARMS: dict[str, Arm] = {
    "none": Arm("extrapolation", _SGD_RATES, _SGD),
    "local": Arm("extrapolation", _SGD_RATES, {**_SGD, "extrapolation": "local"}),
    "gaussian": Arm("extrapolation", _SGD_RATES, {**_SGD, "extrapolation": "gaussian"}),
    "ascent": Arm("extrapolation", _SGD_RATES, {**_SGD, "extrapolation": "ascent"}),
    "local_half": Arm(
        "extrapolation", _SGD_RATES,
        {**_SGD, "extrapolation": "local", "extrapolation_until": 0.5},
    ),
    "small": Arm("adversarial", (3e-4, 1e-3, 3e-3), {"rule": "adamw"}, SMALL),
    "adamw": Arm("adversarial", (1e-3, 3e-3, 1e-2), {"rule": "adamw"}),
    "lamb": Arm("adversarial", _LAMB_RATES, _LAMB),
    "lamb_random": Arm(
        "adversarial", _LAMB_RATES, {**_LAMB, **_UPHILL, "adversarial_kind": "random"}
    ),
    "lamb_gradient": Arm("adversarial", _LAMB_RATES, {**_LAMB, **_UPHILL}),
}  # fmt: skip
COMMON: dict[str, Any] = {
    **OF_ALL,
    "num_train_epochs": EPOCHS,
    "eval_strategy": "steps",
}


def rows(options: Options) -> list[Row]:
    """Train every arm, rate and seed that is asked for and not in the file yet."""
    if options.small:
        raise Refused("large_batch has no small size; leave --small out, or use --quick")
    sizes = {"train": 1024, "dev": 64, "test": 64} if options.quick else SIZES
    texts = sizes["train"]
    log = Log(options, "large_batch", "train", partial(is_current, texts=texts), run=provider_too)
    data: dict[str, list[Record]] = {}
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for name, arm in ARMS.items():
            if not options.wants("large_batch", arm.part, name):
                continue
            for rate in arm.rates[1:2] if options.quick else arm.rates:
                provider = named(rate)
                if not log.known(name, seed, provider):
                    data = data or film_reviews(sizes)
                    cell = Cell("large_batch", "train", name, "seed", seed, options.device)
                    log.add(trained(cell, provider, rate, data))
    return log.finished()


def own_settings(name: str, texts: int) -> dict[str, Any]:
    """Return the settings of an arm, but for what differs by run."""
    arm = ARMS[name]
    steps = EPOCHS * -(-texts // arm.batch)
    return {
        **COMMON,
        "gradient_accumulation_steps": arm.batch // SMALL,
        "eval_steps": max(steps // LOOKS, 1),
        **arm.settings,
    }


def is_current(row: Row, texts: int) -> bool:
    """Tell whether a row is of the present settings of its arm."""
    name, config = row["mode"], row["config"]
    return name in ARMS and config["settings"] == own_settings(name, texts) and (
        config["texts"] == texts
    )  # fmt: skip


def trained(
    cell: Cell, provider: str, rate: float, data: Mapping[str, Sequence[Record]]
) -> list[Row]:
    """Train with one rate.

    Args:
        cell: of the rows; its mode is the arm, its number the seed.
        provider: of the rows.
        rate: initial learning rate; it falls linearly.
        data: the texts.

    Returns:
        What the run ended with: dev loss and accuracy, accuracy on the test texts, seconds; and of
        ``extrapolation`` the training loss after a quarter of the steps. ``config["looks"]`` has
        what was seen on the way: steps, and of each the dev accuracy and loss and the training
        loss.
    """
    seed, folder, arm = int(cell.x_value), encoder_folder(), ARMS[cell.mode]
    settings = own_settings(cell.mode, len(data["train"]))
    sets = {name: encoded(folder, records) for name, records in data.items()}
    looked = {"dev": sets["dev"]}
    follows = arm.part == "extrapolation"
    if follows:
        looked["train"] = sets["train"][:: max(len(sets["train"]) // LOOKED, 1)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as output:
        trainer = review_trainer(
            sets["train"], looked, output, seed=seed, device=cell.device, learning_rate=rate,
            **settings,
        )  # fmt: skip
        trainer.train()
        seconds = time.monotonic() - began
        tested = trainer.predict(sets["test"]).metrics or {}  # type: ignore[arg-type]
        looks = looks_of(trainer.state.log_history)
    require("test_accuracy" in tested, "an accuracy is missing")
    steps = trainer.state.max_steps
    config = {
        "model": folder.name, "settings": settings, "rate": rate, "steps": steps,
        "extrapolation_scale": trainer.args.extrapolation_scale, "looks": looks,
        "texts": len(data["train"]), "dev": len(data["dev"]), "test": len(data["test"]),
    }  # fmt: skip
    made = {
        "dev_loss": ("nats", looks["dev_loss"][-1]),
        "dev_accuracy": ("fraction", looks["dev_accuracy"][-1]),
        "test_accuracy": ("fraction", float(tested["test_accuracy"])),
        "seconds": ("s", seconds),
    }
    if follows:
        quarter = next(i for i, step in enumerate(looks["step"]) if step >= QUARTER * steps)
        made["train_loss_at_quarter"] = ("nats", looks["train_loss"][quarter])
    # What was seen on the way is kept once.
    rest = {name: value for name, value in config.items() if name != "looks"}
    return [
        cell.row(provider, metric, unit, [value], config if metric == "dev_loss" else rest)
        for metric, (unit, value) in made.items()
    ]


def looks_of(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return what was evaluated while training, in the order of the steps."""
    names = {
        "dev_loss": "eval_dev_loss", "dev_accuracy": "eval_dev_accuracy",
        "train_loss": "eval_train_loss",
    }  # fmt: skip
    found = {
        name: {int(entry["step"]): float(entry[key]) for entry in history if key in entry}
        for name, key in names.items()
    }
    steps = sorted(found["dev_loss"])
    seen = {name: [values[step] for step in steps] for name, values in found.items() if values}
    return {"step": [*map(float, steps)], **seen}
