"""Split manifests: written and read as they are, refused when edited, found by scheme and part."""

import json

import pytest

from plip_jax.data.split_manifest import (
    Part,
    SplitManifestError,
    SplitScheme,
    find_part,
    read_schemes,
    write_scheme,
)

PUBLISHED = SplitScheme("as_published", "theirs", {"train": Part(("a", "b")), "test": Part(("c",), ("x",))})
CORRECTED = SplitScheme("by_slide", "ours", {"test": Part(("a",))}, is_default=True)


def test_schemes_come_back_as_they_were(tmp_path):
    for scheme in (PUBLISHED, CORRECTED):
        write_scheme(tmp_path, scheme)
    assert read_schemes(tmp_path) == {"as_published": PUBLISHED, "by_slide": CORRECTED}
    assert read_schemes(tmp_path / "elsewhere") == {}


def test_the_hash_covers_names_labels_parts_and_order():
    variants = [
        PUBLISHED,
        SplitScheme("other", "theirs", PUBLISHED.parts),
        SplitScheme("as_published", "theirs", {**PUBLISHED.parts, "train": Part(("b", "a"))}),
        SplitScheme("as_published", "theirs", {**PUBLISHED.parts, "test": Part(("c",), ("y",))}),
        SplitScheme("as_published", "theirs", {"train": PUBLISHED.parts["train"]}),
    ]
    assert len({scheme.sha256 for scheme in variants}) == len(variants)
    assert SplitScheme("as_published", "another text", PUBLISHED.parts).sha256 == PUBLISHED.sha256


def test_an_edited_manifest_is_refused(tmp_path):
    path = write_scheme(tmp_path, PUBLISHED)
    content = json.loads(path.read_text())
    content["parts"]["train"]["filenames"].append("c")
    path.write_text(json.dumps(content))
    with pytest.raises(SplitManifestError, match="it was edited"):
        read_schemes(tmp_path)
    path.write_text("{}")
    with pytest.raises(SplitManifestError, match="is not a split manifest"):
        read_schemes(tmp_path)


def test_a_part_is_found_by_its_scheme_or_in_the_default_one():
    schemes = {scheme.name: scheme for scheme in (PUBLISHED, CORRECTED)}
    assert find_part(schemes, "test") == (CORRECTED, CORRECTED.parts["test"])
    assert find_part(schemes, "as_published/test") == (PUBLISHED, PUBLISHED.parts["test"])
    for wrong in ("train", "as_published/val", "nowhere/test"):
        with pytest.raises(SplitManifestError, match="there are as_published/train, as_published/test, by_slide/test"):
            find_part(schemes, wrong)


def test_what_is_no_split_is_refused():
    with pytest.raises(SplitManifestError, match="twice"):
        Part(("a", "a"))
    with pytest.raises(SplitManifestError, match="expected 2 labels"):
        Part(("a", "b"), ("x",))
    with pytest.raises(SplitManifestError, match="letters, digits"):
        SplitScheme("by slide", "", {})
