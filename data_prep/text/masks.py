"""What could name a patient or a person in a text: dates, ages over 89, names, record numbers and addresses, masked.

Follows the list of the HIPAA Safe Harbor method (45 CFR 164.514(b)(2)) as far as expressions of text can: all elements
of a date but a year alone, ages over 89, names, telephone numbers, e-mail addresses, record numbers. A net and no
proof: a name without a title, a label or a degree beside it is not found, and beside an age
only where the given name is a common one.

Measures, grades, scores, codes and the names of stains stay: "2/10 HPF", "pT1/2", "CD3/CD20", "HPV 6/11/16", "Oct 4",
"x400", "8500/3", "WHO 2019". An eponym stays ("Hodgkin lymphoma", "Dr. Gleason's grading"), but a title before a name
makes it a person ("Dr. Paget"), for the same names are borne by patients.
"""

import dataclasses
import re
from collections.abc import Callable

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)"
)
_MONTH_CAPITALS = rf"(?:{_MONTH}|(?:JAN|FEB|APR|JUNE?|JULY?|AUG|SEPT?|OCT|NOV|DEC|MARCH|APRIL|MAY)\b)"
_YEAR = r"(?:19|20)\d\d"
_ORDINAL = r"(?:st|nd|rd|th)"
_TIME = r"(?:[T ]\d{1,2}:\d\d(?::\d\d)?Z?)?"

_ISO_DATE = re.compile(rf"(?<![\w./-]){_YEAR}([-/.])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01]){_TIME}(?![\w/-])")
_COMPACT_DATE = re.compile(rf"(?<![\w./-]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?![\w/-])")
_NUMERIC_DATE = re.compile(rf"(?<![\w./-])(\d{{1,2}})([-/.])(\d{{1,2}})\2(?:{_YEAR}|'?\d\d){_TIME}(?![\w/-]|\.\d)")
_MONTH_AND_YEAR = re.compile(rf"(?<![\w./-])(?:(?:0?[1-9]|1[0-2])/|(?:0[1-9]|1[0-2])[.-]){_YEAR}(?![\w/-])")
_DAY_AND_MONTH = re.compile(
    r"(?i:(?<!\w)(?:d\.?o\.?b\.?|date(?: of [a-z]{3,12})?|dated|born(?: on)?))\s{0,3}[:=]?\s{0,3}"
    r"(\d{1,2}[/.-]\d{1,2})(?![\w/-])"
)
_WRITTEN_DATES = (
    # 3 March 2019, 3rd of March, 2019, 12-Mar-19, 12MAR2019, 3-5 March 2019
    re.compile(
        rf"(?i)(?<![\w./-])(?:\d{{1,2}}\s?[-\u2013/]\s?)?\d{{1,2}}{_ORDINAL}?(?:\sof)?[\s.-]{{0,2}}{_MONTH}"
        rf"[\s.,'-]{{0,3}}(?:{_YEAR}|(?<=['-])\d\d)(?!\w)"
    ),
    # March 3rd, 2019; March 3-5, 2019
    re.compile(
        rf"(?i)(?<!\w){_MONTH}\.?\s?\d{{1,2}}{_ORDINAL}?(?:\s?[-\u2013]\s?\d{{1,2}}{_ORDINAL}?)?,?\s{{1,2}}(?:{_YEAR}|'\d\d)(?!\w)"
    ),
    re.compile(rf"(?<!\w){_MONTH_CAPITALS}\.?,?(?:\s(?:of\s)?|-){_YEAR}(?!\w)"),  # March 2019
    re.compile(rf"(?<![\w./-])\d{{1,2}}{_ORDINAL}?\s(?:of\s)?{_MONTH_CAPITALS}(?![\w-])"),  # 3 March
    # March 3; but Oct 4, Oct 3/4 and Oct 2 are stains
    re.compile(rf"(?<!\w){_MONTH_CAPITALS}\.?\s(?!(?<=(?i:oct)\s)[234]\b)\d{{1,2}}{_ORDINAL}?(?![\w/.%-])"),
)
# In front of a series of numbers that is no date: "HPV 6/11/16", "CK 5/6/14", "exons 9/11/13".
_SERIES_CUE = re.compile(r"(?i)\b(?:HPV|types?|CK|CD|exons?|levels?|chromosomes?|grades?|IL)[\s-]{0,2}\Z")
# Behind one: "5-10-15 min", "10.10.10 cm".
_UNIT = re.compile(
    r"(?i)\s?(?:x|\u00d7|%|°|/|[µμumcnk]?m\b|[µμm]l\b|[mk]?g\b|h(?:ou)?rs?\b|min(?:utes)?\b|s(?:ec)?\b|days?\b|weeks?\b|"
    r"hpf\b|u(?:nits)?\b|iu\b|fold\b|cells?\b|copies\b|per\b|reads\b|patients\b|people\b|cases\b|platelets?\b|years?\b|"
    r"[kmg]?bp?\b)"
)

