"""From the raw text of a post to a caption: cleaned, masked, and judged.

The order is that of `STEPS` and is repeated until nothing changes any more (an entity may hide a tag, a link an empty
pair of brackets), so cleaning a clean caption changes nothing. What OpenPath did is not published but for two things:
its captions have no hashtags, links and mentions, and those of tweets and replies with a question mark were dropped.
All else is ours.

What the steps decide where there was a choice:

- Mojibake is repaired with ftfy, quotes are straightened, ligatures and wide letters made plain; bold and italic
  "letters" of the mathematical plane too. Superscripts, fractions and the signs for times, degree, at least and plus or
  minus stay as they are.
- The Greek mu before a unit becomes the micro sign, so that a length has one spelling; a heavy chain keeps its Greek.
- Only known HTML tags and entities with their semicolon go: "<5 cm", "CD3 < CD20" and "H&E" are text.
- Emoji go, but those that say something in a caption become plain signs: arrows, plus, minus, times, the signs for
  female and male, digits in boxes; an exclamation or question mark stays one. Check marks and crosses go, for most
  authors mark lists with them and few mean positive and negative. The signs of copyright and trade marks go.
- A mention goes with the word that credits it ("via @name", "cc @a @b"). "@40x" is a magnification.
- A hashtag goes only where it is known as a label of the community; see `hashtags`.
- Of repeated marks one is kept, but "+++" is a grade. Lines are joined.
- Dates, ages over 89, names, numbers and addresses are masked; see `masks`.

Words are counted as the paper counts them, between blanks; a token of a mask is none.
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from data_prep.text.boilerplate import remove_boilerplate
from data_prep.text.cleaning import (
    plain_signs,
    remove_markup,
    remove_mentions,
    remove_urls,
    repair_encoding,
    tidy,
)
from data_prep.text.hashtags import MODES, TOPIC_TAGS, resolve_hashtags
from data_prep.text.language import DEFAULT_LANGUAGES, judge_language
from data_prep.text.masks import mask_identifiers


class TextError(ValueError):
    """The settings of the text stage cannot be used; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How captions are cleaned and which are dropped.

    Attributes:
        hashtags: "trailing", "unhash" or "strip"; see `hashtags.resolve_hashtags`. Ours: "trailing".
        strip_all_hashtags: With "strip": diagnoses are deleted too. Ours: no.
        topic_tags: More tags, without the sign, that are labels and no content. Ours: none.
        questions: "drop" or "keep" captions with a question mark. OpenPath: drop, but keep for LAION.
        min_words: Ours: 1, for "#GIST" is a caption.
        max_words: Ours: 400, an Instagram caption of 2,200 characters.
        min_letters: Ours: 3.
        max_characters: Of the raw text; a longer one is not read. Ours: 20,000.
        language: The one that is wanted, ISO 639-1, or "" for any. OpenPath: English.
        languages: What the detector chooses among; see `language.DEFAULT_LANGUAGES`.
        language_threshold: Probability, 0-1, at which a foreign language is believed. Ours: 0.9.
        min_language_letters: Of a text whose language is judged. Ours: 30.
        boilerplate: More regular expressions to take out, case-insensitive.
        mask: Mask dates, ages over 89, names, numbers and addresses. Ours: yes.
        mask_with: "token" puts "[date]" and the like in their place, "nothing" nothing. Ours: token.
    """

    hashtags: str = "trailing"
    strip_all_hashtags: bool = False
    topic_tags: tuple[str, ...] = ()
    questions: str = "drop"
    min_words: int = 1
    max_words: int = 400
    min_letters: int = 3
    max_characters: int = 20_000
    language: str = "en"
    languages: tuple[str, ...] = DEFAULT_LANGUAGES
    language_threshold: float = 0.9
    min_language_letters: int = 30
    boilerplate: tuple[str, ...] = ()
    mask: bool = True
    mask_with: str = "token"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            TextError: A word that is not a choice, limits the wrong way round, or an expression that is none.
        """
        for name, choices in (
            ("hashtags", MODES),
            ("questions", ("drop", "keep")),
            ("mask_with", ("token", "nothing")),
        ):
            if getattr(self, name) not in choices:
                raise TextError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if self.strip_all_hashtags and self.hashtags != "strip":
            raise TextError(f'strip_all_hashtags needs hashtags="strip", which is {self.hashtags!r}')
        if not 0 <= self.min_words <= self.max_words:
            raise TextError(f"min_words={self.min_words}, max_words={self.max_words}: expected 0 <= min <= max")
        if not 0 < self.language_threshold <= 1:
            raise TextError(
                f"language_threshold={self.language_threshold}: expected a probability, above 0 and at most 1"
            )
        _compiled(self.boilerplate)


@dataclasses.dataclass(frozen=True)
class CleanText:
    """A cleaned caption and the judgement of it.

    Attributes:
        caption: Also of what is dropped.
        reason: Empty where it is kept; else "empty", "boilerplate" (nothing else was there), "too_long", "too_short",
            "language", "question" or "unstable" (cleaning came to no end, which only hostile text brings about).
        detail: What was found, without the text.
        notes: "words"; "masked_dates", "masked_ages", "masked_names", "masked_numbers", "masked_emails" and
            "boilerplate" where there were any; "language", "language_judge" and "language_probability" where told.
    """

    caption: str
    reason: str = ""
    detail: str = ""
    notes: dict[str, int | float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Work:
    """What the steps are told beside the text, and what they count."""

    settings: TextSettings
    hashtags: Sequence[str]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)

    def count(self, name: str, number: int) -> None:
        if number:
            self.counts[name] = self.counts.get(name, 0) + number


