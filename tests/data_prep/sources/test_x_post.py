import pytest

from data_prep.sources import x_post


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2021-03-04T05:06:07.000Z", "2021-03-04T05:06:07Z"),
        ("2021-03-04T05:06:07Z", "2021-03-04T05:06:07Z"),
        ("2021-03-04T23:06:07-02:00", "2021-03-05T01:06:07Z"),
        ("Wed Oct 10 20:19:24 +0000 2018", "2018-10-10T20:19:24Z"),
        ("Wed Oct 10 20:19:24 +0530 2018", "2018-10-10T14:49:24Z"),
        ("", ""),
        ("Wed Okt 10 20:19:24 +0000 2018", ""),
        ("yesterday", ""),
        ("9999-12-31T23:59:59-12:00", ""),
        (None, ""),
        (1538000000, ""),
    ],
)
def test_times_are_utc_and_what_is_none_is_empty(value, expected):
    assert x_post.utc(value, "20") == expected


def test_a_missing_time_is_read_from_the_id():
    # the example of X's own documentation: post 1050118621198921728 was written on Wed Oct 10 20:19:24 +0000 2018
    assert x_post.utc(None, "1050118621198921728") == "2018-10-10T20:19:24Z"
    assert x_post.utc("2021-03-04T05:06:07.000Z", "1050118621198921728") == "2021-03-04T05:06:07Z"
    assert x_post.utc("", "99999999999999999999") != ""
    assert x_post.utc("", "") == ""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("en", "en"),
        ("EN-gb", "en"),
        ("in", "id"),
        ("iw", "he"),
        ("qme", "und"),
        ("zxx", "und"),
        ("und", "und"),
        (3, ""),
    ],
)
def test_languages_are_iso_639_1(code, expected):
    assert x_post.language(code) == expected


def test_ids_are_digits():
    assert [x_post.identity(value) for value in ("12", 12, "٣", "1e5", "-1", True, None, "", "9" * 21, 1.0)] == [
        *("12", "12", "", "", "", "", "", "", "", "")
    ]


def test_the_permalink_names_nobody():
    assert x_post.permalink("20") == "https://x.com/i/web/status/20"
