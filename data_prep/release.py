"""Export a dataset as ids and addresses only, for those who may fetch posts and images themselves.

    python -m data_prep.release --records OUT --work WORK --out DIR

`release.csv` has the columns of OpenPath's own release (`source, hashtag, weblink, id, media ID`) and `split, group`
behind them. No image, no caption and no author goes out, not even hashed. Links to posts of the platforms that are
known here are rewritten to the forms that name only the post; other addresses go out as they are, and what their paths
say of a person goes with them, except where that is plain to see (`/@name`, `/~name`): then only the ids go out.
Hashtags are those of the list the set was collected by.
"""

if __name__ == "__main__":  # before the imports that would fail
    from data_prep.extras import CURATION, need_data

    need_data("data_prep.release", *CURATION)

import argparse
import csv
import dataclasses
import os
import re
import shutil
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data_prep.curation.pair import Pair
from data_prep.curation.rows import part_files, read_rows
from data_prep.reports.sorted_lines import keyed_line, sorted_lines, values_of
from data_prep.takedown import is_pending
from plip_jax.data.records import RecordError, read_manifest, records_root

COLUMNS = ("source", "hashtag", "weblink", "id", "media ID", "split", "group")
"""Of `release.csv`, as OpenPath's release calls them, and two of ours: `split` and `group`."""
RELEASE_NAME = "release.csv"

SOURCE_NAMES = {"twitter": "Twitter", "twitter_reply": "Twitter reply", "laion": "PathLAION"}
"""What OpenPath's release calls its sources; others go by their own names."""

_OPENPATH_HASHTAGS = (
    "Autopsy BloodBank blooducation BreastPath BSTpath CardiacPath ClinPath Cytopath dermpath EndoPath ENTPath EyePath "
    "FNApath ForensicPath GIPath GUPath Gynpath HemePath HPBpath IDpath MolDx nephpath NeuroPath OralPath pancpath "
    "PathGME pathInformatics patientbloodmanagement PediPath PulmPath RenalPath SurgPath"
)
PATHOLOGY_HASHTAGS = tuple(_OPENPATH_HASHTAGS.split())
"""The 32 that OpenPath was collected by (Huang et al. 2023), in its spelling."""

# Of a platform: its hosts, what to look for in the path, and the address that names the post and nobody.
_POST_LINKS = (
    (("twitter.com", "x.com"), r"/status(?:es)?/([0-9]+)", "https://twitter.com/i/web/status/{}"),
    (("instagram.com",), r"/(?:p|reel|tv)/([A-Za-z0-9_-]+)", "https://www.instagram.com/p/{}/"),
    # behind the id stands the title, which is the caption
    (("reddit.com",), r"/comments/([a-z0-9]+)", "https://www.reddit.com/comments/{}/"),
    (("flickr.com",), r"/photos/[^/]+/([0-9]+)", "https://www.flickr.com/photo.gne?id={}"),
    (("bsky.app",), r"(?!)", ""),  # a post has no address without its author's name
)


# Paths that stand under a person's name: Mastodon's and Medium's "/@name", universities' "/~name".
_UNDER_A_NAME = re.compile(r"/(?:[@~]|%40|%7e)", re.IGNORECASE)


class ReleaseError(ValueError):
    """Nothing can be released; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class ReleaseRow:
    """A line of the release, in the order of `COLUMNS`."""

    source: str
    hashtag: str
    weblink: str
    id: str
    media_id: str
    split: str
    group: str


def release_row(pair: Pair, hashtags: Sequence[str] = PATHOLOGY_HASHTAGS) -> ReleaseRow:
    """Return what is released of a kept pair.

    Args:
        pair: From the last stage.
        hashtags: Which may be named, as they are to be spelt; the first of the post's own that is among them is.
    """
    spelling = {tag.casefold(): tag for tag in hashtags}
    found = [spelling[tag.casefold()] for tag in pair.hashtags if tag.casefold() in spelling]
    return ReleaseRow(
        source=SOURCE_NAMES.get(pair.source, pair.source),
        hashtag=found[0] if found else "",
        weblink=public_link(pair.permalink or pair.url),
        id=pair.post_id,
        media_id=pair.media_key,
        split=pair.split,
        group=pair.group_id,
    )


def public_link(address: str) -> str:
    """Return an address that, as far as can be told, names a post and not its author nor its text.

    Of platforms that are known only the id of the post is kept. Other addresses lose a user name and a fragment, and
    may still name someone in a way that is not known here. Where a name is plain to see, "": better no link.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not host:
        return ""
    for hosts, pattern, form in _POST_LINKS:
        if any(host == known or host.endswith(f".{known}") for known in hosts):
            found = re.search(pattern, parts.path)
            return form.format(found[1]) if found else ""
    if _UNDER_A_NAME.search(parts.path):
        return ""
    place = f"[{host}]" if ":" in host else host
    return urllib.parse.urlunsplit((parts.scheme, f"{place}:{port}" if port else place, parts.path, parts.query, ""))