_AGE = r"(?:9\d|1[01]\d|12[0-5])"
_AGE_RANGE = rf"(?<![\w.,/+-])({_AGE})(?:\s?[-\u2013]\s?\d{{2,3}})?"
_NOT_PEOPLE = (
    r"(?!\s(?:patients|cases|subjects|mice|rats|controls|participants|individuals|pts|cells|reads|volunteers)\b)"
)
_AGES = (
    re.compile(rf"(?i){_AGE_RANGE}[\s-]{{0,2}}(?:years?|yrs?|y)[\s.-]{{0,2}}(?:olds?|of age|o)\b"),
    re.compile(rf"(?i){_AGE_RANGE}\s?(?:y\.?o\.?|y/o|yr\.?)(?:\s?(?=[fm]\b)|(?!\w))"),
    re.compile(rf"(?i){_AGE_RANGE}\s?y\.?\s?/?\s?(?:[fm]\b|♀|♂|females?\b|males?\b|(?:wo)?m[ae]n\b)"),
    re.compile(
        rf"(?i)(?<!\w)(?:age[ds]?|ages? of|aged? at \w{{3,12}})\s?[:=]?\s?({_AGE})(?:\s?[-\u2013]\s?\d{{2,3}})?"
        r"(?![\w%]|\.\d)(?!\s(?:days?|weeks?|months?|hours?|min)\b)"
    ),
    re.compile(
        rf"{_AGE_RANGE},?\s?[-/]?\s?(?:[FM]\b(?![-/])|♀|♂|(?i:female|male|woman|man|lady|gentleman)\b){_NOT_PEOPLE}"
    ),
    re.compile(rf"(?<![\w/])[FM]\s?/\s?({_AGE})(?![\w/%]|\.\d)"),
    re.compile(rf"(?<![\w/.-])(?<!clone\s)[FM]({_AGE})(?![\w/%-]|\.\d)"),  # F94, but M91-M94
)
_WRITTEN_AGE = re.compile(
    r"(?i)\b(ninety(?:[\s-](?:one|two|three|four|five|six|seven|eight|nine))?"
    r"|(?:a |one )?hundred(?:(?: and)?[\s-](?:one|two|three|four|five|six|seven|eight|nine|ten))?)[\s-]years?[\s-]old\b"
)
OVER_89 = "over 89"

