"""Hashtags in a caption: which of them name a topic of the community, and what becomes of the others.

A tag is often the only place where the diagnosis stands ("#GIST"), so a tag is deleted only where `TOPIC_TAGS` knows it
as a label of the community; every other one loses its sign and stays. Words run together are told apart by their
capitals: "#LobularCarcinoma" is "Lobular Carcinoma".
"""

import re
from collections.abc import Collection, Sequence

# The 32 tags that OpenPath was collected with (Huang et al. 2023, Nature Medicine, Extended Data), in lower case.
OPENPATH_TAGS = frozenset(
    """autopsy bloodbank blooducation breastpath bstpath cardiacpath clinpath cytopath dermpath endopath entpath
    eyepath fnapath forensicpath gipath gupath gynpath hemepath hpbpath idpath moldx nephpath neuropath oralpath
    pancpath pathgme pathinformatics patientbloodmanagement pedipath pulmpath renalpath surgpath""".split()  # noqa: SIM905 # one a line would hide the rules of this file
)

# Ours: tags that tell readers whom a post is for and say nothing about its image. No organ, finding, stain or disease.
COMMUNITY_TAGS = frozenset(
    """anatomicalpathology anatomicpathology anatomy boardreview bonepath clinicalpathology computationalpathology
    cpath cytologist cytology cytopathology dermatologist dermatology dermatopathology dermtwitter digipath
    digitalpathology doctor doctors doctorsofinstagram education endocrinepath foamed foampath gastroenterology
    gitwitter gynecologicpathology gynpathology headandneckpath headneckpath hematology hematopathology
    hemepathology hemetwitter histo histologist histology histopath histopathologist histopathology histotech
    histotechnology histotwitter iheartcyto iheartdermpath iheartgu ihearthisto iheartpath ihearttissue ilovepath
    ilovepathology instagood instamed instapath labmed labmedicine laboratory learning liverpath livertwitter
    lungpath meded medic medical medicaleducation medicalschool medicalstudent medicalstudents medicina medicine
    medlab medschool medstudent medstudents medstudenttwitter medtwitter medx microscope microscopic microscopy
    molecularpathology molpath nephrology nephtwitter neuropathology neurotwitter oncology onctwitter path pathart
    pathbites pathboards pathcast pathdots pathlife pathmatch pathologia pathologie pathologist pathologists
    pathologistsofinstagram pathology pathologyart pathologycase pathologyisfun pathologylife pathologyoutlines
    pathologyresidency pathologyresident pathologyresidents pathologytwitter pathpeeps pathresidency pathresident
    pathresidents pathsky pathtweetaward pathtweets pathtwitter pathvisions pathx patologia pediatricpathology
    pulmonarypathology radiology radtwitter renalpathology repost residency resident science softtissuepath
    surgery surgicalpathologist surgicalpathology surgtwitter teachingpoint thoracicpath tumorboard tumourboard
    tweetorial urologicpathology urology uropath uscap usmle usmlestep1 womeninpathology""".split()  # noqa: SIM905 # one a line would hide the rules of this file
)

# Ours: meetings, where a year follows ("#USCAP2021", "#CAP22"); "#CAP" alone is a pneumonia.
MEETING_TAGS = frozenset(("asc", "ascp", "asdp", "cap", "ecp", "esp", "pathsoc", "uscap"))

TOPIC_TAGS = OPENPATH_TAGS | COMMUNITY_TAGS
"""Labels of the community, in lower case and without the sign: OpenPath's 32 tags, and others of ours."""

MODES = ("trailing", "unhash", "strip")
"""See `resolve_hashtags`."""

_TAG = re.compile(r"#(?=\d{0,50}[^\W\d])(\w+)")  # a letter makes it a tag: "case #3" has none
_STUCK_TAGS = re.compile(r"(?:#\w+){2,}")
_GLUED = re.compile(r"(?<=\w)#(?=\d{0,50}[^\W\d])(\w+)")
_YEAR = re.compile(r"(?:20|)\d\d\Z")
# What may stand between the tags of a block.
_BETWEEN = " \t\n,.;:!|/&·•*-–—"  # noqa: RUF001 # the dash is meant
_LAST_WORD = re.compile(r"(\w+)[ \t]*\Z")
# A tag behind one of these ends the sentence: "why I love #pathology", "a classic in #dermpath".
_CONNECTING = frozenset(
    """a about an and are as at be but by for from great his her i in into is like love loves my of on or our than that
    the their this to vs was with your""".split()  # noqa: SIM905 # one a line would hide the rules of this file
)

