"""Phrases that ask, advertise or thank, and say nothing about an image: a table of expressions that are taken out."""

import re

_BLANKS = re.compile(r"[^\S\n]+")
_TO_SENTENCE_END = r"[^.!?\n]{0,80}"
_PICTURE = (
    r"(?:photo(?:graph)?s?|images?|pictures?|pics?|photography|illustrations?|vectors?|footage|videos?|clip ?art)"
)
_AGENCY = (
    r"(?:i?stock ?photo|istock|shutterstock|getty images|alamy|dreamstime|depositphotos|123rf|science photo library)"
)
_DIVIDER = r" ?[-|,\u2013—]? ?"
_REQUEST = r"(?:like|save|comment|share|follow|subscribe)"
_PLEASE = r"(?:please |kindly |(?:do not|don't) forget to |make sure to |be sure to )?"
_SPACER = "[.·•_\u2013—*~=+\u2800\u2063|-]+"
_CREDIT_END = r"(?:\.(?=\s|$)|(?=\n|\Z))"

# A caption of these words alone says nothing. In a sentence they do no harm.
_PRAISE = (
    r"oh|wow|yes|yeah|really|very|so|such|what|an?|the|is|that|this|absolutely|simply|just|truly|it|i|we|you|your|all|"
    r"for|of|to|my|thanks?|thx|many|much|great|nice|beautiful|lovely|congrat\w{0,10}|awesome|amazing|agreed?|excellent|"
    r"stunning|cool|wonderful|fantastic|gorgeous|brilliant|love|superb|interesting|good|same|here|lol|sharing|teaching|"
    r"posting|cases?|pics?|photos?|images?|pictures?|examples?|work|job|one|shots?|post|thread|dear|friends?|sir|prof|"
    r"doc|dr|again|everyone"
)


def _any_of(*alternatives: str, flags: re.RegexFlag = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), flags | re.MULTILINE)


