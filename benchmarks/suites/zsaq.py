"""``zsaq``: the game of ZSAQ by gradients, against distillation on random tokens.

For each seed a BERT of 4.4 million parameters (:mod:`benchmarks.subjects.encoder`) and a head learn
film reviews: the teacher. A student is a copy of it whose linears compute with weights of four or
two bits (``w4a8``, ``w2a8``) in groups of 64, and activations of eight bits a token. Head,
embeddings and layer norms stay in float; linears and layer norms are trained, by the same
number of steps in every arm, on the divergence from the teacher. The arms:

- ``rounded``: nothing is trained.
- ``random``: random tokens.
- ``random_sam``: random tokens, and downhill with SAM.
- ``zsaq``: embeddings of a generator, which moves uphill in each step before the student moves
  downhill with SAM (:mod:`benchmarks.subjects.two_players`).
- ``real``: the training texts without their labels, as an upper reference.
- ``random_slow``, ``zsaq_slow``, ``real_slow``: the same with a tenth of the rate.

Rows are written after each arm and seed, and a call with the same file goes on from there.
"""

import copy
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel

from adazeta.demo.data import Record, film_reviews, model_file
from adazeta.models.loading import load_model
from adazeta.support.seeds import derive_seed
from benchmarks.measure.harness import Cell, Options, Refused, Row, require
from benchmarks.measure.log import Log, as_written
from benchmarks.subjects.encoder import encoded, encoder_folder
from benchmarks.subjects.fake_quantised import ACTIVATION_BITS, fake_quantise
from benchmarks.subjects.review_classifier import COMMON, review_trainer
from benchmarks.subjects.rounding import GROUP
from benchmarks.subjects.two_players import Generator, Inputs, ascend, descend, divergence

BITS = (4, 2)
ARMS = (
    "rounded", "random", "random_sam", "zsaq", "real", "random_slow", "zsaq_slow", "real_slow"
)  # fmt: skip
SIZES = {"train": 2048, "test": 1000}
_SHARP = ("random_sam", "zsaq", "zsaq_slow")
_SLOW = "_slow"  # arms whose name ends so have a tenth of the rate
# All numbers are ours. How RATE was chosen stands in docs/related.md.
STEPS, BATCH, TOKENS = 150, 16, 32
RATE = 3e-4  # of a student, AdamW, falling linearly
GENERATOR_RATE, BLOCKS = 1e-5, 2
RADIUS = 0.05  # of SAM
HELD_OUT = 256  # texts of random tokens that are never trained on
TEACHER: dict[str, Any] = {
    **COMMON, "rule": "adamw", "learning_rate": 1e-3, "num_train_epochs": 3
}  # fmt: skip
_TRAIN, _HELD_OUT, _START = 0x5A51, 0x5A52, 0x5A53  # purposes of draws


def rows(options: Options) -> list[Row]:
    """Train and test the arms that are asked for and not in the file yet."""
    if options.small:
        raise Refused("zsaq has no small size; leave --small out, or use --quick")
    steps = 3 if options.quick else STEPS
    sizes = {"train": 128, "test": 64} if options.quick else SIZES
    log = Log(options, "zsaq", "train", partial(is_current, steps=steps, texts=sizes["train"]))
    data: dict[str, list[Record]] = {}
    for seed in options.seeds[:1] if options.quick else options.seeds:
        work: Work | None = None
        for bits in BITS:
            for arm in ARMS:
                mode = f"w{bits}a{ACTIVATION_BITS} {arm}"
                if not options.wants("zsaq", "train", mode) or log.known(mode, seed):
                    continue
                data = data or film_reviews(sizes)
                work = work or Work(data, seed, steps, options.device)
                cell = Cell("zsaq", "train", mode, "seed", seed, options.device)
                log.add(work.measured(cell, bits, arm))
    return log.finished()


def rate_of(arm: str) -> float:
    """Return the first learning rate of an arm."""
    return RATE / 10 if arm.endswith(_SLOW) else RATE


def _texts_of(arm: str) -> str:
    return arm.removesuffix(_SLOW)


