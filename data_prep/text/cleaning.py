"""The cleaning of a text that needs no settings: encoding, markup, links, signs, mentions, blanks. Plain functions.

What they decide is told in `text`, which puts them in order.
"""

import html
import re
import unicodedata
from collections.abc import Callable

import emoji
import ftfy

_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,  # its own step: ftfy unescapes all or nothing
    remove_terminal_escapes=True,
    fix_encoding=True,
    restore_byte_a0=True,
    replace_lossy_sequences=True,
    decode_inconsistent_utf8=True,
    fix_c1_controls=True,
    fix_latin_ligatures=True,
    fix_character_width=True,  # a wide question mark becomes a plain one
    uncurl_quotes=True,
    fix_line_breaks=True,
    fix_surrogates=True,
    remove_control_chars=True,
    normalization="NFC",  # NFKC would make "10³" 103
    explain=False,
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_STYLED_LETTERS = re.compile("[\U0001d400-\U0001d7ff]+")
_GREEK_MU_OF_A_UNIT = re.compile(r"μ(?=(?:m|l|L|g|M|mol|s|Ci|U|A|V)(?:\b|[²³]))")


def repair_encoding(text: str) -> str:
    """Undo mojibake, wide and styled letters, wrong line ends and control characters."""
    if not text.isascii():
        text = ftfy.fix_text(text, _FTFY)
        text = _STYLED_LETTERS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = _GREEK_MU_OF_A_UNIT.sub("µ", text)
    elif "\x1b" in text:
        text = ftfy.fix_text(text, _FTFY)
    # a lone surrogate cannot be written as UTF-8
    text = re.sub("[\ud800-\udfff]", "\ufffd", text) if not text.isascii() else text
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n"))


_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_NESTED_ENTITY = re.compile(r"&(?:amp;)+(?=#?\w{1,32};)")
_BLOCK_TAG = re.compile(
    r"</?(?:p|br|div|li|ul|ol|h[1-6]|hr|tr|td|th|table|tbody|thead|blockquote|section|article|figure|figcaption|iframe|img|pre)"
    r"(?:\s[^<>]{0,500})?/?>",
    re.IGNORECASE,
)
_INLINE_TAG = re.compile(
    r"</?(?:a|abbr|b|big|center|cite|code|del|em|font|i|ins|label|mark|q|s|small|span|strike|strong|style|script|sub|sup|time|u|video)"
    r"""(?:\s+[\w:-]{1,40}\s?=\s?(?:"[^"<>]{0,500}"|'[^'<>]{0,500}'|[^\s"'<>]{1,500})){0,20}\s?/?>|<!--[^<>]{0,500}-->""",
    re.IGNORECASE,
)


def remove_markup(text: str) -> str:
    """Unescape entities and take out the tags of HTML; a sign of "less than" stays."""
    if "&" in text:
        text = _NESTED_ENTITY.sub("&", text)
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if "<" in text:
        text = _BLOCK_TAG.sub("\n", text)
        text = _INLINE_TAG.sub("", text)
    return text


# Sites whose links end where no blank says so ("carcinomapic.twitter.com/AbCdEfGhIj"): a slug of ten characters.
_URL = re.compile(
    r"(?:https?://)?(?<![a-z.])t\.co/(?:[A-Za-z0-9]{10}|[A-Za-z0-9]{0,9})|https?://t\.co/\w*"
    r"|pic\.(?:twitter|x)\.com/(?:\w{10}|\w{0,9})"
    r"|(?:https?|ftp)://(?:[^\s<>\"]{0,2000}[^\s<>\".,;:!?)\]}'…])?"
    r"|https?:?(?:…|\.\.\.)|(?<!\w)www\.(?:[^\s<>\"]{0,2000}[^\s<>\".,;:!?)\]}'…])?"
    r"|(?<![\w@.-])(?:[\w-]{1,63}\.){1,3}(?:com|org|net|edu|gov|info|app|co\.uk|ac\.uk|nhs\.uk)(?:/[^\s<>\"]{0,2000}(?<![.,;:!?)\]}'…])|(?![\w@-]))"
    r"|(?<![\w@.-])(?:[a-z0-9-]{1,63}\.){1,3}[a-z]{2,5}/[^\s<>\"]{1,2000}(?<![.,;:!?)\]}'…])"
    r"|(?<!\w)(?:doi:?\s?)?10\.\d{4,9}/[^\s<>\"]{1,200}(?<![.,;:!?)\]}'…])",
    re.IGNORECASE,
)


_PERHAPS_URL = re.compile(r"\.\w|/|http|www\.|t\.co|pic\.")


def remove_urls(text: str) -> str:
    """Take out links, with or without their scheme, and DOIs."""
    return _URL.sub(" ", text) if _PERHAPS_URL.search(text) else text


