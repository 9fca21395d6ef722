"""Words of texts."""


def word_pairs(text: str) -> list[tuple[str, str]]:
    """Return the pairs of neighbouring words of a text, what spaces separate."""
    words = text.split()
    return list(zip(words, words[1:], strict=False))