def settings_of(arm: str, steps: int, texts: int) -> dict[str, Any]:
    """Return what a row's arm was made with, but for width, model and seed."""
    found: dict[str, Any] = {"group": GROUP, "teacher": TEACHER, "texts": texts}
    if arm == "rounded":
        return found
    found |= {"steps": steps, "batch": BATCH, "rate": rate_of(arm)}
    if _texts_of(arm) != "real":
        found["tokens"] = TOKENS
    if _texts_of(arm) == "zsaq":
        found |= {"generator_rate": GENERATOR_RATE, "blocks": BLOCKS}
    if arm in _SHARP:
        found["radius"] = RADIUS
    return found


def is_current(row: Row, steps: int, texts: int) -> bool:
    """Tell whether a row is of the present settings of its arm."""
    arm = row["mode"].partition(" ")[2]
    wanted = as_written(settings_of(arm, steps, texts)) if arm in ARMS else None
    return wanted is not None and bool(row["config"].get("settings") == wanted)


class Work:
    """What the arms of a seed share: the teacher, and the texts.

    Args:
        data: film reviews; the training texts and the test.
        seed: of the teacher and all draws.
        steps: of a student.
        device: of the runs.
    """

    def __init__(self, data: dict[str, list[Record]], seed: int, steps: int, device: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
        self._collate = DataCollatorWithPadding(self._tokenizer)
        self._texts = {name: encoded(encoder_folder(), found) for name, found in data.items()}
        self._seed, self._steps, self._device = seed, steps, device
        before, after = self._tokenizer("")["input_ids"]
        self._frame = (before, after)
        self.teacher = self._taught()
        self._words = len(self._tokenizer)

    def _taught(self) -> PreTrainedModel:
        """Return a teacher, which is not trained any more."""
        with tempfile.TemporaryDirectory() as output:
            trainer = review_trainer(
                self._texts["train"], {}, output, seed=self._seed, device=self._device, **TEACHER
            )
            trainer.train()
        model: PreTrainedModel = trainer.unwrapped  # type: ignore[assignment]
        return model.eval().requires_grad_(False).to(self._device)

    def student(self, bits: int) -> tuple[PreTrainedModel, list[nn.Parameter]]:
        """Return a rounded copy of the teacher, and of its parameters those that are trained."""
        model = copy.deepcopy(self.teacher)
        body = model.base_model
        require(len(fake_quantise(body, bits)) > 0, "no linear was rounded")
        for part in body.modules():
            if isinstance(part, nn.Linear | nn.LayerNorm):
                part.requires_grad_(True)
        return model, [each for each in model.parameters() if each.requires_grad]

    def measured(self, cell: Cell, bits: int, arm: str) -> list[Row]:
        """Train an arm, if there is something to train, and test it.

        Returns:
            Agreement with the teacher, accuracy and divergence on the test texts, the divergence on
            random tokens that nothing was trained on, and the seconds of the training. Of what is
            trained, ``config["seen"]`` of the divergence has the one of the training's own texts, a
            mean of each tenth of the steps.
        """
        student, trained = self.student(bits)
        seen: list[float] = []
        began = time.monotonic()
        if arm != "rounded":
            seen = self._train(student, trained, arm)
        seconds = time.monotonic() - began
        draws = self._draws(_HELD_OUT)
        held_out = [self._random(draws) for _ in range(-(-HELD_OUT // BATCH))]
        with torch.no_grad():
            random = torch.stack([divergence(self.teacher, student, each) for each in held_out])
        wanted, found = self._answers(self.teacher), self._answers(student)
        labels = torch.tensor([each["labels"] for each in self._texts["test"]])
        config = {
            "model": encoder_folder().name, "test": len(labels),
            "settings": settings_of(arm, self._steps, len(self._texts["train"])),
            "teacher_accuracy": float((wanted.argmax(-1) == labels).double().mean()),
        }  # fmt: skip
        if _texts_of(arm) == "zsaq":
            config["generator"] = model_file().name
        made = {
            "agreement": ("fraction", (found.argmax(-1) == wanted.argmax(-1)).double().mean()),
            "accuracy": ("fraction", (found.argmax(-1) == labels).double().mean()),
            "divergence": ("nats", (wanted.exp() * (wanted - found)).sum(-1).mean()),
            "random_divergence": ("nats", random.mean()),
            "seconds": ("s", seconds),
        }
        more = {**config, "seen": seen}
        return [
            cell.row(arm, metric, unit, [float(value)], more if metric == "divergence" else config)
            for metric, (unit, value) in made.items()
        ]

    def _train(
        self, student: PreTrainedModel, trained: list[nn.Parameter], arm: str
    ) -> list[float]:
        """Train a student, and return the mean divergence of each tenth of the steps."""
        optimizer = torch.optim.AdamW(trained, lr=rate_of(arm), weight_decay=0.0)
        falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self._steps)
        inputs = self._inputs(arm, student)
        radius = RADIUS if arm in _SHARP else 0.0
        seen = []
        for step in range(self._steps):
            seen.append(
                descend(self.teacher, student, trained, next(inputs), optimizer, radius, step)
            )
            falling.step()
        size = -(-len(seen) // 10)
        tenths = [seen[start : start + size] for start in range(0, len(seen), size)]
        return [sum(each) / len(each) for each in tenths]

    def _inputs(self, arm: str, student: PreTrainedModel) -> Iterator[Inputs]:
        """Return the batches of an arm, without end."""
        draws = self._draws(_TRAIN)
        if _texts_of(arm) == "zsaq":
            return self._generated(student, draws)
        if _texts_of(arm) == "real":
            return self._real(draws)
        return (self._random(draws) for _ in itertools.count())

    def _random(self, draws: torch.Generator) -> Inputs:
        """Return a batch of random tokens, in the frame of a text."""
        ids = torch.randint(self._words, (BATCH, TOKENS), generator=draws)
        ids[:, 0], ids[:, -1] = self._frame
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: value.to(self._device) for name, value in made.items()}

    def _real(self, draws: torch.Generator) -> Iterator[Inputs]:
        """Yield batches of the training texts, without labels, in another order each time."""
        texts = self._texts["train"]
        order: list[int] = []
        while True:
            while len(order) < BATCH:
                order += torch.randperm(len(texts), generator=draws).tolist()
            yield self._batch([texts[place] for place in order[:BATCH]])
            del order[:BATCH]

    def _generated(self, student: PreTrainedModel, draws: torch.Generator) -> Iterator[Inputs]:
        """Yield what a generator makes of random tokens, after its step uphill with them."""
        blocks: Any = load_model(model_file(), dtype="float32").base_model
        words = blocks.config.vocab_size
        blocks.layers = blocks.layers[:BLOCKS]
        blocks.config.num_hidden_layers = BLOCKS

        def drawn(by: torch.Generator) -> Tensor:
            return torch.randint(words, (BATCH, TOKENS - 2), generator=by).to(self._device)

        start = self._draws(_START)
        table = self.teacher.get_input_embeddings().weight
        generator = Generator(blocks.to(self._device), table, self._frame, drawn(start), start)
        optimizer = torch.optim.AdamW(
            generator.trained(), lr=GENERATOR_RATE, weight_decay=0.0, maximize=True
        )
        while True:
            ids = drawn(draws)
            ascend(generator, ids, self.teacher, student, optimizer)
            with torch.no_grad():
                inputs = generator(ids)
            yield inputs

    def _answers(self, model: nn.Module) -> Tensor:
        """Return log-probabilities of the labels for the test texts, (N, 2)."""
        texts = self._texts["test"]
        batches = [texts[start : start + 100] for start in range(0, len(texts), 100)]
        with torch.no_grad():
            found = [model(**self._batch(each)).logits.log_softmax(-1).cpu() for each in batches]
        return torch.cat(found).double()

    def _batch(self, texts: Sequence[dict[str, Any]]) -> Inputs:
        unlabelled = [{k: v for k, v in text.items() if k != "labels"} for text in texts]
        made = self._collate(unlabelled)
        return {name: value.to(self._device) for name, value in made.items()}

    def _draws(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, purpose))