# The borders inside a tag. Lower case before "Word" or "ABC": lobular|Carcinoma, breast|IHC, but not Ig|A, m|TOR.
_INNER_BORDERS = re.compile(
    r"(?<=[^\W\d_A-Z]{2})(?=[A-Z](?:[a-z]|[A-Z]))"
    r"|(?<=[A-Z][a-z])(?=[A-Z][a-z]{2})"
    r"|(?<=[A-Z])(?=[A-Z][a-z]{2})"  # GI|Path
    r"|(?<=\d)(?=[A-Z][a-z]{2})"  # IgG4|Related
)
# "NUTcarcinoma", "BSTpath": behind an abbreviation these words begin although no capital says so.
_ABBREVIATION_AND_WORD = re.compile(
    r"(?<=[A-Z0-9])(?=(?:path|cyto|carcinoma|sarcoma|lymphoma|leuk|melanoma|tumou?r|cancer|positive|negative|mutat|mutant|"
    r"associated|related|deficient|rearranged|amplified|fusion|stain|syndrome|disease|like)[a-z]*)"
)
_KEPT_WHOLE = re.compile(r"Mc[A-Z]\w*|PhD\w?|HbA1c|mRNA|miRNA|dMMR|pMMR")


def split_words(tag: str) -> str:
    """Put spaces between the words of a tag, as its capitals and underscores tell them apart.

    An abbreviation is left whole: "GIST", "IgG4RD", "DLBCL", "p53", "HPV16".
    """
    return " ".join(_split_word(word) for word in tag.split("_") if word)


def _split_word(word: str) -> str:
    if _KEPT_WHOLE.fullmatch(word):
        return word
    # first the abbreviations, else "NUTcarcinoma" is cut as "NU Tcarcinoma"
    parts = _ABBREVIATION_AND_WORD.sub(" ", word).split(" ")
    return " ".join(_INNER_BORDERS.sub(" ", part) for part in parts)


def is_topic(tag: str, topic_tags: Collection[str] = TOPIC_TAGS) -> bool:
    """Say whether a tag (without its sign) is a label of the community and no content."""
    tag = tag.lower().replace("_", "")
    year = _YEAR.search(tag)
    return tag in topic_tags or (year is not None and tag[: year.start()] in MEETING_TAGS)


def resolve_hashtags(
    text: str,
    mode: str = "trailing",
    *,
    strip_all: bool = False,
    topic_tags: Collection[str] = TOPIC_TAGS,
    known: Sequence[str] = (),
) -> str:
    """Take the signs off the hashtags of a text, and delete those that are labels.

    Args:
        text: With its hashtags; lines may be told apart.
        mode: "trailing" deletes the topic tags of the block at the end of the text; "strip" deletes topic tags wherever
            they stand; "unhash" deletes none. All that is not deleted stays as words, in its place.
        strip_all: With "strip": every tag is deleted, a diagnosis too.
        topic_tags: In lower case.
        known: The platform's list of the post's tags. It decides about a sign in the middle of a word
            ("melanoma#dermpath"), which is a tag only where the platform says so.
    """
    if "#" not in text:
        return text
    text = _part_glued(text, known)
    delete_from = {"trailing": _end_of_prose, "strip": lambda _: 0, "unhash": len}[mode](text)
    delete_all = mode == "strip" and strip_all

    def resolve(match: re.Match[str]) -> str:
        deleted = match.start() >= delete_from and (delete_all or is_topic(match[1], topic_tags))
        return " " if deleted else split_words(match[1])

    return _TAG.sub(resolve, text)


def _part_glued(text: str, known: Sequence[str]) -> str:
    """Put a space before a tag that is stuck to another tag, or to a word where the platform knows it as a tag."""
    text = _STUCK_TAGS.sub(lambda match: match[0].replace("#", " #"), text)
    names = {name.lower() for name in known}
    return _GLUED.sub(lambda match: f" #{match[1]}" if match[1].lower() in names else f" {match[1]}", text)


def _end_of_prose(text: str) -> int:
    """Return where the block of tags at the end begins; the length of the text where a tag ends its last sentence."""
    end = len(text)
    for match in reversed(list(_TAG.finditer(text))):
        if text[match.end() : end].strip(_BETWEEN):
            break
        end = match.start()
    before = _LAST_WORD.search(text[max(0, end - 40) : end])
    if before and before[1].lower() in _CONNECTING:
        following = _TAG.match(text, end)
        return following.end() if following else end
    return end
