"""Small files in the schemas of the field's tasks, and tiny models that read any text.

The rows have the columns, and the numbers for classes, of the data sets on the hub.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.helpers.tiny_models import seeded

SUPERGLUE: dict[str, list[dict[str, Any]]] = {
    "SST2": [
        {"sentence": "a dull film ", "label": 0, "idx": 0},
        {"sentence": "a great cast ", "label": 1, "idx": 1},
    ],
    "RTE": [
        {"premise": "A cat sat.", "hypothesis": "An animal sat.", "label": 0, "idx": 0},
        {"premise": "A cat sat.", "hypothesis": "A dog sat.", "label": 1, "idx": 1},
    ],
    "CB": [
        {"premise": "It is late.", "hypothesis": "it is late", "label": 0, "idx": 0},
        {"premise": "It is late.", "hypothesis": "it is early", "label": 1, "idx": 1},
        {"premise": "It may be late.", "hypothesis": "it is late", "label": 2, "idx": 2},
    ],
    "BoolQ": [
        {"question": "is tea a drink", "passage": "Tea -- Tea is a drink.", "label": 1, "idx": 0},
        {"question": "is tea a stone?", "passage": "Tea -- Tea is a drink.", "label": 0, "idx": 1},
    ],
    "WSC": [
        {
            "text": "Mark told Pete many lies. He was hurt.", "span1_text": "Pete",
            "span2_text": "He", "span1_index": 2, "span2_index": 5, "label": 1, "idx": 0,
        },
        {
            "text": "Mark told Pete many lies. He was hurt.", "span1_text": "Mark",
            "span2_text": "He", "span1_index": 0, "span2_index": 5, "label": 0, "idx": 1,
        },
    ],
    "WIC": [
        {"word": "bed", "sentence1": "A river bed.", "sentence2": "He lay in bed.", "label": 0},
        {"word": "bed", "sentence1": "A soft bed.", "sentence2": "He lay in bed.", "label": 1},
    ],
    "MultiRC": [
        {"paragraph": "Ann ran.", "question": "Who ran?", "answer": "Ann", "label": 1},
        {"paragraph": "Ann ran.", "question": "Who ran?", "answer": "Bob", "label": 0},
    ],
    "COPA": [
        {
            "premise": "The man lost his balance.", "choice1": "He fell off the ladder.",
            "choice2": "I climbed it.", "question": "effect", "label": 0, "idx": 0,
        },
        {
            "premise": "The sun rose.", "choice1": "The dog sat.", "choice2": "It was morning.",
            "question": "cause", "label": 1, "idx": 1,
        },
    ],
    "ReCoRD": [
        {
            "passage": "Ann met Bob in Rome.\n@highlight\nAnn liked Rome",
            "query": "In the end @placeholder liked it",
            "entities": ["Ann", "Bob", "Rome"], "answers": ["Ann", "Rome"], "idx": {"passage": 0},
        },
        {
            "passage": "Bob ran home.\n@highlight\nBob was late", "query": "So @placeholder ran",
            "entities": ["Bob", "Eve"], "answers": ["Bob"], "idx": {"passage": 1},
        },
    ],
    "SQuAD": [
        {
            "id": "a", "title": "Tea", "context": "Tea is a drink.", "question": " What is tea? ",
            "answers": {"text": ["a drink", "drink"], "answer_start": [7, 9]},
        },
        {
            "id": "b", "title": "Rome", "context": "Rome is a city.", "question": "What is Rome?",
            "answers": {"text": ["a city"], "answer_start": [8]},
        },
    ],
    "DROP": [
        {
            "section_id": "s", "query_id": "q", "passage": "Ann had two cats.",
            "question": "How many cats?", "answers_spans": {"spans": ["two"], "types": ["span"]},
        },
        {
            "section_id": "s", "query_id": "r", "passage": "Bob had one dog.",
            "question": "Who had a dog?",
            "answers_spans": {"spans": ["Bob", "Bob"], "types": ["span", "span"]},
        },
    ],
}  # fmt: skip


def _reviews(classes: int) -> list[dict[str, Any]]:
    texts = ["a dull film .", "a bad plot .", "it is a film .", "a good cast .", "a great film ."]
    return [{"text": texts[label], "label": label} for label in range(classes)]


def _pairs(first: str, second: str, classes: int) -> list[dict[str, Any]]:
    return [
        {first: "Is it A film?", second: f"It is one {label}.", "label": label, "idx": label}
        for label in range(classes)
    ]


KSHOT: dict[str, list[dict[str, Any]]] = {
    "SST-2": [{"sentence": row["text"], "label": row["label"]} for row in _reviews(2)],
    "sst-5": _reviews(5),
    "mr": _reviews(2),
    "cr": _reviews(2),
    "mpqa": _reviews(2),
    "subj": [
        {"text": "a dull film .", "label": 1, "label_text": "subjective"},
        {"text": "two people meet .", "label": 0, "label_text": "objective"},
    ],
    "trec": [
        {"text": f"What is it , {label} ?", "coarse_label": label, "fine_label": label}
        for label in range(6)
    ],
    "CoLA": [
        {"sentence": "They is here.", "label": 0, "idx": 0},
        {"sentence": "They are here.", "label": 1, "idx": 1},
    ],
    "MNLI": _pairs("premise", "hypothesis", 3),
    "SNLI": _pairs("premise", "hypothesis", 3) + [
        {"premise": "A film.", "hypothesis": "None.", "label": -1}
    ],
    "QNLI": _pairs("question", "sentence", 2),
    "RTE": _pairs("sentence1", "sentence2", 2),
    "MRPC": _pairs("sentence1", "sentence2", 2),
    "QQP": _pairs("question1", "question2", 2),
}  # fmt: skip

ROWS = {"superglue": SUPERGLUE, "kshot": KSHOT}

_WORDS = """
    terrible great bad okay good Yes No Maybe incorrect correct subjective objective Expression
    Entity Description Human Location Number film drink
""".split()
_SIZE = 420


def write_files(folder: Path, suite: str, task: str, split: str, *, copies: int = 4) -> Path:
    """Write a task's training and test files to ``folder/<task>``; return the folder."""
    rows = [row for _ in range(copies) for row in ROWS[suite][task]]
    place = folder / task
    place.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    for name in ("train", split):
        (place / f"{name}.jsonl").write_text(text)
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer like RoBERTa's, in which the label words are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f"it {word} it\n{word}\n" for word in _WORDS] * 50
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
        model_max_length=192,
    )


_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SHAPE: dict[str, Any] = {
    "vocab_size": 448, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip


@seeded
def model_of(kind: str) -> PreTrainedModel:
    """A random model of a kind: opt, gpt2, t5, roberta or bert."""
    if kind == "opt":
        return OPTForCausalLM(OPTConfig(**_SHAPE, ffn_dim=32, word_embed_proj_dim=16, **_IDS))
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=448, n_embd=16, n_layer=2, n_head=2, n_positions=256, **_IDS)
        )
    if kind == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=448, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
            )
        )  # fmt: skip
    if kind == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**_SHAPE, intermediate_size=32, **_IDS))
    return BertForMaskedLM(BertConfig(**_SHAPE, intermediate_size=32, pad_token_id=0))


def write_model(folder: Path, kind: str) -> Path:
    """Save a tiny model with its tokenizer; return where."""
    place = folder / kind
    if not place.is_dir():
        model_of(kind).save_pretrained(place)
        byte_tokenizer().save_pretrained(place)
    return place