# A further word of a name: a capital, and not the ending of a disease or a method.
_WORD = r"[A-Z][\w\u2019'-]{0,30}"
_NO_FINDING = (
    r"(?!\w{0,30}(?:omas?|itis|os[ie]s|a?emia|plasia|plastic|trophy|trophic|pathy|pathic|ology|gram|stain|scopy|ectomy|"
    r"opsy|cytes?|noid|tumou?rs?|ular|ellar|enous|genic|static|inous|amous|isease|yndrome|ancer|esion|etastas[ie]s|issue)s?\b)"
    r"(?!(?:The|This|That|A|An|In|On|Of|And|With|From|For|At|By|Is|Was|No|He|She|We|It|To|His|Her|Case|Skin|Lung|Liver|"
    r"Breast|Colon|Kidney|Brain|Bone|Node|Lymph|Spindle|Giant|Small|Large|Clear|Cell|High|Low|Grade|Female|Male|Woman|Man|"
    r"Boy|Girl|Young|Old|Elderly|Middle|Adult|Child|Infant|History|Presented|Presents|Unknown|Biopsy|Mass|H&E|IHC|MD|PhD)\b)"
)
_PARTICLE = r"(?:(?:van|von|de|der|den|del|da|dos|di|la|al|el|bin|ibn|ter)\s){0,2}"
_INITIALS = r"(?:[A-Z]\.?\s){0,3}"
_FURTHER = rf"(?:\s(?:[A-Z]\.?\s){{0,2}}{_PARTICLE}{_NO_FINDING}{_WORD}|\s[A-Z]\b\.?)"
_FULL_NAME = rf"{_NO_FINDING}{_WORD}\.?{_FURTHER}{{1,3}}"
_EPONYMS = (
    "Barrett|Bowen|Brenner|Breslow|Burkitt|Cajal|Clark|Crohn|Cushing|Ewing|Fuhrman|Gleason|Graves|Hashimoto|Hodgkin|"
    "Kaposi|Krukenberg|Merkel|Nottingham|Paget|Reed|Riedel|Sjögren|Spitz|Sternberg|Warthin|Wegener|Whipple|Wilms"
)
# What tells a name from a diagnosis in capitals before an age ("Lichen Planus, 45F"): given names, the commonest of
# several countries (ours), without those that are words as well (Mark, Rose, Grace).
_GIVEN = (
    "(?:James|John|Robert|Michael|William|David|Richard|Joseph|Thomas|Charles|Christopher|Daniel|Matthew|Anthony|Steven|"
    "Paul|Andrew|Joshua|Kenneth|Kevin|Brian|George|Timothy|Ronald|Edward|Jason|Jeffrey|Ryan|Jacob|Gary|Nicholas|Eric|"
    "Jonathan|Stephen|Larry|Justin|Scott|Brandon|Benjamin|Samuel|Gregory|Alexander|Patrick|Dennis|Peter|Henry|Adam|Simon|"
    "Mary|Patricia|Jennifer|Linda|Elizabeth|Barbara|Susan|Jessica|Sarah|Karen|Lisa|Nancy|Betty|Sandra|Margaret|Ashley|"
    "Kimberly|Emily|Donna|Michelle|Carol|Amanda|Melissa|Deborah|Stephanie|Rebecca|Sharon|Laura|Cynthia|Dorothy|Amy|"
    "Kathleen|Angela|Anna|Anne|Emma|Nicole|Helen|Samantha|Katherine|Christine|Rachel|Carolyn|Janet|Jane|Maria|Julia|"
    "Catherine|Heather|Diane|Olivia|Julie|Joyce|Ruth|Hannah|Alice|Sophie|Sophia|Charlotte|Lucy|Joan|Judith|Martha|"
    "Juan|Jos[eé]|Luis|Carlos|Jorge|Pedro|Miguel|Antonio|Francisco|Manuel|Ana|Carmen|Luc[ií]a|Sof[ií]a|Isabel|Pilar|"
    "Jean|Pierre|Michel|Jacques|Fran[cç]ois|Claude|Camille|Isabelle|Hans|Klaus|J[uü]rgen|Wolfgang|Heinz|Ursula|Sabine|"
    "Giovanni|Giuseppe|Marco|Paolo|Giulia|Francesca|Mohamm?[ae]d|Muhammad|Ahmed|Ali|Omar|Hassan|Hussein|Ibrahim|Yusuf|"
    "Fatima|Aisha|Khadija|Maryam|Zainab|Rahul|Raj|Rajesh|Ravi|Sanjay|Suresh|Ramesh|Anil|Sunil|Vijay|Amit|Arjun|Priya|"
    "Pooja|Anita|Sunita|Lakshmi|Deepa|Wei|Ming|Hiroshi|Kenji|Yuki|Ivan|Dmitri|Sergei|Olga|Natalia|Svetlana|Tatiana)"
)
_AGE_BEHIND = (
    r"(?=,?\s{1,2}\(?(?:over 89|\d{1,3})[\s/-]{0,2}"
    r"(?:[FMfm]\b|[yY](?:\.?\s?/?[oO]|rs?|ears?)\b|(?:fe)?male\b|(?:wo)?man\b))"
)
_DEGREE = r"(?:M\.?D\.?|Ph\.?D\.?|MBBS|MBChB|FRCPath|FCAP|FASCP|DVM|DDS)"
_TITLED_NAMES = (
    # Dr. Jane Doe, Drs. Smith and Jones, Prof. Dr. A. B. van der Berg; "Dr. Gleason's grading" stays
    re.compile(
        rf"(?<![\w-])Drs\.?\s{_INITIALS}{_PARTICLE}{_WORD}{_FURTHER}{{0,2}}"
        rf"(?:(?:,|,? and|,? &)\s{_INITIALS}{_PARTICLE}{_NO_FINDING}{_WORD}{_FURTHER}?){{1,4}}"
    ),
    re.compile(
        r"(?<![\w-])(?:(?:Drs?|Doctor|Prof(?:essor)?|Mrs?|Ms|Mme|Mlle|Madame|Monsieur|Herrn?|Frau|Señor(?:a|ita)?|"
        r"Signora?)\b\.?\s{0,2}){1,3}"
        rf"(?!(?:{_EPONYMS})[\u2019']s\s){_INITIALS}{_PARTICLE}{_WORD}{_FURTHER}{{0,2}}"
    ),
    re.compile(r"(?<![\w-])(?:DR|PROF|MRS?)\.\s{0,2}[A-Z][\w'-]{1,30}(?:\s[A-Z][A-Z'-]{1,30}){0,2}"),
    re.compile(r"(?<![\w-])(?:drs?|prof|mrs?)\.\s{0,2}[a-z][\w'-]{1,30}"),
    # dr john smith, dr smith; "my dr said so" stays
    re.compile(
        rf"(?<![\w-])(?<![Hh][Ll][Aa]\s)dr\s(?:(?i:{_GIVEN})\s[a-z][\w'-]{{1,30}}|(?!(?:said|says|told|thinks?|thought|"
        r"and|or|but|who|was|is|has|had|will|would|can|could|for|to|in|on|at|of|by|from|with|when|that|the|just|also|did|"
        r"does|office|visit|positive|negative)\b)[a-z][\w'-]{1,30})"
    ),
    # Miss Mary Jane Watson; "Don't Miss This" is a verb
    re.compile(
        r"(?<![\w-])(?<!n't\s)(?<!n\u2019t\s)(?<![Nn]ever\s)(?<![Nn]ot\s)(?<![Nn]ear\s)(?<![Tt]o\s)(?<![Ww]e\s)(?<!I\s)"
        r"(?<![Yy]ou\s)Miss\s(?!(?:Rates?|Any|You|Your|Me|My|Us|Our|Them|Their|These|Those|Out|Diagnos\w*)\b)"
        rf"{_NO_FINDING}{_WORD}{_FURTHER}{{0,2}}"
    ),
)
# Patient name: John; Name: DOE, JANE
_LABELLED_NAME = re.compile(
    r"(?i:(?<!\w)(?:(?:(?:patient|pt)(?:[\u2019']s)?|full|first|last|family|given)\s(?:full\s)?|sur)?name(?:\s?[:=]|\s[-\u2013])\s{0,3})"
    rf"(?![A-Z]{{2,5}}(?!,?\s[A-Z]|\w))({_NO_FINDING}{_WORD},?(?:{_FURTHER}){{0,3}})"
)
# Patient: John Q Public, patient John Public ("Patient Presented" is a title in capitals), courtesy of Jane Doe
_CREDITED_NAME = re.compile(
    r"(?<!\w)(?:(?i:patient|pt)\s?:|[Pp]atient named|patient|(?i:courtesy(?:\sof)?|credits?(?:\sto)?|"
    r"thanks\sto|author|pathologist|(?:contributed|submitted|reported|signed|shared|presented|posted)\sby)\s?:?)"
    rf"\s{{1,3}}({_NO_FINDING}{_WORD},?(?:{_FURTHER}){{1,3}}|(?:[A-Z]\.\s?){{1,3}}{_WORD})"
)
_PATIENT = r"(?<!\w)(?:[Pp]t\b\.?|[Pp]atient)\s{1,2}"
_NAMED_PATIENTS = (
    re.compile(rf"{_PATIENT}({_GIVEN}\b{_FURTHER}{{1,3}})"),  # Pt John Smith
    re.compile(rf"{_PATIENT}({_FULL_NAME}){_AGE_BEHIND}"),  # Pt Abc Def, 45M
)
_NAME_BEFORE_AGE = re.compile(rf"(?<![\w-]){_GIVEN}\b{_FURTHER}{{1,3}}{_AGE_BEHIND}")  # Jane Doe, 45F
_NAME_WITH_DEGREE = re.compile(rf"(?<![\w-]){_FULL_NAME}(?=,?\s{_DEGREE}(?!\w))")  # Jane Doe, MD

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![\w@])")
_WRITTEN_EMAIL = re.compile(
    r"(?i)(?<!\w)[\w.+-]{1,64}\s?[\[({]\s?at\s?[\])}]\s?[\w-]{1,63}(?:\s?(?:[\[({]\s?dot\s?[\])}]|\.)\s?[\w-]{1,63}){1,3}"
    r"|(?<!\w)[\w.+-]{1,64}\sat\s[\w-]{1,63}(?:\sdot\s[\w-]{2,63}){1,3}"
)

