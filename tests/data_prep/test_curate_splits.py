"""Splits of a curated week: by date with no thread cut, hold-outs of a stated size, and their proof in the reports."""

import json
import re
from collections import defaultdict

from curated_week import (
    Curated,
    assert_reconciles,
    curate_folders,
    kept_captions,
    rows_of,
    split_sizes,
)
from curation_week import LOADER, MOBILE, WEB
from ml_collections import ConfigDict
from week_dumps import loopback
from week_tables import FIGURES, FOLDER, IPATH, LAION, OPENPATH, TABLE

from data_prep import verify
from data_prep.curation.config import CurationConfig
from data_prep.grouping.split import SplitSettings
from plip_jax.config_file import load_config

LAST_OF_TRAIN, FIRST_OF_TEST = "2021-03-04", "2021-03-05"
OPENPATH_TWEETS = "2021-06-02"  # the day that their ids tell; the table has no dates


def expected_splits(curated: Curated) -> dict[str, str]:
    """Pair to "train", "test", or "dropped" for what a thread has behind the border that it straddles."""
    dates, groups = {}, defaultdict(list)
    for source, posts in curated.week.posts.items():
        for post in posts:
            for pair_id in (one for one in curated.week.captions if one.startswith(f"{source}:{post.id}:")):
                undated = source in (FIGURES, FOLDER, IPATH, LAION, TABLE) or post.role == "laion"
                dates[pair_id] = "" if undated else OPENPATH_TWEETS if source == OPENPATH else post.created_at[:10]
                # A reply of v1.1 does not say its conversation, only what it answers.
                groups[source, post.reply_to or post.group_id or post.conversation_id].append(pair_id)
    found = {}
    for pair_ids in groups.values():
        is_early = any(dates[one] <= LAST_OF_TRAIN for one in pair_ids)
        for one in pair_ids:
            late = "dropped" if is_early else "test"
            found[one] = "train" if dates[one] <= LAST_OF_TRAIN else late
    return found


def assert_proved(curated: Curated) -> None:
    """The page and the datasheet say that nothing is shared that must not be."""
    text = re.sub(r"<[^>]+>", " ", (curated.out / "funnel.html").read_text())
    assert re.search(r"\bholds\s+yes\b", text)
    assert re.search(r"\bholds\b\W+yes\b", (curated.out / "datasheet.md").read_text())


def test_a_split_by_date_cuts_no_thread(curated, tmp_path):
    expected = expected_splits(curated)
    assert {"train", "test", "dropped"} == set(expected.values())
    split = SplitSettings(train_until=LAST_OF_TRAIN, test_from=FIRST_OF_TEST, holdouts=(("val", 7),))
    dated = curated.copy(tmp_path, split=split)
    dated.again(dated.work, dated.out)
    rows = [row for row in rows_of(dated.out) if row.stage in ("kept", "split")]
    found = {row.id: "dropped" if row.stage == "split" else row.split.replace("val", "train") for row in rows}
    assert found == expected
    assert split_sizes(dated.out)["val"] == 7
    sides = defaultdict(set)
    for row in rows:
        sides[row.image_post_id, row.source.removesuffix("_reply")].add(row.split)
    assert all(len(splits - {""}) == 1 for splits in sides.values())
    assert_reconciles(dated.out)
    assert_proved(dated)
    assert verify.main([str(dated.out)]) == 0


def test_ipaths_configuration_holds_out_as_many_pairs_as_it_says(curated, tmp_path):
    week = curated.week
    sources = (WEB, LOADER, MOBILE, IPATH)
    config = load_config("configs/data/ipath.py", [f"sources.{name}.path={week.folder / name}" for name in sources])
    with config.unlocked():
        config.hydration = ConfigDict(loopback())
        config.split.holdouts = (("retrieval", 5),)
        config.shards.shards = config.engine.partitions = 2
    made = curate_folders(tmp_path, week, CurationConfig.read(config))
    ends = {one: end for one, end in week.truth.items() if one.startswith(tuple(f"{name}:" for name in sources))}
    # What these are copies of is in no dump of Instagram.
    kept = {one for one, (stage, _) in ends.items() if stage in ("kept", "duplicate")}
    assert kept_captions(made.out).keys() == kept
    dropped = {row.id: (row.stage, row.reason) for row in rows_of(made.out) if row.stage not in ("kept", "source")}
    assert dropped == {one: end for one, end in ends.items() if one not in kept}
    assert split_sizes(made.out) == {"retrieval": 5, "train": len(kept) - 5}
    assert json.loads((made.out / "funnel.json").read_text())["splits"]["retrieval"]
    assert_proved(made)
    assert verify.main([str(made.out)]) == 0