def _character_class(characters: frozenset[str]) -> str:
    """Return a class of an expression in ranges: the module does not find them beyond 16 bits, and is slow without."""
    codes = sorted(map(ord, characters))
    starts = [code for code in codes if chr(code - 1) not in characters]
    ends = [code for code in codes if chr(code + 1) not in characters]
    return "[" + "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True)) + "]"


# What an emoji says in a caption. Arrows mean "with" or "went to", a digit in a box numbers a panel.
_EMOJI_SIGNS = str.maketrans(
    {
        "➡": "→", "⬅": "←", "⬆": "↑", "⬇": "↓", "\u2795": "+", "\u2796": "-", "\u2716": "\u00d7",
        "❓": "?", "❔": "?", "❗": "!", "❕": "!", "\u203c": "!", "\u2049": "!?",
    }
)  # fmt: skip # a line a sign tells nothing
_KEPT_EMOJI = frozenset("♀♂↔↕↖↗↘↙")
_KEYCAP = re.compile("([0-9])\ufe0f?\u20e3")
_EMOJI = frozenset("".join(emoji.EMOJI_DATA)) - frozenset("#*0123456789\u200d\ufe0f")
# One sign, or several joined: "woman shrugging" ends in the sign for female, which then says nothing of a patient.
# (The library's own replacement takes a minute for a hundred thousand joined signs.)
_EMOJI_SEQUENCE = re.compile(
    f"{_character_class(_EMOJI - _KEPT_EMOJI)}(?:[\ufe0f\U0001f3fb-\U0001f3ff]{{0,2}}\u200d{_character_class(_EMOJI)})*"
)
# Zero-width, bidirectional and other format characters, variation selectors, private letters, the rests of emoji.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20e3\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffc\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0000-\U000e0fff]"
)
_PRIVATE = re.compile("[\u2800\ue000-\uf8ff\U000f0000-\U0010ffff]")


# What may be any of these; no letter of Europe, dash or sign of measure is among them. This only spares time.
_PERHAPS_SIGN = re.compile("[\xa9\xad\xae\u034f\u0600-\u1fff\u200b-\u200f\u202a-\u202e\u203c\u2049\u2060-\U0010ffff]")


def plain_signs(text: str) -> str:
    """Turn emoji into plain signs or nothing, and take out what cannot be seen."""
    if not _PERHAPS_SIGN.search(text):
        return text
    text = _KEYCAP.sub(r"\1 ", text.translate(_EMOJI_SIGNS))
    text = _EMOJI_SEQUENCE.sub(" ", text)
    return _PRIVATE.sub(" ", _INVISIBLE.sub("", text))


_HANDLE = r"@(?!\d{1,4}[xX]\b|[xX]\d)[A-Za-z0-9_]{1,30}(?:\.[A-Za-z0-9_]{1,30}){0,3}"
_MENTIONS = re.compile(
    r"(?i:(?:\A|(?<=[.!\n])|(?<=[.!] ))(?:case|photo|image|slide)s? (?=by|from|courtesy|via))?"
    r"(?i:\b(?:cc|h/t|ht|via|by|from|with|courtesy(?: of)?|credits?(?: to)?|thanks(?: to)?|thank you|thx|RT|MT)"
    r"[ :]{1,3})?"
    rf"(?<![\w@+%-])\.?{_HANDLE}(?:[ \t,/]*(?:(?:and|&|\+)[ \t]*)?{_HANDLE}){{0,60}}:?(?![\w@])"
)


def remove_mentions(text: str) -> str:
    """Take out the names of accounts, with the word that credits them; e-mail addresses stay."""
    return _MENTIONS.sub(" ", text) if "@" in text else text


_LOOSE_AT_THE_END = " ,;:|·•&/\\—(["
_TIDY: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<![\w+])[-=_~#^|\u2013—]{3,}|\*{2,}|_{3,}"), " "),  # drawn lines, bold in Markdown
    (re.compile(r"[!?](?:\s?[!?])+|[!?]\s?\.{2,}"), lambda match: "?" if "?" in match[0] else "!"),
    (re.compile(r"([,;:])[,;:]+"), r"\1"),
    (re.compile(r"\.{4,}|…+\.*"), "..."),
    (re.compile(r"(?<!\S)\.(?: \.)+(?!\S)"), " "),
    (re.compile(r"\( ?(?:see|via|link|source|details|from|by)?[ ,;:.]{0,9}\)|\[ ?\]|\{ ?\}|\" ?\""), " "),
    (re.compile(r" {2,}"), " "),  # before what looks for a blank: long runs of them would take it long
    (re.compile(r" (?=[,;!?)\]]|[.:](?!\w))"), ""),
    (re.compile(r"(?<=[(\[]) "), ""),
    (re.compile(r"\A(?:[\s,;:|·•&!…)\]/>]|[-\u2013—*.](?![\w.])|\.{2,})+"), ""),
)


def tidy(text: str) -> str:
    """Put a text on one line, one mark where there were many, and no rests at its ends."""
    text = " ".join(text.split())
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(_LOOSE_AT_THE_END)