# name -> (one of these must be in the text in lower case, the expression). All are ours.
BOILERPLATE: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    # Instagram's lines of a dot each, which push the tags below the fold, and drawn dividers.
    "spacer": (("\n",), _any_of(rf"^ ?{_SPACER}(?: {_SPACER})* ?$")),
    "repost": (
        ("rt", "mt", "post", "regram"),
        _any_of(
            r"^ ?(?:(?:RT|MT)\b ?:? ?)+",
            r"^ ?(?i:(?:re)?posted|repost|regram)\b(?: (?:from|by))? ?[•:|-]+ ?",
            flags=re.NOFLAG,
        ),
    ),
    "see_more": (
        (" more", "the full", "the article", "the paper", "the post", "click"),
        _any_of(
            r"(?: ?(?:…|\.\.\.) ?|\b)(?:(?:see|read|show|learn|find out) more"
            r"|(?:read|see) the (?:full |whole )?(?:article|paper|post|story)|click (?:here|the link|for more))"
            r"(?: (?:here|at|on|below|now))? ?(?:[:.…→>»-]+ ?)?$"
        ),
    ),
    "dangling_link": (
        ("link", "via", " here", " below"),
        _any_of(
            r"[ (]{0,2}\b(?:via|(?:link|more details|more info) (?:here|below)|(?:full |more )?link) ?"
            r"(?:[:→>»-]+ ?)?$"
        ),
    ),
    "link_in_bio": (
        ("link in", "link is in"),
        _any_of(
            r"(?:\b(?:see|check|visit|use|hit|tap|click)(?: out)?(?: on)? )?(?:\bthe )?\b(?:clickable )?link(?: is)? "
            rf"in (?:(?:the|my|our) )?(?:bio|profile|comments?)\b(?: (?:for|to)\b{_TO_SENTENCE_END})?[.!]*"
        ),
    ),
    "follow": (
        ("follow", "subscribe"),
        _any_of(
            rf"\b{_PLEASE}(?:follow|subscribe)(?: and share)?(?: (?:us|me)\b(?! up)| to (?:our|my)\b"
            r"| (?:my|our|this|the) (?:page|account|channel|profile)\b| for (?:more|daily)\b)"
            rf"{_TO_SENTENCE_END}[.!]*"
        ),
    ),
    "engagement": (
        ("like", "share", "save", "tag ", "double tap", "swipe", "comment", "notifications"),
        _any_of(
            rf"\b{_PLEASE}{_REQUEST}(?:(?:,| and| &|, and) (?:{_REQUEST}|tag)\b){{1,5}}{_TO_SENTENCE_END}[.!]*",
            r"\b(?:tag|share (?:this|it) with) (?:a|your|some) (?:friends?|colleagues?|pathologists?)\b"
            rf"{_TO_SENTENCE_END}[.!]*",
            r"\b(?:double tap|swipe (?:left|right|across|for more|to see|through))\b[^.!?\n]{0,40}[.!]*",
            r"\bturn on (?:post )?notifications\b[.!]*",
        ),
    ),
    # "DM for ten years" is a disease.
    "direct_message": (
        ("dm ", "dms "),
        _any_of(
            r"\b(?:please |kindly )?DMs? (?:(?:me|us)\b|(?:is|are) open|for (?:credits?|removals?|collabs?|promos?|"
            r"promotions?|collaborations?|inquiries|enquiries|questions|details|info|information|business|submissions?|prices?|paid)\b)"
            rf"{_TO_SENTENCE_END}[.!]*"
        ),
    ),
    # Only to the end of a short sentence; a longer one is left to the masks, which know where a name ends.
    "credit": (
        ("credit", "courtesy", "source"),
        _any_of(
            rf"\b(?:photo|image|picture|pic|video|slide)s? ?(?:credits?|courtesy|source)\b(?: ?:| of\b| to\b)"
            rf"(?:\b(?:Drs?|Prof|Mrs?|Ms|(?-i:[A-Z]))\.|[^.\n]){{0,60}}{_CREDIT_END}"
        ),
    ),
    "advert": (
        ("#ad", "#spon", "#promo", "#giveaway", "paid partnership", "advert"),
        _any_of(
            r"#(?:ad|advert|sponsored|spon|promo|promotion|giveaway)\b",
            r"\bpaid partnership(?: with)?\b",
            r"^ ?advertisement ?:? ?$",
        ),
    ),
    "stock": (
        ("stock", "royalty", "getty", "alamy", "dreamstime", "depositphotos", "123rf", "science photo"),
        _any_of(
            rf"{_DIVIDER}\b(?:royalty[- ]free|(?:free )?stock)(?: (?:and|or|&) (?:royalty[- ]free|stock))?(?: stock)? "
            rf"{_PICTURE}(?:(?:,| and| or| &)+ (?:royalty[- ]free )?(?:stock )?{_PICTURE})*\b(?: of\b)?",
            rf"{_DIVIDER}\b{_AGENCY}(?:\.com)?\b",
            r"\broyalty[- ]free\b",
        ),
    ),
    "figure_site": (
        ("scientific diagram", "download"),
        _any_of(
            r" ?[-|] ?(?:download|high[- ]resolution)? ?scientific diagram\b",
            r"\bdownload (?:free|high)[^.\n]{0,60}",
        ),
    ),
    "praise": ((), re.compile(rf"\A\W*(?:(?:{_PRAISE})\b\W*){{1,12}}\Z", re.IGNORECASE)),
}


def remove_boilerplate(text: str, extra: tuple[re.Pattern[str], ...] = ()) -> tuple[str, int]:
    """Take out what `BOILERPLATE` and further expressions know.

    Args:
        text: With its lines: some phrases are known by standing at the end of one.
        extra: Further expressions.

    Returns:
        The text, and how many phrases were taken out (spacer lines are not counted).
    """
    count = 0
    text = _BLANKS.sub(" ", text)  # the expressions rely on it, and on long runs of blanks they would be slow
    lower = text.lower()
    for name, (triggers, pattern) in BOILERPLATE.items():
        if triggers and not any(trigger in lower for trigger in triggers):
            continue
        text, found = pattern.subn(" ", text)
        count += found if name != "spacer" else 0
    for pattern in extra:
        text, found = pattern.subn(" ", text)
        count += found
    return text, count
