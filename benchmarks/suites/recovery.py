"""``recovery``: can a rounded model win back its answers from texts that nobody labelled?

The linears of SmolLM2 are rounded to the nearest of eight levels (``int3``), or four (``int2``), in
groups of 64. Adapters then learn from the model as it was, its teacher, which of two words follows
a text, by the cross entropy with the teacher's distribution. The arms differ in the texts alone:

- ``none``: nothing is trained.
- ``random``: tokens drawn at random, as many a text as in those of ``generated``.
- ``generated``: what the teacher wrote after ``PROMPT``.
- ``hardest``: of twice as many such texts, the half on which student and teacher differ most.
- ``real``: film reviews, without their labels.
- ``labels``: the same reviews with their labels, and without the teacher.

``bias`` is no run: the best number added to the untrained student's logits, by the teacher's
answers to the generated texts. What counts is how often student and teacher answer the same on
other film reviews.

Rows are written after each arm and seed, and a call with the same file goes on from there. Texts
that were written once are kept in the cache.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adazeta.demo.data import Record, film_reviews, model_file
from adazeta.demo.folder import write_folder
from adazeta.demo.run import SETTINGS as DEMO
from adazeta.demo.run import TASKS
from adazeta.models.loading import load_model, load_tokenizer
from adazeta.runs.inference import predict
from adazeta.runs.run import Run, prepare_from
from adazeta.runs.written import write_texts
from adazeta.support.files import cache_folder, write_whole
from adazeta.support.seeds import derive_seed
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.calibration import fit_bias
from adazeta.tasks.classification import ClassificationTask
from adazeta.tasks.registry import make_task
from benchmarks.measure.harness import Cell, Options, Refused, Row, require
from benchmarks.measure.log import Log, as_written
from benchmarks.subjects.rounding import GROUP, round_blocks

BITS = (3, 2)
ARMS = ("none", "random", "generated", "hardest", "real", "labels")
PROMPT = "A film review:"
TEXTS, LONGEST = 500, 32  # a run is trained on; tokens of a text
CHANCE = 0.532  # two standard errors above a half, of 1,000 texts
TASK = TASKS["film"]
SETTINGS: dict[str, Any] = {
    **{name: value for name, value in DEMO.items() if not name.startswith("eval_")},
    **TASK,
    "save_strategy": "no",
    "report_baselines": False,
}


def rows(options: Options) -> list[Row]:
    """Train and test the arms that are asked for and not in the file yet."""
    if options.small:
        raise Refused("recovery has no small size; leave --small out, or use --quick")
    count, longest = (32, 8) if options.quick else (TEXTS, LONGEST)
    rest = {"dev": 64, "test": 64} if options.quick else {"dev": 500, "test": 1000}
    # The records of a split are ordered by label: a part of one would have one label alone.
    sizes = {"train": count, **rest}
    current = partial(is_current, count=count, longest=longest)
    log = Log(options, "recovery", "train", current)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), film_reviews(sizes), count, longest, options.device)
        for bits in BITS[:1] if options.quick else BITS:
            for seed in options.seeds[:1] if options.quick else options.seeds:
                for arm in ARMS:
                    mode = f"int{bits} {arm}"
                    if not options.wants("recovery", "train", mode) or log.known(mode, seed):
                        continue
                    if arm != "none" and bits == 2 and not work.above_chance(bits):
                        continue  # nothing is left that could be won back
                    cell = Cell("recovery", "train", mode, "seed", seed, options.device)
                    log.add(work.measured(cell, bits, seed, arm))
    return log.finished()


def settings_of(arm: str, count: int, longest: int) -> dict[str, Any]:
    """Return what a row's arm was made with, but for model, data and seed."""
    found: dict[str, Any] = {"group": GROUP}
    if arm == "none":
        return found
    found |= {**SETTINGS, "texts": count}
    if arm in ("random", "generated", "hardest"):
        found |= {"prompt": PROMPT, "longest": longest}
    return found | ({"hardest": 0.5} if arm == "hardest" else {})


def is_current(row: Row, count: int, longest: int) -> bool:
    """Tell whether a row is of the present settings of its arm."""
    arm = row["mode"].partition(" ")[2]
    if arm == "bias":
        arm = "generated"
    wanted = as_written(settings_of(arm, count, longest)) if arm in ARMS else None
    return wanted is not None and bool(row["config"].get("settings") == wanted)