def _remove_boilerplate(text: str, work: _Work) -> str:
    text, count = remove_boilerplate(text, _compiled(work.settings.boilerplate))
    work.count("boilerplate", count)
    return text


def _resolve_hashtags(text: str, work: _Work) -> str:
    return resolve_hashtags(
        text,
        work.settings.hashtags,
        strip_all=work.settings.strip_all_hashtags,
        topic_tags=_topic_tags(work.settings.topic_tags),
        known=work.hashtags,
    )


def _mask(text: str, work: _Work) -> str:
    if not work.settings.mask:
        return text
    text, counts = mask_identifiers(text, with_token=work.settings.mask_with == "token")
    for kind, number in counts.items():
        work.count(f"masked_{kind}s", number)
    return text


STEPS: tuple[tuple[str, Callable[[str, _Work], str]], ...] = (
    ("encoding", lambda text, work: repair_encoding(text)),
    ("markup", lambda text, work: remove_markup(text)),
    ("urls", lambda text, work: remove_urls(text)),
    ("signs", lambda text, work: plain_signs(text)),
    ("mentions", lambda text, work: remove_mentions(text)),
    ("boilerplate", _remove_boilerplate),
    ("hashtags", _resolve_hashtags),
    ("mask", _mask),
    ("tidy", lambda text, work: tidy(text)),
)
"""Name and function of each step, in the order in which they are taken; repeated until the text stays as it is."""
_MAX_PASSES = 8  # two are the rule

_QUESTION = re.compile("[?？؟⁇⁈⁉‽¿]")  # noqa: RUF001 # the signs of other scripts are meant
_MASK_TOKEN = re.compile(r"\[(?:date|age|name|number|email)\]")


def clean_text(
    raw: str, settings: TextSettings | None = None, *, language: str = "", hashtags: Sequence[str] = ()
) -> CleanText:
    """Clean, mask and judge the text of a post; also for alternative texts.

    Args:
        raw: As posted.
        settings: Default: `TextSettings()`.
        language: The platform's code, or "".
        hashtags: The platform's list of the post's tags, without the sign.

    Returns:
        The caption, with the reason where it is to be dropped. A kept caption, cleaned again, is the same.
    """
    settings = settings or TextSettings()
    if len(raw) > settings.max_characters:
        return CleanText("", "too_long", f"{len(raw)} characters > {settings.max_characters}")
    work = _Work(settings, hashtags)
    text = raw
    for _ in range(_MAX_PASSES):
        before = text
        for _, step in STEPS:
            text = step(text, work)
        if text == before:
            break
    else:
        return CleanText(text, "unstable", f"still changing after {_MAX_PASSES} passes")
    return _judge(text, language, work)


def _judge(caption: str, language: str, work: _Work) -> CleanText:
    settings = work.settings
    counted = _MASK_TOKEN.sub(" ", caption)
    words = len(counted.split())
    letters = sum(map(str.isalpha, counted))
    notes: dict[str, Any] = {**work.counts, "words": words}
    if not caption or not letters:
        reason = "boilerplate" if "boilerplate" in work.counts else "empty"
        return CleanText(caption, reason, "nothing is left", notes)
    if settings.language:
        verdict = judge_language(
            caption,
            language,
            wanted=settings.language,
            candidates=settings.languages,
            threshold=settings.language_threshold,
            min_letters=settings.min_language_letters,
        )
        if verdict.judge:
            notes |= {"language": verdict.language, "language_judge": verdict.judge}
        if verdict.judge == "detector":
            notes["language_probability"] = verdict.probability
        if verdict.is_foreign:
            detail = f"{verdict.language} by the {verdict.judge}, probability {verdict.probability:g}"
            return CleanText(caption, "language", detail, notes)
    if settings.questions == "drop" and _QUESTION.search(caption):
        return CleanText(caption, "question", "a question mark", notes)
    if words < settings.min_words or letters < settings.min_letters:
        return CleanText(caption, "too_short", f"{words} words, {letters} letters", notes)
    if words > settings.max_words:
        return CleanText(caption, "too_long", f"{words} words > {settings.max_words}", notes)
    return CleanText(caption, notes=notes)


def caption_key(caption: str) -> str:
    """Return a caption's letters and digits alone, without case, to count captions that say the same."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    return "".join(character for character in folded if character.isalnum())


@functools.cache
def _topic_tags(more: tuple[str, ...]) -> frozenset[str]:
    return TOPIC_TAGS | {tag.lstrip("#").lower() for tag in more}


@functools.cache
def _compiled(expressions: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    try:
        return tuple(re.compile(expression, re.IGNORECASE | re.MULTILINE) for expression in expressions)
    except re.error as error:
        raise TextError(f"boilerplate: {error.pattern!r} is no regular expression: {error}") from error
