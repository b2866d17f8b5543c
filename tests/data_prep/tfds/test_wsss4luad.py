"""The WSSS4LUAD builder on patches that the test writes in the published layout, with its faults planted."""

import collections

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from plip_jax.data.examples import open_examples

PATCHES = [
    f"{case}-{100 + number}-{200 + number}-[{flags}].png"
    for case in ("1004470", "1009999", "TCGA-05-4249-01Z", "1100000", "1200000")
    for number, flags in enumerate(("1, 0, 0", "1, 1, 0", "0, 1, 0", "0, 0, 1"))
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("wsss4luad")
    folder = root / "WSSS4LUAD" / "1.training" / "1.training"
    validation = root / "WSSS4LUAD" / "2.validation" / "img"
    for made in (folder, validation, root / "__MACOSX" / "1.training"):
        made.mkdir(parents=True)
    for number, name in enumerate([*PATCHES, "1300000-5-6-[1,0,1].png"]):
        Image.new("RGB", (20, 30), (number, 0, 0)).save(folder / name)
    Image.new("RGB", (40, 40)).save(validation / "00.png")
    (folder / "Thumbs.db").write_bytes(b"not an image")
    (root / "__MACOSX" / "1.training" / f"._{PATCHES[0]}").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def built(archive, tmp_path_factory):
    return build("wsss4luad", archive, tmp_path_factory.mktemp("built"), allow_counts=True)


def both(built, scheme):
    return {part: list(open_examples(built, f"{scheme}/{part}")) for part in ("train", "test")}


def test_flags_become_label_and_label_set(built):
    found = {e.id: e for part in both(built, "by_group").values() for e in part}
    assert {
        name: (e.label, e.label_set, e.group_id) for name, e in found.items() if "1004470" in name or "1300" in name
    } == {
        "1004470-100-200-[1, 0, 0].png": ("tumor", ("tumor",), "1004470"),
        "1004470-101-201-[1, 1, 0].png": ("tumor", ("tumor", "stroma"), "1004470"),
        "1004470-102-202-[0, 1, 0].png": ("normal", ("stroma",), "1004470"),
        "1004470-103-203-[0, 0, 1].png": ("normal", ("normal",), "1004470"),
        "1300000-5-6-[1,0,1].png": ("tumor", ("tumor", "normal"), "1300000"),
    }
    assert found["TCGA-05-4249-01Z-100-200-[1, 0, 0].png"].group_id == "TCGA-05-4249-01Z"


def test_groups_stay_whole_by_default_and_are_torn_as_published(built):
    groups = [{e.group_id for e in part} for part in both(built, "by_group").values()]
    assert not groups[0] & groups[1]
    assert len(groups[0] | groups[1]) == 6
    published = both(built, "as_published")
    assert (len(published["train"]), len(published["test"])) == (14, 7)  # int(0.7 * 21)
    assert {e.group_id for e in published["train"]} & {e.group_id for e in published["test"]}


def test_single_flag_patches_have_three_classes(built):
    labels = collections.Counter(e.label for part in both(built, "single_flag").values() for e in part)
    assert labels == {"tumor": 5, "stroma": 5, "normal": 5}


def test_counts_that_are_off_fail_and_the_scheme_s_are_said(archive, tmp_path, capsys):
    with pytest.raises(SetError, match=r"in all: expected 10,091, got 21 \(-10,070\); tumor: expected 6,579, got 11"):
        build("wsss4luad", archive, tmp_path)
    build("wsss4luad", archive, tmp_path, allow_counts=True)
    assert "single_flag stroma: expected 1,680, got 5 (-1,675)" in capsys.readouterr().err


def test_another_name_is_refused_and_never_evaluated(tmp_path):
    folder = tmp_path / "1.training"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "1-2-3-[print(1), 0, 1].png")
    with pytest.raises(SetError, match=r"expected a name like '1004470-38643-28941-\[0, 0, 1\]\.png'"):
        build("wsss4luad", tmp_path, tmp_path / "out", allow_counts=True)


def test_a_missing_folder_is_named(tmp_path):
    (tmp_path / "2.validation").mkdir()
    with pytest.raises(SetError, match=r"expected a folder '1.training' at any depth, found 2.validation"):
        build("wsss4luad", tmp_path, tmp_path / "out")
