"""The language gate is soft: it drops what is surely foreign, and never a Latin name."""

import pytest

from data_prep.text.clean_text import TextSettings, clean_text
from data_prep.text.language import DEFAULT_LANGUAGES, judge_language


def judge(text: str, platform: str = ""):
    return judge_language(text, platform, candidates=DEFAULT_LANGUAGES, threshold=0.9, min_letters=30)


LATIN = [
    "adenocarcinoma in situ",
    "Carcinoma ex pleomorphic adenoma",
    "Lichen planus",
    "Condyloma acuminatum",
    "Granuloma annulare",
    "Acanthosis nigricans",
    "Molluscum contagiosum",
    "Pemphigus vulgaris",
    "Placenta accreta spectrum",
    "Sarcoma botryoides vagina",
    "Cysticercus cellulosae in muscle",
    "Echinococcus granulosus, Enterobius vermicularis, Strongyloides stercoralis",
    "Verruca vulgaris, condyloma acuminatum, molluscum contagiosum, carcinoma in situ",
    "Lichen sclerosus et atrophicus, granuloma annulare, necrobiosis lipoidica, erythema nodosum",
]


@pytest.mark.parametrize("text", LATIN)
def test_latin_names_are_never_foreign(text):
    assert not judge(text).is_foreign
    assert not judge(text.upper()).is_foreign


@pytest.mark.parametrize("platform", ["it", "es", "pt", "la", "ro"])
def test_a_platform_is_not_believed_about_a_short_text(platform):
    assert not judge("adenocarcinoma in situ", platform).is_foreign


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Paciente de 45 años con masa en la mama izquierda, biopsia con aguja gruesa", "es"),
        ("Adénocarcinome du côlon chez un patient de 60 ans, coloration standard", "fr"),
        ("Mikroskopisches Bild eines Adenokarzinoms des Dickdarms mit Schleimbildung", "de"),
        ("Carcinoma lobular da mama em paciente de 50 anos com metástases", "pt"),
        ("Un caso di carcinoma papillifero della tiroide con aspetti istologici tipici", "it"),
        ("Рак желудка, перстневидноклеточный", "ru"),
        ("胃癌の症例です", "ja"),
    ],
)
def test_foreign_captions(text, language):
    verdict = judge(text)
    assert (verdict.language, verdict.judge, verdict.is_foreign) == (language, "detector", True)
    assert verdict.probability >= 0.9
    assert judge(text, language).is_foreign
    # the platform's word for English comes first, right or wrong
    assert not judge(text, "en").is_foreign


@pytest.mark.parametrize(
    "text",
    [
        "A beautiful example of rosette formation in ependymoma with perivascular pseudorosettes",
        "Submucosal mass in the stomach, spindle cells, CD117 positive, DOG1 positive",
        "Signet ring cell carcinoma, stomach, H&E, high power, diffuse type, linitis plastica",
        "45F breast mass, FNA, MGG stain: cohesive epithelial clusters, myoepithelial cells, fibroadenoma",
    ],
)
@pytest.mark.parametrize("platform", ["", "und", "zxx", "qme", "qht", "EN", "en-GB", "en_us"])
def test_english_captions(text, platform):
    assert not judge(text, platform).is_foreign


def test_the_detector_decides_where_the_platform_could_not():
    spanish = "Paciente de 45 años con masa en la mama izquierda, biopsia con aguja gruesa"
    for unknown in ("", "und", "qht", "QME", "zxx", "qst"):
        assert judge(spanish, unknown).judge == "detector"
    assert judge("", "und") == judge("123 [date]") == judge("[name]")


def test_a_threshold_decides():
    text = "Caso de hoy: melanoma nodular en espalda"  # 0.87 among the default languages

    def is_foreign(threshold: float) -> bool:
        return judge_language(text, candidates=DEFAULT_LANGUAGES, threshold=threshold, min_letters=30).is_foreign

    assert is_foreign(0.8)
    assert not is_foreign(0.95)
    # few letters are never judged
    assert not judge_language(text, candidates=DEFAULT_LANGUAGES, threshold=0.1, min_letters=60).is_foreign


def test_any_language_may_be_wanted_or_all():
    text = "Mikroskopisches Bild eines Adenokarzinoms des Dickdarms mit Schleimbildung"
    assert clean_text(text).reason == "language"
    assert clean_text(text, TextSettings(language="de")).reason == ""
    assert clean_text(text, TextSettings(language=""), language="de").reason == ""
    assert "[" not in clean_text(text).detail
    assert "Bild" not in clean_text(text).detail