class Work:
    """What the arms share, made when the first of them asks for it.

    Args:
        folder: for rounded models, and what their frozen blocks compute.
        data: film reviews.
        count: texts of a run.
        longest: tokens of a text that is made.
        device: of the runs.
    """

    def __init__(
        self, folder: Path, data: dict[str, list[Record]], count: int, longest: int, device: str
    ) -> None:
        self.data, self._folder, self._device = data, folder, device
        self._count, self._longest = count, longest
        self._untrained: dict[tuple[int, str], Tensor] = {}
        self._teacher: Tensor | None = None

    def measured(self, cell: Cell, bits: int, seed: int, arm: str) -> list[Row]:
        """Train an arm, if there is something to train, and test it."""
        if arm == "none":
            logits = self.untrained(bits, "test")
            return self._rows(cell, arm, logits, 0.0, {"with_bias": self.with_bias(bits)})
        texts = self.texts(arm, seed)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            chosen = {
                **SETTINGS, "model": str(self.student(bits)), "seed": seed,
                "use_cpu": self._device == "cpu", "cache_trunk_folder": str(self._folder / "cache"),
            }  # fmt: skip
            if arm != "labels":
                chosen |= {
                    "teacher": str(model_file()),
                    "hardest": 0.5 if arm == "hardest" else 1.0,
                }
            data = {"train": texts, "test": self.data["test"]}
            run = prepare_from(write_folder(Path(folder), data, chosen))
            require(len(run.examples["train"]) == self._count, f"{arm}: another number of texts")
            cell = cell.of(run.model)
            run.trainer.train()
            seconds = time.monotonic() - began
            found = self._rows(cell, arm, run.score("test")[1], seconds)
            if arm == "generated":
                with_bias = self._with_biases(run)
                mode = cell.mode.replace("generated", "bias")
                other = replace(cell, mode=mode)
                found += self._rows(other, "bias", with_bias, 0.0)
        return found

    def texts(self, arm: str, seed: int) -> list[Any]:
        """Return the records that an arm is trained on; labels are there only for ``labels``."""
        if arm == "labels":
            return list(self.data["train"])
        if arm == "real":
            return [{"text": record["text"]} for record in self.texts("labels", seed)]
        written = self.written(seed)
        if arm == "hardest":
            return written
        if arm == "generated":
            return written[: self._count]
        return random_texts(written[: self._count], seed)

    def written(self, seed: int) -> list[dict[str, Any]]:
        """Return twice as many texts of the teacher as a run is trained on."""
        asked = [model_file().name, PROMPT, 2 * self._count, self._longest, seed]
        name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        file = cache_folder() / "recovery" / f"{name}.json"
        if not file.is_file():
            found = write_texts(
                str(model_file()), [PROMPT], 2 * self._count, seed=seed,
                max_new_tokens=self._longest,
            )  # fmt: skip
            write_whole(file, json.dumps([{"text": one["text"]} for one in found]).encode())
        return list(json.loads(file.read_text(encoding="utf-8")))

    def student(self, bits: int) -> Path:
        """Return the folder of the rounded model."""
        folder = self._folder / f"int{bits}"
        if not folder.is_dir():
            model = load_model(model_file())
            require(len(round_blocks(model, bits)) > 0, "no linear was rounded")
            model.save_pretrained(folder)
            load_tokenizer(model_file()).save_pretrained(folder)
        return folder

    def untrained(self, bits: int, split: str) -> Tensor:
        """Return log-probabilities of the rounded model for a split, (N, 2)."""
        if (bits, split) not in self._untrained:
            self._untrained[bits, split] = self._answers(self.student(bits), split)
        return self._untrained[bits, split]

    def teacher(self) -> Tensor:
        """Return log-probabilities of the teacher for the test texts, (N, 2)."""
        if self._teacher is None:
            self._teacher = self._answers(model_file(), "test")
        return self._teacher

    def with_bias(self, bits: int) -> float:
        """Return the untrained student's test accuracy with the best bias, fitted on dev."""
        bias = fit_bias(self.untrained(bits, "dev"), self._labels("dev"))
        chosen = (self.untrained(bits, "test").double() + bias).argmax(-1)
        return float((chosen == self._labels("test")).double().mean())

    def above_chance(self, bits: int) -> bool:
        """Tell whether something of the task is left in a rounded model."""
        return self.with_bias(bits) >= CHANCE

    def _answers(self, model: Path, split: str) -> Tensor:
        task = make_task(TaskArguments(**TASK), load_tokenizer(model))
        assert isinstance(task, ClassificationTask)
        return predict(load_model(model), task, self.data[split]).double().clamp_min(1e-30).log()

    def _labels(self, split: str) -> Tensor:
        return torch.tensor([int(record["label"]) for record in self.data[split]])

    def _with_biases(self, run: Run) -> Tensor:
        """Return the untrained student's test logits with the best bias by the teacher."""
        logits = run.score("train", base=True)[1]
        bias = fit_bias(logits, run.examples["train"].labels)
        return run.score("test", base=True)[1].double() + bias

    def _rows(
        self,
        cell: Cell,
        arm: str,
        logits: Tensor,
        seconds: float,
        more: dict[str, Any] | None = None,
    ) -> list[Row]:
        """Return the rows of an arm, from its logits for the test texts."""
        teacher, likelihoods = self.teacher(), logits.double().log_softmax(-1)
        chosen = logits.argmax(-1)
        settings = settings_of("generated" if arm == "bias" else arm, self._count, self._longest)
        config = {
            "model": model_file().name, "settings": settings, "test": len(logits), **(more or {}),
            "teacher_accuracy": float((teacher.argmax(-1) == self._labels("test")).double().mean()),
        }  # fmt: skip
        made = {
            "agreement": ("fraction", (chosen == teacher.argmax(-1)).double().mean()),
            "accuracy": ("fraction", (chosen == self._labels("test")).double().mean()),
            "divergence": ("nats", (teacher.exp() * (teacher - likelihoods)).sum(-1).mean()),
            "seconds": ("s", seconds),
        }
        return [
            cell.row(arm, metric, unit, [float(value)], config)
            for metric, (unit, value) in made.items()
        ]


def random_texts(like: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return texts of tokens drawn at random, each with as many tokens as one of the others."""
    tokenizer = load_tokenizer(model_file())
    special = set(tokenizer.all_special_ids)
    usual = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    generator = torch.Generator().manual_seed(derive_seed(seed, 0x4A4D))
    found = []
    for record in like:
        size = max(1, len(tokenizer(record["text"], add_special_tokens=False)["input_ids"]))
        drawn = usual[torch.randint(len(usual), (size,), generator=generator)]
        # A text of nothing but bytes that are no character would be empty.
        found.append({"text": tokenizer.decode(drawn).strip() or "?"})
    return found
