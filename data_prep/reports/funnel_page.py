"""`funnel.html`: the funnel, what the set is made of and the proof of its splits, on one page that needs nothing else.

No script, nothing loaded, everything escaped. What people wrote does not stand on it, but the hashtags of kept pairs;
each thumbnail carries the sha256 of its stored image (`data-digest`), so that a takedown finds it.
"""

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.curation.pair import KEPT
from data_prep.reports.composition import Composition, median_of
from data_prep.reports.flat_rows import NOTHING, flat_rows, settings_rows
from data_prep.reports.funnel import Funnel, Step
from data_prep.reports.svg_charts import DROPPED_COLOUR, KEPT_COLOUR, bar_chart, column_chart, step_chart
from data_prep.reports.thumbnails import GroupKey, Thumbnail

FUNNEL_PAGE_NAME = "funnel.html"
_MAX_WORDS = 60  # longer captions share the last column
_MAX_MONTHS = 360

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #f6f8fa; margin: 0; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 .2rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
section { background: #fff; border: 1px solid #d1d9e0; border-radius: 8px; padding: 1.2rem 1.4rem; margin: 1.2rem 0; }
.faint { color: #59636e; }
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.numbers div { flex: 1 1 8rem; background: #fff; border: 1px solid #d1d9e0; border-radius: 8px; padding: .7rem 1rem; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
svg { display: block; max-width: 100%; height: auto; }
.table { overflow-x: auto; }
.side { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e3e8ed; text-align: right; vertical-align: top; }
/* break-word: a word is broken only where it fills a line by itself, not to make room for more columns */
th.words, td.words { text-align: left; overflow-wrap: break-word; }
thead th { color: #59636e; font-weight: 600; }
tbody th { font-weight: 600; }
.thumbnails { display: flex; flex-wrap: wrap; gap: 6px; margin: .3rem 0 .8rem; }
.thumbnails img { display: block; width: 84px; height: 84px; object-fit: cover; border-radius: 4px; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
"""


def funnel_page(
    *,
    title: str,
    funnel: Funnel,
    composition: Composition,
    thumbnails: Mapping[GroupKey, Sequence[Thumbnail]],
    proof: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> str:
    """Return the page.

    Args:
        title: Name of the dataset.
        funnel: Counted and reconciled.
        composition: Of the kept pairs.
        thumbnails: From `choose_thumbnails`, which asked what may be shown.
        proof: What the splits share, from `split.prove_disjoint`.
        settings: All settings with their values, and versions; nested as they are.
    """
    sections = [
        _numbers(funnel, composition),
        _section("Funnel", _funnel(funnel)),
        _section("Reasons", _reasons(funnel, thumbnails)),
        _section("Examples of what is kept", _examples(funnel, thumbnails)),
        _section("What the set is made of", _composition(composition)),
        _section("Splits", _splits(composition, proof)),
        _section(
            "Settings", _table("All settings and versions", ("setting", "value"), settings_rows(settings), words=2)
        ),
    ]
    escaped = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # should a text ever come through unescaped, it can load and run nothing
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escaped}: funnel</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escaped}</h1>\n"
        '<p class="faint">Where every post and every pair went: at each stage, in = kept + dropped, source by source. '
        "Research only, not for clinical use.</p>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{body}</section>"


def _numbers(funnel: Funnel, composition: Composition) -> str:
    posts, pairs = funnel.totals("post"), funnel.totals("pair")
    numbers = [
        ("rows read", posts[0].taken if posts else 0),
        ("posts that gave a pair", posts[-1].kept if posts else 0),
        ("pairs made", pairs[0].kept if pairs else 0),
        ("pairs kept", funnel.kept_pairs),
        ("different images", composition.images),
    ]
    cells = "".join(f"<div><b>{number:,}</b>{words}</div>" for words, number in numbers)
    return f'<div class="numbers">{cells}</div>'


def _funnel(funnel: Funnel) -> str:
    parts = [
        '<p class="key faint">Each bar is what came into the stage.'
        f'<i style="background:{KEPT_COLOUR}"></i>kept<i style="background:{DROPPED_COLOUR}"></i>dropped</p>'
    ]
    for unit, heading in (("post", "All posts"), ("pair", "All pairs")):
        steps = funnel.totals(unit)
        if steps:
            parts.append(f"<h3>{heading}</h3>{step_chart(steps, label=f'{heading} by stage')}")
    for unit, heading in (("post", "Posts by source"), ("pair", "Pairs by source")):
        tables = [_step_table(source, steps) for (of, source), steps in funnel.steps.items() if of == unit]
        parts.append(f'<h3>{heading}</h3><div class="side">{"".join(tables)}</div>')
    return "".join(parts)


def _step_table(source: str, steps: Sequence[Step]) -> str:
    rows = [(s.stage, f"{s.taken:,}", f"{s.taken - s.kept:,}", f"{s.kept:,}", _share(s)) for s in steps]
    return _table(source, ("stage", "in", "dropped", "kept", "kept of in"), rows)


def _share(step: Step) -> str:
    return f"{100 * step.kept / step.taken:.1f} %" if step.taken else NOTHING


def _reasons(funnel: Funnel, thumbnails: Mapping[GroupKey, Sequence[Thumbnail]]) -> str:
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for (unit, source), steps in funnel.steps.items():
        for step in steps:
            for reason, count in step.dropped.items():
                counts.setdefault((unit, step.stage, reason), {})[source] = count
    if not counts:
        return "<p>Nothing was dropped.</p>"
    stages = [step.stage for step in (*funnel.totals("post"), *funnel.totals("pair"))]
    ordered = sorted(counts, key=lambda key: (stages.index(key[1]), key[0] == "pair", -sum(counts[key].values()), key))
    rows = [
        (stage, reason, unit, _from_sources(counts[key]), f"{sum(counts[key].values()):,}")
        for key in ordered
        for unit, stage, reason in [key]
    ]
    parts = [_table("Dropped, by reason", ("stage", "reason", "of", "from", "dropped"), rows, words=4)]
    shown = [group for group in dict.fromkeys(key[1:] for key in ordered) if group in thumbnails]
    for stage, reason in shown:
        parts.append(f"<h3>{html.escape(stage)}: {html.escape(reason)}</h3>")
        parts.append(_pictures(thumbnails[stage, reason], f"dropped at {stage}: {reason}"))
    parts.append('<p class="faint">No picture is shown where it might show what must not be shown.</p>')
    return "".join(parts)


def _from_sources(counts: Mapping[str, int]) -> str:
    """The sources by their share: a column for each would be a table of mostly zeros, wider than the page."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{source} {count:,}" for source, count in ordered)


def _examples(funnel: Funnel, thumbnails: Mapping[GroupKey, Sequence[Thumbnail]]) -> str:
    parts = []
    for source in sorted({source for sources in funnel.splits.values() for source in sources}):
        if (KEPT, source) in thumbnails:
            parts.append(f"<h3>{html.escape(source)}</h3>{_pictures(thumbnails[KEPT, source], f'kept, from {source}')}")
    return "".join(parts) or "<p>There are none to show.</p>"


def _pictures(thumbnails: Sequence[Thumbnail], alt: str) -> str:
    images = "".join(
        f'<img data-digest="{html.escape(one.clean_digest)}" alt="{html.escape(alt)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(one.jpeg).decode()}">'
        for one in thumbnails
    )
    return f'<div class="thumbnails">{images}</div>'


def _composition(composition: Composition) -> str:
    parts = ["<h3>Words per caption</h3>"]
    for source, counts in composition.words.items():
        parts.append(f'<p class="faint">{html.escape(source)}: {sum(counts.values()):,} captions</p>')
        parts.append(_words_chart(source, counts))
    if composition.hashtags:
        more = composition.distinct_hashtags - len(composition.hashtags)
        parts.append(f"<h3>Pairs per hashtag{f' (and {more:,} rarer ones)' if more else ''}</h3>")
        parts.append(bar_chart(list(composition.hashtags.items()), label="Pairs per hashtag"))
    known = {month: count for month, count in composition.months.items() if month}
    if known:
        unknown = composition.months.get("", 0)
        parts.append(f"<h3>Pairs per month{f' ({unknown:,} without a date)' if unknown else ''}</h3>")
        parts.append(column_chart(_months(known), label="Pairs per month"))
    licences = [(_licence(name), f"{count:,}") for name, count in composition.licences.items()]
    parts.append(_table("Pairs by licence", ("licence", "pairs"), licences))
    return "".join(parts)


def _words_chart(source: str, counts: Mapping[int, int]) -> str:
    columns = [0] * (_MAX_WORDS + 1)
    for words, count in counts.items():
        columns[min(words, _MAX_WORDS)] += count
    median = median_of(counts)
    items = [(_words_tick(words), count) for words, count in enumerate(columns)]
    # the middle of a column stands for its number of words
    line = (min(median, _MAX_WORDS) + 0.5, f"median {median:g}")
    return column_chart(items, label=f"Words per caption of {source}, median {median:g}", height=140, median=line)


def _words_tick(words: int) -> str:
    if words == _MAX_WORDS:
        return f"{words}+"
    return str(words) if words % 10 == 0 else ""


def _months(known: Mapping[str, int]) -> list[tuple[str, int]]:
    """Every month from the first to the last; only those that occur where a wrong date would make it centuries."""
    numbers = {12 * int(month[:4]) + int(month[5:]) - 1: count for month, count in known.items()}
    first, last = min(numbers), max(numbers)
    span = range(first, last + 1) if last - first < _MAX_MONTHS else sorted(numbers)
    every = max(1, len(span) // 8)
    if len(span) > 24:  # ticks at Januaries, few enough to read
        years = max(1, len(span) // 12 // 8)
        ticks = {number for number in span if number % 12 == 0 and number // 12 % years == 0}
    else:
        ticks = set(list(span)[::every])
    return [
        (f"{number // 12:04d}-{number % 12 + 1:02d}" if number in ticks else "", numbers.get(number, 0))
        for number in span
    ]


def _licence(name: str) -> str:
    return name or "(the source says nothing)"


def _splits(composition: Composition, proof: Mapping[str, Any]) -> str:
    splits = composition.splits
    totals = sum(map(Counter, splits.values()), Counter[str]())
    rows = [("all", *(f"{sum(counts.values()):,}" for counts in splits.values()), f"{totals.total():,}")]
    rows += [
        (source, *(f"{counts.get(source, 0):,}" for counts in splits.values()), f"{total:,}")
        for source, total in sorted(totals.items())
    ]
    table = _table("Kept pairs by source and split", ("source", *splits, "pairs"), rows if splits else [])
    words = "<p>How many values of each thing that could leak stand on both sides of a split.</p>"
    return table + words + _table("Proof", ("what", "found"), flat_rows(proof), words=1)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table; the first `words` columns are texts, the others numbers. The first cell of a row names it."""

    def of(column: int) -> str:
        return ' class="words"' if column < words else ""

    if not rows:
        return f'<p class="faint">{html.escape(caption)}: none.</p>'
    top = "".join(f'<th scope="col"{of(n)}>{html.escape(cell)}</th>' for n, cell in enumerate(head))
    body = "".join(
        f'<tr><th scope="row"{of(0)}>{html.escape(row[0])}</th>'
        + "".join(f"<td{of(n)}>{html.escape(cell)}</td>" for n, cell in enumerate(row[1:], start=1))
        + "</tr>\n"
        for row in rows
    )
    # a wide table scrolls by itself, and the keyboard reaches it
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )
