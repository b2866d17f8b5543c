"""In which language a caption is, as a soft gate: what cannot be told is kept.

The platform's own judgement comes first, then py3langid, restricted to the languages that are met. Neither is asked
about a short text: "adenocarcinoma in situ" is Latin, and Italian to a detector, and a good English caption.
"""

import dataclasses
import functools
import re

from py3langid.langid import MODEL_FILE, LanguageIdentifier

# What X says where it found no language (X API v2, "lang"; ISO 639-2 and its private range): undetermined, nothing to
# read, several, uncoded; media, hashtags, mentions, too short, cashtags only.
UNKNOWN_CODES = frozenset({"", "und", "zxx", "mul", "mis", "qme", "qht", "qam", "qst", "qct"})

# Ours: what pathologists post in, most of all. The detector knows 140, and takes short English for rare ones of them.
DEFAULT_LANGUAGES = tuple("ar ca de en es fa fr hi id it ja ko nl pl pt ro ru tr uk zh".split())  # noqa: SIM905 # twenty lines would tell no more

# Latin beside the wanted language: the names of diseases, nature's own language in pathology.
ALWAYS_WELCOME = "la"

_MASKED = re.compile(r"\[(?:date|name|number|email)\]")


@dataclasses.dataclass(frozen=True)
class LanguageVerdict:
    """What a caption's language is taken to be.

    Attributes:
        language: Code; empty where nobody could tell.
        judge: "platform", "detector", or "" where neither was asked.
        probability: Of `language` among the detector's languages, 0-1; 1 where the platform said it.
        is_foreign: The caption is to be dropped.
    """

    language: str = ""
    judge: str = ""
    probability: float = 1.0
    is_foreign: bool = False


def judge_language(
    text: str,
    platform: str = "",
    *,
    wanted: str = "en",
    candidates: tuple[str, ...],
    threshold: float,
    min_letters: int,
) -> LanguageVerdict:
    """Judge the language of a cleaned caption.

    A text is foreign where the platform says so, or where the detector is sure of it; a text of less than
    `min_letters` letters only where most of them are of another script than Latin (or Greek, for its signs).

    Args:
        text: Cleaned; tokens of masks are not read.
        platform: The platform's code ("en", "en-GB", "und"), or "".
        wanted: ISO 639-1 code.
        candidates: What the detector chooses among; `wanted` and Latin are always among them.
        threshold: A foreign language must have this probability, 0-1.
        min_letters: Of the text, for platform and detector to be believed.
    """
    platform = re.split(r"[-_]", platform.strip().lower())[0]
    if platform == wanted:
        return LanguageVerdict(platform, "platform")
    text = _MASKED.sub(" ", text)
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return LanguageVerdict()
    readable = len(letters) >= min_letters or 2 * sum(map(_is_latin_or_greek, letters)) < len(letters)
    if platform not in UNKNOWN_CODES:
        return LanguageVerdict(platform, "platform", is_foreign=readable)
    if not readable:
        return LanguageVerdict()
    language, probability = _detector(tuple(sorted({*candidates, wanted, ALWAYS_WELCOME}))).classify(text)
    is_foreign = language not in (wanted, ALWAYS_WELCOME) and probability >= threshold
    return LanguageVerdict(language, "detector", round(probability, 4), is_foreign)


def _is_latin_or_greek(character: str) -> bool:
    return character < "\u0400" or "\u1e00" <= character < "\u2000"


@functools.cache
def _detector(languages: tuple[str, ...]) -> LanguageIdentifier:
    detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    detector.set_languages(languages)
    return detector
