"""Prompt templates: text with the columns of a record in braces, and its tokens."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Real
from string import Formatter
from typing import Any

from transformers import PreTrainedTokenizerBase

MASK = "mask"
"""Placeholder of the mask token of masked language models."""

_PLACE = "adazeta-place-of-the-prompt"


def prompt_template(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, **options: Any
) -> "Template":
    """Make the template of a prompt that a word follows, or that has a mask in the word's place.

    A word brings its own space, after another one it would be another token: spaces just before its
    place are dropped.

    Args:
        text: see :class:`Template`.
        tokenizer: see :class:`Template`.
        max_length: see :class:`Template`.
        **options: see :class:`Template`.

    Raises:
        ValueError: see :class:`Template`; or no column is in it.
    """
    before, mask, after = text.partition(f"{{{MASK}}}")
    stripped = f"{before.rstrip(' ')}{mask}{after}"
    template = Template(stripped, tokenizer, max_length=max_length, **options)
    if not template.columns:
        raise ValueError(
            f"template {text!r} has no column in braces, so every prompt would be the "
            "same; e.g. '{text} It was'"
        )
    return template


class Template:
    """Text such as ``"{premise}? {mask}, {hypothesis}"``; ``{{`` and ``}}`` are literal braces.

    Args:
        text: the template. ``{mask}`` stands for the tokenizer's mask token, any other name in
            braces for a column of the record.
        tokenizer: used with its special tokens, but for those at the end of a template without
            ``{mask}``: a causal model goes on from there.
        max_length: longest result in tokens; longer ones have their columns' text cut at the end
            (never the template). None: unlimited.
        strip: drop white space around the columns' text; else it stays as it is.
        chat: make the text a user's message by the tokenizer's chat template, and let it end where
            the assistant's answer begins.
        closed: keep the tokenizer's special tokens at the end also without ``{mask}``: an encoder
            reads the text, and nothing follows it.
        shots: demonstrations before it, each the text of a prompt and of its answer; a blank line
            follows each, and with ``chat`` they are earlier turns. They are never cut.

    Attributes:
        columns: names of the columns, in the order of the template.
        before_word: the text, names of columns included, that a label word or an answer follows.

    Raises:
        ValueError: the template is malformed, or asks for a mask or a chat template that the
            tokenizer lacks.
    """

    def __init__(
        self,
        text: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        strip: bool = False,
        chat: bool = False,
        closed: bool = False,
        shots: Sequence[Sequence[str]] = (),
    ) -> None:
        self.text = text
        self.closed = closed
        self.chat = chat
        self.shots = [(prompt, answer) for prompt, answer in shots]
        self.strip = strip
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._parts = _parse(text)
        names = [name for _, name in self._parts if name is not None]
        self.columns = list(dict.fromkeys(name for name in names if name != MASK))
        self.masked = MASK in names
        if names.count(MASK) > 1:
            raise ValueError(f"template {text!r} has more than one {{mask}}; one is supported")
        if self.masked and tokenizer.mask_token is None:
            raise ValueError(
                f"template {text!r} has {{mask}}, but the tokenizer has no mask token; leave it "
                "out for causal language models, which predict what follows the template"
            )
        if self.masked and chat:
            raise ValueError("{mask} has no place in a chat; set chat to false")
        first, last = self._frame()
        self._parts = _framed(self._parts, first, last)
        self.before_word = text.partition(f"{{{MASK}}}")[0] + last

    def options(self) -> dict[str, Any]:
        """Return the arguments beside text and length that are not at their defaults, as JSON."""
        shots = [list(pair) for pair in self.shots]
        return {**({"chat": True} if self.chat else {}), **({"shots": shots} if shots else {})}

    def encode(self, record: Mapping[str, Any], *, reserve: int = 0) -> list[int]:
        """Return the token ids of a record's prompt.

        Args:
            record: values of the columns.
            reserve: tokens of ``max_length`` to leave free.

        Raises:
            ValueError: a column is missing, or the template alone is too long.
        """
        values = self.values(record)
        ids = self.tokens(self.render(values))
        if self.max_length is None or len(ids) <= self.max_length - reserve:
            return ids
        # Texts are cut to a common number of characters, so that the longest lose first; cutting
        # text instead of tokens keeps the tokens at the seam those of ordinary text.
        room = self.max_length - reserve
        low, high = -1, max(map(len, values.values()), default=0)
        while high - low > 1:
            middle = (low + high) // 2
            shorter = {name: value[:middle] for name, value in values.items()}
            found = self.tokens(self.render(shorter))
            if len(found) <= room:
                low, ids = middle, found
            else:
                high = middle
        if low < 0:
            raise ValueError(
                f"the template {self.text!r} alone takes more than the {room} tokens that "
                f"max_length={self.max_length} leaves; raise max_length"
            )
        return ids

    def values(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Return the text of the template's columns.

        Raises:
            ValueError: a column is missing, or its value is neither text nor a finite number.
        """
        missing = [name for name in self.columns if name not in record]
        if missing:
            raise ValueError(
                f"no column {missing[0]!r}, which the template {self.text!r} needs; there are "
                f"{', '.join(map(repr, record))}"
            )
        values = {name: _text(name, record[name]) for name in self.columns}
        if self.strip:
            values = {name: value.strip() for name, value in values.items()}
        if self.masked:  # a mask token in a text would be taken for the template's
            mask = self.tokenizer.mask_token
            values = {name: value.replace(mask, "") for name, value in values.items()}
        if self.chat:  # so would the tokens that end a turn
            for token in self.tokenizer.all_special_tokens:
                values = {name: value.replace(token, "") for name, value in values.items()}
        return values

    def render(self, values: Mapping[str, str], *, mask: str | None = None) -> str:
        """Fill in the columns, and the mask token or what is given in its place."""
        mask = self.tokenizer.mask_token if mask is None else mask
        filled = {**values, MASK: mask}
        return "".join(
            literal + ("" if name is None else str(filled[name])) for literal, name in self._parts
        )

    def tokens(self, text: str) -> list[int]:
        """Tokenize, with the special tokens that belong around a prompt."""
        before, after = self._special
        # It would warn of texts that are too long; they are cut here.
        quiet: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        ids: list[int] = self.tokenizer(text, **quiet)["input_ids"]
        return [*before, *ids, *(after if self.masked or self.closed else ())]

    def suffix_tokens(self) -> list[int]:
        """Return the tokens of the text after the last column.

        Raises:
            ValueError: the template is for masked models, or ends with a column.
        """
        text = self._parts[-1][0] if self._parts and self._parts[-1][1] is None else ""
        if self.masked or not text or not self.columns:
            raise ValueError(
                f"template {self.text!r} has no text after a column of a causal model's prompt, on "
                "which adapters could act alone"
            )
        return self.continuation(text)

    def continuation(self, text: str) -> list[int]:
        """Tokenize a text that follows another one, without special tokens.

        Some tokenizers begin every text with a space that it does not have.
        """
        quiet: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        alone, mark, joint = (
            self.tokenizer(t, **quiet)["input_ids"] for t in (text, "\n", f"\n{text}")
        )
        return list(joint[len(mark) :] if joint[: len(mark)] == mark else alone)

    def _frame(self) -> tuple[str, str]:
        """Return the text before and after the template's own: demonstrations, and the chat's."""
        if not self.chat:
            return "".join(f"{prompt}{answer}\n\n" for prompt, answer in self.shots), ""
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                "chat is true, but the tokenizer has no chat template; set chat to false, or take "
                "a model that was made for chats"
            )
        turns = []
        for prompt, answer in self.shots:
            turns.append({"role": "user", "content": prompt})
            turns.append({"role": "assistant", "content": answer.strip()})
        turns.append({"role": "user", "content": _PLACE})
        whole = str(
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )
        if whole.count(_PLACE) != 1:
            raise ValueError(
                "the tokenizer's chat template does not show a user's message as it is, so no "
                "prompt can be put in its place; set chat to false"
            )
        before, _, after = whole.partition(_PLACE)
        return before, after

    @cached_property
    def _special(self) -> tuple[list[int], list[int]]:
        """Tokens that the tokenizer puts before and after a text."""
        if self.chat:
            return [], []  # the chat template writes them itself
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return [], []


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"column {name!r} holds {value[error.start : error.end]!r}, half of a pair that "
                "makes one character and no text by itself; write the whole character or leave it "
                "out"
            ) from None
        return value
    if value is None or value != value:  # NaN
        raise ValueError(
            f"column {name!r} holds {value!r}, which is no text: the value is missing; fill it in "
            "or remove the example"
        )
    if not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value):
        return str(value)
    raise ValueError(
        f"column {name!r} holds {value!r}, which is no text; write it as text, in quotes"
    )


def _parse(text: str) -> list[tuple[str, str | None]]:
    """Split into (literal text, name of the placeholder after it)."""
    try:
        fields = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"template {text!r} is malformed: {error}") from None
    for _, name, spec, conversion in fields:
        if name == "" or spec or conversion:
            raise ValueError(
                f"template {text!r}: placeholders are plain column names in braces, e.g. {{text}}"
            )
    return [(literal, name) for literal, name, _, _ in fields]


def _framed(
    parts: list[tuple[str, str | None]], before: str, after: str
) -> list[tuple[str, str | None]]:
    """Put text before and after the parts of a template."""
    whole: list[tuple[str, str | None]] = [(before, None)]
    if parts:
        whole = [(before + parts[0][0], parts[0][1]), *parts[1:]]
    if not after:
        return whole if parts or before else []
    literal, name = whole[-1]
    if name is None:
        return [*whole[:-1], (literal + after, None)]
    whole.append((after, None))
    return whole
