"""The review page and the contact sheets: whom they show, that captions cannot run, and that answers come back."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.curation.pair import Pair, drop
from data_prep.curation.rows import write_part
from data_prep.curation.verdicts import Verdict, read_verdicts
from data_prep.review import main
from data_prep.reviewing.contact_sheets import collect_verdicts
from data_prep.reviewing.review_items import ReviewError, sample_items
from plip_jax.data.records import MANIFEST_NAME

ATTACK = """</textarea><script>alert(1)</script><img src=x onerror="alert(2)">'"&amp; \ud800"""


def store_image(work: Path, seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((600, 450)).save(buffer, "PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = work / "store" / "clean" / digest[:2] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return digest


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty kept pairs; held at either stage, below a gate, one whose image is gone and one that is unsafe."""
    work = tmp_path_factory.mktemp("review") / "work"
    digests = [store_image(work, seed) for seed in range(3)]

    def pair(number: int, caption: str = "colon", **more: object) -> Pair:
        one = f"twitter:{number}:0"
        fields = {"caption": caption, "clean_digest": digests[number % 3], "scores": {"face": 0.75}, **more}
        return Pair(one, "twitter", str(number), str(number), "0", **fields)  # type: ignore[arg-type] # fields by name

    stages = work / "stages"
    write_part(stages / "image" / "kept", 0, [pair(n) for n in range(60)])
    (stages / "image" / "DONE.json").write_text("{}")
    write_part(stages / "verdict" / "kept", 0, [pair(n) for n in range(20)])
    write_part(stages / "verdict" / "kept", 1, [pair(n) for n in range(20, 40)])
    (stages / "verdict" / "DONE.json").write_text("{}")
    write_part(stages / "duplicate" / "kept", 0, [pair(0)])  # not whole yet
    write_part(
        stages / "gate" / "dropped",
        0,
        [
            drop(pair(50), "gate", "not_pathology", "score 0.1"),
            drop(pair(51, "=HYPERLINK(1)"), "gate", "held_face"),
            drop(pair(52, clean_digest="0" * 64), "gate", "held_face"),
            drop(pair(53, safety=0.9), "gate", "held_face"),
        ],
    )
    held = drop(pair(54, ATTACK), "gate", "held_label")
    write_part(stages / "verdict" / "dropped", 0, [held, drop(pair(55), "verdict", "rejected_llm")])
    return work


class Page(html.parser.HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str | None] = []
        self.images: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.policy = ""
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.handlers += [name for name in values if name.startswith("on")]
        self.sources += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "article":
            self.ids.append(values["data-id"])
            self.images.append(str(values["data-image"]))
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.setdefault(self.tags[-1], []).append(data)


def test_the_page_shows_held_pairs_and_nothing_in_it_can_run(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "private" / "review.html"
    assert main(["--work", str(work), "--out", str(out), "--reviewer", 'a"b<c']) == 0
    assert "2 of 2 pairs of the group 'held'" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert sorted(map(str, page.ids)) == ["twitter:51:0", "twitter:54:0"]
    assert all(image.startswith("sha256:") and len(image) == 71 for image in page.images)
    assert page.tags.count("script") == 1
    assert page.handlers == []
    assert ATTACK.replace("\ud800", "?") in "".join(page.texts["textarea"])
    assert len(page.sources) == 2
    for source in page.sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (360, 270)
    script = text.split("<script>")[1].split("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    )
    assert "Private: do not share" in text
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


@pytest.mark.parametrize(("group", "total"), [("held", 2), ("gate", 1), ("kept", 40)])
def test_each_group_is_sampled_the_same_whatever_the_order_of_rows(work: Path, group: str, total: int) -> None:
    items, found = sample_items(work, group, 100, seed=0)
    assert (len(items), found) == (total, total)
    few = [item.pair.id for item in sample_items(work, group, 5, seed=0)[0]]
    assert few == [item.pair.id for item in items[:5]]
    if group == "kept":
        assert few != [item.pair.id for item in sample_items(work, group, 5, seed=1)[0]]
        assert {item.pair.id for item in items} == {f"twitter:{n}:0" for n in range(40)}


def test_contact_sheets_and_their_table_come_back_as_verdicts(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sheets"
    assert main(["--work", str(work), "--out", str(folder), "--group", "kept", "--sample", "31"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["index.csv", "sheet-001.png", "sheet-002.png"]
    sheet = np.asarray(Image.open(folder / "sheet-002.png").convert("L"))
    assert (sheet[40:260, 8:232] < 200).mean() > 0.3  # one picture at the first place
    assert (sheet[40:260, 245:] == 255).all()  # and none beside it
    with (folder / "index.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == [str(n) for n in range(1, 32)]
    rows[0].update(keep="Yes", new_caption=' "quoted", twice ')
    rows[1].update(keep="n")
    with (folder / "index.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    out = tmp_path / "human.jsonl"
    assert main(["--collect", str(folder / "index.csv"), "--out", str(out), "--reviewer", "ab"]) == 0
    assert "2 verdicts" in capsys.readouterr().out
    assert json.loads(out.read_text().splitlines()[1])["source"] == "human:ab"
    verdicts = read_verdicts([out])
    assert verdicts.malformed == ()
    assert verdicts.by_id == {
        rows[0]["id"]: Verdict(True, "human", '"quoted", twice'), rows[1]["id"]: Verdict(False, "human"),
        rows[1]["image"]: Verdict(False, "human"),
    }  # fmt: skip
    same_image = Pair("other:1:0", "other", "1", "1", "0", clean_digest=rows[1]["image"].removeprefix("sha256:"))
    assert verdicts.of(same_image) == Verdict(False, "human")


def test_a_spreadsheet_takes_no_caption_for_a_formula(work: Path, tmp_path: Path) -> None:
    assert main(["--work", str(work), "--out", str(tmp_path / "sheets")]) == 0
    with (tmp_path / "sheets" / "index.csv").open(encoding="utf-8-sig", newline="") as file:
        captions = {row["id"]: row["caption"] for row in csv.DictReader(file)}
    assert captions["twitter:51:0"] == "'=HYPERLINK(1)"


def test_a_wrong_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    with pytest.raises(ReviewError, match="cannot be read"):
        collect_verdicts(path, "human")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ReviewError, match="no column id, image, keep, new_caption"):
        collect_verdicts(path, "human")
    path.write_text("id,keep,new_caption,image\nx,,,\ny,perhaps,,\n")
    with pytest.raises(ReviewError, match="row 3: expected yes, no or nothing"):
        collect_verdicts(path, "human")


def test_a_review_goes_into_no_dataset_and_not_into_the_work_folder(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / MANIFEST_NAME).write_text("{}")
    for out, message in [
        (tmp_path / "dataset" / "sub" / "review.html", "a review is private"),
        (work / "review.html", "takedown"),
        (work / "sub" / "sheets", "takedown"),
    ]:
        assert main(["--work", str(work), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()
    for folder, message in [("dataset", "no folder `stages`"), ("empty", "no pair with a stored image")]:
        (tmp_path / "empty" / "stages").mkdir(parents=True, exist_ok=True)
        assert main(["--work", str(tmp_path / folder), "--out", str(tmp_path / "review.html")]) == 1
        assert message in capsys.readouterr().err
