"""Texts for suites that train on opinions."""

from tests.helpers.tiny_models import WORDS


def made_up(count):
    """Texts whose first word tells the label."""
    first = (["red", "cat"], ["green", "dog"])
    return [
        {"text": f"{first[k % 2][k // 2 % 2]} {WORDS[-1 - k // 2]} film", "label": k % 2}
        for k in range(count)
    ]
