"""Nested settings as rows of a table."""

from data_prep.reports.flat_rows import flat_rows, settings_rows


def test_names_are_dotted_and_values_are_texts():
    values = {"a": {"b": True, "c": ("x", 1), "d": {}}, "e": None, "f": ""}
    assert flat_rows(values) == [("a.b", "yes"), ("a.c", "x, 1"), ("a.d", "-"), ("e", "-"), ("f", "-")]


def test_a_setting_that_all_sources_have_is_said_once_and_where_it_differs():
    settings = {
        "settings": {
            "text.mask": False,
            "sources.x.kind": "x_v2",
            "sources.x.text.words": 3,
            "sources.x.text.mask": True,
            "sources.laion.kind": "laion",
            "sources.laion.settings.safety": 0.5,
            "sources.laion.text.words": 3,
            "sources.laion.text.mask": False,
            "sources.web.kind": "instagram",
            "sources.web.text.words": 3,
            "sources.web.text.mask": True,
        }
    }
    assert settings_rows(settings) == [
        ("settings.text.mask", "no"),
        ("settings.sources.x.kind", "x_v2"),
        ("settings.sources.(every other).text.words", "3"),
        ("settings.sources.(every other).text.mask", "yes"),
        ("settings.sources.laion.kind", "laion"),
        ("settings.sources.laion.settings.safety", "0.5"),
        ("settings.sources.laion.text.mask", "no"),
        ("settings.sources.web.kind", "instagram"),
    ]


def test_one_source_is_named():
    assert settings_rows({"sources": {"x": {"words": 3}}}) == [("sources.x.words", "3")]
