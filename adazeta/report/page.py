"""The page on runs: one HTML file that fetches nothing and runs no script."""

from collections.abc import Mapping, Sequence
from html import escape

from adazeta.report.curves import Figure, figures
from adazeta.report.figures import by_evaluations, by_step, colour, draw, last_value, number_text
from adazeta.report.gathering import Completion, RunRecord
from adazeta.report.results import facts, results, table
from adazeta.report.settings import differing, rows, shown
from adazeta.report.style import STYLE
from adazeta.version import __version__

_PROMPTS = 30  # whose completions are shown


def page(runs: Sequence[RunRecord]) -> str:
    """Return the page on one run, or on several compared.

    What comes from files of the runs is escaped, and the page forbids its browser to load
    anything.

    Args:
        runs: at least one, with different names.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    body = [
        f"<header><h1>{escape(title)}</h1>{_about(runs)}</header>",
        _problems(runs),
        _section("Results", _table(table([results(run) for run in runs]), runs)),
        _curves(runs),
        *(_completions(run, alone=len(runs) == 1) for run in runs),
        _section("Settings that differ", _differing(runs)) if len(runs) > 1 else "",
        *(_settings(run, alone=len(runs) == 1) for run in runs),
    ]
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"/>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>"
        '<input type="radio" name="axis" id="steps" checked="checked"/>'
        '<input type="radio" name="axis" id="evaluations"/>'
        f"<main>{''.join(filter(None, body))}"
        f"<footer>Written by adazeta {escape(__version__)}.</footer></main></body></html>\n"
    )


def _about(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        return _table(table([facts(run) for run in runs]), runs)
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts(runs[0]).items()
    )
    return f'<dl class="facts">{items}</dl>'


def _problems(runs: Sequence[RunRecord]) -> str:
    found = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    return "".join(f'<p class="problem">{escape(one)}</p>' for one in found)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _table(lines: Mapping[str, Sequence[str]], runs: Sequence[RunRecord]) -> str:
    """Return a table with a column for each run."""
    if not lines:
        return ""
    head = ""
    if len(runs) > 1:
        names = "".join(
            f'<th scope="col"><i class="key {colour(place)}"></i>{escape(run.name)}</th>'
            for place, run in enumerate(runs)
        )
        head = f"<thead><tr><td></td>{names}</tr></thead>"
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>"
        for name, values in lines.items()
    )
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _curves(runs: Sequence[RunRecord]) -> str:
    every = figures(runs)
    moving = [one for one in every if not all(series.constant for series in one.series)]
    switch = (
        '<p class="switch">Horizontal axis: <label for="steps">steps</label>'
        '<label for="evaluations">evaluations of a batch</label></p>'
    )
    drawn = "".join(map(_figure, moving))
    still = {
        one.title: [
            number_text(series.points[0].value) if series.points else "–"
            for series in (one.series if len(runs) > 1 else one.series[:1])
        ]
        for one in every
        if one not in moving
    }
    text = f'{switch}<div class="figures">{drawn}</div>' if drawn else ""
    if still:
        text += f"<h3>The same at every step</h3>{_table(still, runs)}"
    return _section("Curves", text)


def _figure(figure: Figure) -> str:
    keys = [
        f'<li><i class="key {colour(series.colour)}"></i>{escape(series.label)} '
        f"<b>{last_value(series)}</b></li>"
        for series in figure.series
        if series.points
    ]
    keys += [
        f'<li><i class="key level l{place}"></i>{escape(label)} <b>{number_text(value)}</b></li>'
        for place, (label, value) in enumerate(figure.levels.items())
    ]
    return (
        f"<figure><figcaption>{escape(figure.title)}</figcaption>"
        f'<ul class="keys">{"".join(keys)}</ul>'
        f'<div class="by-steps">{draw(figure, "step", by_step)}</div>'
        f'<div class="by-evaluations">{draw(figure, "evaluations", by_evaluations)}</div></figure>'
    )


def _completions(run: RunRecord, *, alone: bool) -> str:
    by_prompt: dict[str, list[Completion]] = {}
    for one in run.completions:
        by_prompt.setdefault(one.prompt, []).append(one)
    if not by_prompt:
        return ""
    told = "".join(_told(prompt, by_prompt[prompt]) for prompt in list(by_prompt)[:_PROMPTS])
    more = len(by_prompt) - _PROMPTS
    if more > 0:
        told += f"<p>{more:,} more prompts are in completions.jsonl.</p>"
    title = "Completions before and now"
    return _section(title if alone else f"{title}: {run.name}", told)


def _told(prompt: str, completions: Sequence[Completion]) -> str:
    first, last = completions[0], completions[-1]
    shown_ones = [("before" if first.step == 0 else f"step {first.step:,}", first)]
    if last is not first:
        shown_ones.append((f"now (step {last.step:,})", last))
    sides = "".join(
        f'<div><p class="when">{escape(when)}{_reward(one)}</p>'
        f'<p class="text">{escape(one.completion.strip())}</p></div>'
        for when, one in shown_ones
    )
    return (
        f'<article><p class="prompt">{escape(prompt)}</p><div class="sides">{sides}</div></article>'
    )


def _reward(one: Completion) -> str:
    if one.total is None:
        return ""
    each = ""
    if len(one.rewards) > 1:
        each = ", ".join(
            f"{name} {'none' if value is None else _signed(value)}"
            for name, value in one.rewards.items()
        )
        each = f" <span>({escape(each)})</span>"
    return f" <b>{_signed(one.total)}</b>{each}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _differing(runs: Sequence[RunRecord]) -> str:
    found = {name: list(map(shown, values)) for name, values in differing(runs).items()}
    return _table(found, runs) or "<p>The runs have the same settings.</p>"


def _settings(run: RunRecord, *, alone: bool) -> str:
    every = rows(run)
    if not every:
        return ""
    changed = [row for row in every if row.changed]
    rest = [row for row in every if not row.changed]
    known = bool(run.settings)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("value", "default")[: 1 + known])
    lines = "".join(
        f'<tr><th scope="row"><code>{escape(row.name)}</code></th><td>{_value(row.value)}</td>'
        + (f'<td class="weak">{_value(row.default)}</td>' if known else "")
        + "</tr>"
        for row in changed
    )
    text = (
        f'<div class="scroll"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
    if not known:
        text = f"<p>Without config.yaml, this is what the probe log tells.</p>{text}"
    if rest:
        lines = "".join(
            f'<tr><th scope="row"><code>{escape(row.name)}</code></th>'
            f"<td>{_value(row.value)}</td></tr>"
            for row in rest
        )
        text += (
            f"<details><summary>{len(rest)} settings at their defaults</summary>"
            f'<div class="scroll"><table><tbody>{lines}</tbody></table></div></details>'
        )
    if alone:
        return _section("Settings", text)
    summary = f"<summary>Settings: {escape(run.name)}</summary>"
    return f"<section><details>{summary}{text}</details></section>"


def _value(value: object) -> str:
    return escape(shown(value))