_PHONES = (
    re.compile(r"(?<![\w.+])\+\d[\d\s().-]{7,18}\d(?!\w)"),
    re.compile(r"(?<![\w./+-])(?:1[\s.-])?(?:\(\d{3}\)\s?|\d{3}[\s.-])\d{3}[\s.-]\d{4}(?![\w/-]|\.\d)"),
    re.compile(r"(?<![\w./+-])0\d{2,4}[\s-]\d{3,4}[\s-]?\d{3,4}(?![\w/-]|\.\d)"),
    re.compile(
        r"(?i:(?<!\w)(?:tel(?:ephone)?|ph(?:one)?|mobile|whatsapp|fax|call(?:\sus)?(?:\sat)?|pager)\b)[.:]{0,2}\s{0,2}"
        r"(\+?[\d(][\d\s().-]{5,18}\d)(?!\w)"
    ),
)
_LABELLED_NUMBERS = (
    re.compile(
        r"(?i:(?<!\w)(?:MRN|MR\s?(?=\#)|UHID|SSN|NHS|(?:medical|hospital)\srecord|accession)"
        r"(?:\s?(?:number|num|no\.?|nr\.?|id|\#)(?!\w)){0,2})\s?[:#=.]{0,2}\s?"
        r"((?:[A-Za-z]{1,4}[-/\s]?)?\d(?:[\d/-]|\s(?=\d)){2,20}\d(?:-[A-Z]\b)?)(?![\w.%]\w)"
    ),
    # These words also stand before counts ("biopsy 10/12 cores"): "no", "id", a sign or five digits must follow.
    re.compile(
        r"(?i:(?<!\w)(?:record|hosp(?:ital|\.)?|acc\.?|case|specimen|patient|pt\.?|lab|biopsy|slide|block|path|ID|OPD|IPD|"
        r"CR|UR|ref(?:erence|\.)?|reg(?:istration|\.)?)(?:\s?(?:[:#=])\s?[:#=.]{0,2}|\s(?=\d{5})))\s?"
        r"((?:[A-Za-z]{1,4}-?)?\d[\d-]{2,20}\d)(?![\w./%-]\w)"
    ),
    # A fraction may follow a sign, but "no" is followed by a number.
    re.compile(
        r"(?i:(?<!\w)(?:record|hosp(?:ital|\.)?|acc\.?|case|specimen|patient|pt\.?|lab|biopsy|bx|histo(?:logy)?|slide|block|"
        r"path(?:ology)?|ID|OPD|IPD|CR|UR|ref(?:erence|\.)?|reg(?:istration|\.)?)"
        r"\s?(?:number|num|no\.?|nr\.?|id)\s?[:#=.]{0,2})\s?"
        r"((?:[A-Za-z]{1,4}[-/]?)?(?=[\d/-]{0,12}\d{3})\d[\d/-]{2,20}\d)(?![\w.%-]\w)"
    ),
)
# Hosp # 45 67 89
_SPACED_NUMBER = re.compile(
    r"(?i:(?<!\w)(?:record|hosp(?:ital|\.)?|reg(?:istration|\.)?|OPD|IPD)"
    r"\s?(?:\#|number|num|no\b\.?)\s?[:.]?)\s?((?=(?:\d\s?){6})\d{2,4}(?:\s\d{2,4}){1,4})(?![\w.%]\w)"
)
_ACCESSIONS = (
    # S19-12345, H-2019-00123
    re.compile(rf"(?<![\w-])(?:[A-Z]{{1,4}}-?|[a-z]-?|[A-Z]\s)(?:{_YEAR}|\d\d)[-/]\d{{4,7}}(?:-[A-Z]\d?)?(?![\w/-])"),
    re.compile(r"(?<![\w-])[A-Z]{1,3}-\d\d[-/]\d{3,7}(?![\w/-])"),  # SP-20-1234
    re.compile(r"(?<![\w-])[A-Z]{1,2}\d\d:\d{4,6}(?![\w/:-])"),  # S21:12345
    re.compile(r"(?<![\w./-])(?:\d\d|20\d\d)-?[A-Z]{1,2}-\d{3,7}(?![\w/-])"),  # 19-S-12345
    re.compile(rf"(?<![\w./,-])(?:\d\d|{_YEAR})-\d{{5,7}}(?<!00)(?![\w/-]|\.\d)"),  # 19-04567
    re.compile(r"(?<![\w./-])\d\d[A-WYZ]{1,2}\d{4,7}(?![\w/-])"),  # 22H12345; an X would magnify
    re.compile(r"(?<![\w./-])\d{3}-\d\d-\d{4}(?![\w/-])"),  # a social security number
    re.compile(r"(?<![\w./-])\d{4}[\s-]\d{4}[\s-]\d{4}(?![\w/-])"),
)
# A run of six digits or more, with at most three capitals before it: "S1912345".
_LONG_RUN = re.compile(r"(?<![\w.,+-])(?:[A-Z]{1,3}-?)?\d{6,40}(?!\w|\.\d|,\d)")
# Numbers that everybody may look up, and magnifications.
_PUBLIC_CUE = re.compile(
    r"(?i)(?:PMID|PMCID|PMC|NCT|ISBN|ISSN|DOI|SNOMED(?:[\s-]CT)?|SCTID|GSE|OMIM|COSM|ClinVar|dbSNP|chr\w{1,2}|[x\u00d7])"
    r"[:#\s]{0,3}\Z"
)
_ALL_YEARS = re.compile(rf"(?:[A-Z]{{0,4}}\W)?{_YEAR}(?:\W{_YEAR})*")
_PUBLIC_NUMBER = re.compile(r"(?:PMC|NCT|GSE|EGA|SRR|PRJ)\d+")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One kind of identifier.

    Attributes:
        kind: "email", "date", "age", "name" or "number".
        pattern: Its group 1, where it has one and the rule is labelled, is what is masked; else the whole match.
        accepts: Says of a match whether it is an identifier.
        labelled: The match begins with a label ("MRN:") that stays.
        words: One of these must be in the text, in lower case; empty where that is not asked.
        min_digits: That the text must have in a row, signs between them apart. Like `words`, this only spares time.
    """

    kind: str
    pattern: re.Pattern[str]
    accepts: Callable[[re.Match[str]], bool] = lambda match: True
    labelled: bool = False
    words: tuple[str, ...] = ()
    min_digits: int = 0


def _before(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - 24) : match.start()]


def _is_series(match: re.Match[str]) -> bool:
    """Say whether numbers that look like a date or a number count or measure something."""
    return bool(_SERIES_CUE.search(_before(match)) or _UNIT.match(match.string, match.end()))


def _is_date(match: re.Match[str]) -> bool:
    first, second = int(match[1]), int(match[3])
    return 1 <= min(first, second) <= 12 and max(first, second) <= 31 and not _is_series(match)


def _is_record_number(match: re.Match[str]) -> bool:
    value = match[1] if match.re.groups else match[0]
    return sum(map(str.isdigit, value)) >= 4 and not _ALL_YEARS.fullmatch(value)


def _is_accession(match: re.Match[str]) -> bool:
    return _is_record_number(match) and not _is_series(match)


def _is_long_run(match: re.Match[str]) -> bool:
    return not (
        match[0].endswith("000")  # a round number counts something
        or _is_series(match)
        or _PUBLIC_CUE.search(_before(match))
        or _PUBLIC_NUMBER.fullmatch(match[0])
    )


def _is_phone(match: re.Match[str]) -> bool:
    return not _ALL_YEARS.fullmatch(match[0]) and not _is_series(match)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TITLES = (
    "dr",
    "doctor",
    "prof",
    "mr",
    "ms",
    "miss",
    "mme",
    "mlle",
    "madame",
    "monsieur",
    "herr",
    "frau",
    "señor",
    "signor",
)
_CREDITS = ("patient", "pt", "courtesy", "credit", "thanks to", "author", "pathologist", " by")
_DEGREES = ("md", "m.d", "phd", "ph.d", "mbbs", "mbchb", "frcpath", "fcap", "fascp", "dvm", "dds")

RULES: tuple[Rule, ...] = (
    Rule("email", _EMAIL, words=("@",)),
    Rule("email", _WRITTEN_EMAIL, words=("at)", "at]", "at}", "at )", "at ]", "at }", " dot ")),
    Rule("date", _ISO_DATE, min_digits=6),
    Rule("date", _NUMERIC_DATE, _is_date, min_digits=4),
    *(Rule("date", pattern, words=_MONTHS, min_digits=1) for pattern in _WRITTEN_DATES),
    Rule("date", _DAY_AND_MONTH, labelled=True, words=("date", "born", "dob", "d.o", "do.b", "d.ob"), min_digits=2),
    Rule("date", _MONTH_AND_YEAR, min_digits=5),
    Rule("date", _COMPACT_DATE, min_digits=8),
    *(Rule("number", pattern, _is_phone, bool(pattern.groups), min_digits=7) for pattern in _PHONES),
    *(Rule("number", pattern, _is_record_number, labelled=True, min_digits=4) for pattern in _LABELLED_NUMBERS),
    Rule("number", _SPACED_NUMBER, _is_accession, labelled=True, min_digits=4),
    *(Rule("number", pattern, _is_accession, min_digits=3) for pattern in _ACCESSIONS),
    Rule("number", _LONG_RUN, _is_long_run, min_digits=6),
    *(Rule("age", pattern, min_digits=2) for pattern in _AGES),
    Rule("age", _WRITTEN_AGE, words=("ninety", "hundred")),
    *(Rule("name", pattern, words=_TITLES) for pattern in _TITLED_NAMES),
    Rule("name", _LABELLED_NAME, labelled=True, words=("name",)),
    Rule("name", _CREDITED_NAME, labelled=True, words=_CREDITS),
    *(Rule("name", pattern, labelled=True, words=("pt", "patient")) for pattern in _NAMED_PATIENTS),
    Rule("name", _NAME_BEFORE_AGE, min_digits=1),
    Rule("name", _NAME_WITH_DEGREE, words=_DEGREES),
)
"""In the order of their turn: what a rule has masked is not there for the next."""

_DIGITS = re.compile(r"\d[\d\s/().:-]*")
KINDS = ("date", "age", "name", "number", "email")
"""What is masked; see `mask_identifiers`."""


def mask_identifiers(text: str, *, with_token: bool = True) -> tuple[str, dict[str, int]]:
    """Mask what could name a person in a caption, or in an alternative text.

    Args:
        text: Any text; a masked one is returned as it is.
        with_token: Put "[date]", "[name]", "[number]" or "[email]" in its place, and "over 89" for the number of an
            age; without, it is taken out with nothing left.

    Returns:
        The text, and how many were masked of each of `KINDS` that was found.
    """
    counts: dict[str, int] = {}
    digits = max((sum(map(str.isdigit, run)) for run in _DIGITS.findall(text)), default=0)
    lower = text.lower()
    for rule in RULES:
        if digits >= rule.min_digits and (not rule.words or any(word in lower for word in rule.words)):
            text = rule.pattern.sub(lambda match, rule=rule: _mask(match, rule, with_token, counts), text)
    return text, counts


def _mask(match: re.Match[str], rule: Rule, with_token: bool, counts: dict[str, int]) -> str:
    if not rule.accepts(match):
        return match[0]
    counts[rule.kind] = counts.get(rule.kind, 0) + 1
    if rule.kind == "age":
        return _mask_age(match) if with_token else " "
    token = f"[{rule.kind}]" if with_token else " "
    if not rule.labelled:
        return token
    start, end = match.span(1)
    return match.string[match.start() : start] + token + match.string[end : match.end()]


def _mask_age(match: re.Match[str]) -> str:
    """Write "over 89" for the number: "92-year-old" -> "over 89-year-old", "92F" -> "over 89 F"."""
    start, end = match.span(1)
    behind = match.string[end : match.end()]
    behind = re.sub(r"\A\s?[-\u2013]\s?\d{2,3}", "", behind)
    front = match.string[match.start() : start]
    return f"{front}{' ' * front[-1:].isalpha()}{OVER_89}{' ' * behind[:1].isalpha()}{behind}"