def write_release(
    pairs: Iterable[Pair], out: Path, *, expected: dict[str, int], hashtags: Sequence[str] = PATHOLOGY_HASHTAGS
) -> dict[str, int]:
    """Write `release.csv` and its README to a new folder, whole or not at all; equal pairs give equal bytes.

    Args:
        pairs: The kept pairs, in any order.
        out: Folder to make.
        expected: How many records of each split the dataset holds.
        hashtags: Which may be named.

    Returns:
        Rows by source.

    Raises:
        ReleaseError: `out` holds something, or the pairs are not those of the dataset.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReleaseError(f"{out} holds something already: choose another place")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    splits: Counter[str] = Counter()
    sources: Counter[str] = Counter()

    def lines() -> Iterator[str]:
        for pair in pairs:
            row = release_row(pair, hashtags)
            splits[row.split] += 1
            sources[row.source] += 1
            yield keyed_line((row.split, row.source, row.id, row.media_id), dataclasses.astuple(row))

    try:
        with (partial / RELEASE_NAME).open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(values_of(line) for line in sorted_lines(lines(), partial))
        if splits != expected:
            raise ReleaseError(
                f"the work folder holds {dict(sorted(splits.items()))} kept pairs and the records {expected}: they are "
                "not of the same run; run the pipeline again"
            )
        (partial / "README.md").write_text(_readme(splits, sources), encoding="utf-8")
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dict(sorted(sources.items()))


def release(records: Path, work: Path, out: Path) -> dict[str, int]:
    """Release the dataset in `records` that was made in `work`; see `write_release`.

    Raises:
        ReleaseError: `out` is within one of them or around it, a takedown is not finished, or there is nothing to
            release.
        RecordError: Not a records folder.
    """
    if is_pending(work):
        raise ReleaseError(f"a takedown in {work} was begun and not finished: finish it first (data_prep.takedown)")
    place = out.resolve()
    for folder in (records.resolve(), work.resolve()):
        if place.is_relative_to(folder) or folder.is_relative_to(place):
            raise ReleaseError(f"--out {out}: private data is in {folder}; choose a place apart from it")
    kept = work / "stages" / "split" / "kept"
    if not part_files(kept):
        raise ReleaseError(f"--work {work}: no rows in {kept}; run the pipeline first")
    manifest = read_manifest(records_root(records))
    expected = {split: sum(shard.num_examples for shard in shards) for split, shards in manifest.splits.items()}
    return write_release(read_rows(kept, Pair), out, expected=expected)


def _readme(splits: Counter[str], sources: Counter[str]) -> str:
    of_splits = "\n".join(f"| {split} | {count:,} |" for split, count in sorted(splits.items()))
    of_sources = "\n".join(f"| {source} | {count:,} |" for source, count in sorted(sources.items()))
    return f"""# Image-text pairs of pathology: ids and addresses

For research only, not for clinical use. `{RELEASE_NAME}` names pairs of an image and a text about it; it holds neither.

| split | pairs |
| --- | ---: |
{of_splits}

| source | pairs |
| --- | ---: |
{of_sources}

| column | meaning |
| --- | --- |
| source | where the pair comes from |
| hashtag | which of the hashtags that were searched for the post has; may be empty |
| weblink | page of the post, or address of the image where there is no post; empty where it would name a person |
| id | of the post whose text it is, on its platform |
| media ID | of the image in its post |
| split | keep it, so that results compare |
| group | pairs that must stay in one split: same post, thread, or copies of an image |

## How to get the pairs

You need the right to read each source, under its own terms; posts that their authors have removed since are gone, and
stay gone.

- Posts of X (Twitter): look the ids up by the API (`GET /2/tweets`, with `expansions=attachments.media_keys,author_id`
  and `media.fields=url,type`), 100 at a time, and save the pages as they come. The media ID is the `media_key`.
- Other posts: open the weblink, or use the platform's own export.
- Rows whose weblink is an image: `python -m data_prep.hydrate --urls FILE --work WORK` fetches a list of addresses.

`python -m data_prep.curate` makes records of what you have fetched, with the same cleaning. Its splits are its own: put
each pair into the split that its row names here.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when nothing could be released."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.release", description="Export ids and addresses only.")
    parser.add_argument("--records", type=Path, required=True, help="the records folder that was made")
    parser.add_argument("--work", type=Path, required=True, help="the work folder it was made in")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    options = parser.parse_args(arguments)
    try:
        sources = release(options.records, options.work, options.out)
    except (ReleaseError, RecordError, OSError) as error:
        print(f"data_prep.release: {error}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{source} {count}" for source, count in sources.items())
    print(f"released {sum(sources.values())} ids ({counts}) -> {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
