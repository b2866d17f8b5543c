"""Whose word counts about a pair, and that no line stops a run."""

import dataclasses
import json
from pathlib import Path

import pytest

from data_prep.curation.pair import Decision, Pair
from data_prep.curation.verdicts import Verdict, VerdictError, Verdicts, ids_of, judge, read_verdicts

PAIR = Pair(
    "twitter:7:0", "twitter", "7", "7", "0",
    caption="old words", digest="d" * 64, clean_digest="c" * 64, scores={"face": 0.8, "label": 0.9},
)  # fmt: skip


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def line(keep: bool, source: str = "llm:judge", one: str = PAIR.id, **more: object) -> dict[str, object]:
    return {"id": one, "keep": keep, "source": source, **more}


def test_a_person_wins_over_a_model_and_later_over_earlier(tmp_path: Path) -> None:
    def winner(*files: list[dict[str, object]]) -> Verdict:
        paths = [write(tmp_path / f"{number}.jsonl", *lines) for number, lines in enumerate(files)]
        return read_verdicts(paths).by_id[PAIR.id]

    no, yes = line(False), line(True)
    person_no, person_yes = line(False, "human:ab"), line(True, "human")
    assert winner([no], [yes]) == Verdict(True, "llm")
    assert winner([yes], [no]) == Verdict(False, "llm")
    assert winner([yes, no]) == Verdict(False, "llm")
    assert winner([person_no], [yes]) == Verdict(False, "human")
    assert winner([yes], [person_no]) == Verdict(False, "human")
    assert winner([person_no], [yes], [person_yes], [no]) == Verdict(True, "human")
    for source, kind in [("human_2", "human"), ("Human anna", "human"), ("humanoid-7b", "llm"), ("nonhuman", "llm")]:
        assert winner([line(False, source)]) == Verdict(False, kind)


def test_repeats_and_conflicts_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "v.jsonl",
        line(True), line(True), line(False), line(False, caption="x"), line(False, caption="x"), line(True, one="b"),
    )  # fmt: skip
    verdicts = read_verdicts([path])
    assert (verdicts.lines, verdicts.repeats, verdicts.conflicts, len(verdicts.by_id)) == (6, 2, 2, 2)


def test_malformed_lines_are_named_without_their_text_and_stop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps(line(True, one="first")).encode(),
        b"",
        b"{broken secret",
        b"\xff\xfe",
        b'["a"]',
        b"[" * 100_000,
        json.dumps({"keep": True, "source": "llm"}).encode(),
        json.dumps({"id": "x", "keep": "yes", "source": "llm"}).encode(),
        json.dumps({"id": "x", "keep": 1, "source": "llm"}).encode(),
        json.dumps({"id": "x", "keep": True}).encode(),
        json.dumps(line(True, caption=["secret"])).encode(),
        json.dumps(line(True, one="last", caption=None, extra={"anything": 1})).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    verdicts = read_verdicts([path])
    assert verdicts.by_id.keys() == {"first", "last"}
    assert verdicts.lines == 11
    assert verdicts.malformed == (
        "judged.jsonl line 3: not JSON in UTF-8",
        "judged.jsonl line 4: not JSON in UTF-8",
        "judged.jsonl line 5: not an object",
        "judged.jsonl line 6: not JSON in UTF-8",
        "judged.jsonl line 7: no id",
        "judged.jsonl line 8: keep is not true or false",
        "judged.jsonl line 9: keep is not true or false",
        "judged.jsonl line 10: no source",
        "judged.jsonl line 11: caption is no text",
    )


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match=r"absent\.jsonl cannot be read"):
        read_verdicts([tmp_path / "absent.jsonl"])


def test_a_partition_holds_its_own_verdicts_only(tmp_path: Path) -> None:
    path = write(tmp_path / "v.jsonl", line(True), line(False, one="other"), line(True, one="sha256:" + "D" * 64))
    verdicts = read_verdicts([path], only=set(ids_of(PAIR)))
    assert verdicts.by_id.keys() == {PAIR.id, "sha256:" + "d" * 64}
    assert read_verdicts([path]).unknown({PAIR.id, "sha256:" + "d" * 64}) == ["other"]


@pytest.mark.parametrize("digest", ["d", "c"])
def test_an_image_may_be_judged_instead_of_a_pair(digest: str) -> None:
    image = "sha256:" + digest * 64
    no, person_no = Verdict(False, "llm"), Verdict(False, "human")
    assert Verdicts({image: no}).of(PAIR) == no
    assert Verdicts({image: no, PAIR.id: Verdict(True, "llm")}).of(PAIR) == Verdict(True, "llm")
    assert Verdicts({image: person_no, PAIR.id: Verdict(True, "llm")}).of(PAIR) == person_no
    assert Verdicts({image: person_no, PAIR.id: Verdict(True, "human")}).of(PAIR) == Verdict(True, "human")
    assert Verdicts({image: no}).of(Pair("twitter:8:0", "twitter", "8", "8", "0")) is None


def ended(result: Pair | Decision) -> tuple[str, str]:
    assert isinstance(result, Decision)
    assert result.pair == PAIR
    return result.stage, result.reason


def test_what_a_verdict_does_to_a_pair() -> None:
    def said(keep: bool, kind: str = "llm", caption: str = "") -> Verdicts:
        return Verdicts({PAIR.id: Verdict(keep, kind, caption)})

    assert judge(PAIR, Verdicts()) is PAIR
    assert ended(judge(PAIR, Verdicts(), require_verdict=True)) == ("verdict", "no_verdict")
    assert ended(judge(PAIR, said(False))) == ("verdict", "rejected_llm")
    assert ended(judge(PAIR, said(False, "human"), ("face",))) == ("verdict", "rejected_human")
    assert judge(PAIR, said(True), require_verdict=True) is PAIR
    rewritten = judge(dataclasses.replace(PAIR, text_notes={"dates": 1}), said(True, "human", "new words"))
    assert isinstance(rewritten, Pair)
    assert (rewritten.caption, rewritten.text_notes) == ("new words", {"dates": 1, "caption_from": "human"})


def test_a_held_pair_waits_for_a_person_who_releases_it() -> None:
    held = judge(PAIR, Verdicts(), ("face", "label"))
    assert ended(held) == ("gate", "held_face")
    assert isinstance(held, Decision)
    assert held.detail == "face 0.8, label 0.9"
    assert judge(PAIR, Verdicts({PAIR.id: Verdict(True, "llm", "other")}), ("face", "label")) == held
    assert judge(PAIR, Verdicts({PAIR.id: Verdict(True, "human")}), ("face", "label")) is PAIR
    assert ended(judge(PAIR, Verdicts({PAIR.id: Verdict(False, "llm")}), ("face",))) == ("verdict", "rejected_llm")


def test_a_new_caption_is_cleaned_before_it_is_used() -> None:
    verdicts = Verdicts({PAIR.id: Verdict(True, "llm", "seen by Dr Jane Roe")})
    masked = judge(PAIR, verdicts, clean_caption=lambda text: text.replace("Jane Roe", "[name]"))
    assert isinstance(masked, Pair)
    assert masked.caption == "seen by Dr [name]"
    assert ended(judge(PAIR, verdicts, clean_caption=lambda text: "")) == ("verdict", "empty_caption")
