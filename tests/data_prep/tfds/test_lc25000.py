"""The LC25000 builders on archives that the test writes in the published layout, with its faults planted."""

import collections
import shutil

import pytest
from PIL import Image

from data_prep.tfds.base import SetError
from data_prep.tfds.build import build
from plip_jax.data.examples import open_examples

FOLDERS = {
    "lung_image_sets/lung_aca": "lungaca",
    "lung_image_sets/lung_n": "lungn",
    "lung_image_sets/lung_scc": "lungscc",
    "colon_image_sets/colon_aca": "colonca",
    "colon_image_sets/colon_n": "colonn",
}


def write_images(root):
    """Twelve images a class."""
    for number, (folder, name) in enumerate(FOLDERS.items()):
        path = root / "lung_colon_image_set" / "lung_colon_image_set" / folder
        path.mkdir(parents=True)
        for copy in range(1, 13):
            Image.new("RGB", (8, 8), (20 * number, 10 * copy, 0)).save(path / f"{name}{copy}.jpeg")
    debris = root / "__MACOSX" / "lung_image_sets" / "lung_n"
    debris.mkdir(parents=True)
    (debris / "._lungn1.jpeg").write_bytes(b"not an image")


def write_clusters(root, variant="UNI/resize_only", offset=0):
    """Copies 1 and 7, 2 and 8, …: six clusters of two, whose numbers begin at 0 in each class."""
    for folder, name in FOLDERS.items():
        label = folder.split("/")[1]
        path = root / "annotations" / label / variant / "final_clusters.csv"
        path.parent.mkdir(parents=True)
        rows = [f"{(copy - 1) % 6 + offset},./LC25000/{label}/{name}{copy}.jpeg" for copy in range(1, 13)]
        path.write_text("\n".join(["cluster_label,img_path", *rows]) + "\n")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("lc25000")
    write_images(root)
    return root


@pytest.fixture(scope="module")
def clustered(archive, tmp_path_factory):
    root = tmp_path_factory.mktemp("clustered")
    shutil.copytree(archive, root, dirs_exist_ok=True)
    write_clusters(root)
    write_clusters(root, "DINO/crop", offset=100)  # another encoder's, not read
    return root


def test_copies_stay_together_by_default(clustered, tmp_path, capsys):
    built = build("lc25000_lung", clustered, tmp_path, allow_counts=True)
    parts = {part: list(open_examples(built, part)) for part in ("train", "val", "test")}
    groups = {part: {e.group_id for e in examples} for part, examples in parts.items()}
    assert sum(map(len, groups.values())) == len(set().union(*groups.values())) == 18
    assert "lung_aca_0" in set().union(*groups.values())
    counts = {part: collections.Counter(e.label for e in examples) for part, examples in parts.items()}
    # six clusters of two a class at 60/20/20: 4, 1, 1
    assert counts == {
        "train": dict.fromkeys(("lung_aca", "lung_n", "lung_scc"), 8),
        "val": dict.fromkeys(("lung_aca", "lung_n", "lung_scc"), 2),
        "test": dict.fromkeys(("lung_aca", "lung_n", "lung_scc"), 2),
    }
    said = capsys.readouterr()
    assert "36 images are copies of 18 originals (clusters): n is 18" in said.out
    assert "clusters lung_aca: expected 250, got 6 (-244)" in said.err


def test_copies_share_a_group_within_their_class_only(clustered, tmp_path):
    test = open_examples(build("lc25000_colon", clustered, tmp_path, allow_counts=True), "all/test")
    group_of = {e.id: e.group_id for e in test}
    assert group_of["colon_aca/colonca1.jpeg"] == group_of["colon_aca/colonca7.jpeg"] == "colon_aca_0"
    assert group_of["colon_n/colonn1.jpeg"] == "colon_n_0"
    assert [e.id for e in test][8:13] == [f"colon_aca/colonca{n}.jpeg" for n in (9, 10, 11, 12)] + [
        "colon_n/colonn1.jpeg"
    ]


def test_without_clusters_there_is_no_split_and_no_unit(archive, tmp_path, capsys):
    built = build("lc25000_colon", archive, tmp_path, allow_counts=True)
    test = open_examples(built, "test")
    assert len(test) == 24
    assert {e.group_id for e in test} == {""}
    assert "n is 1" in capsys.readouterr().out  # 24 at 20 copies each
    with pytest.raises(ValueError, match="there are all/test"):
        open_examples(built, "train")


def test_counts_that_are_off_fail(archive, tmp_path):
    with pytest.raises(SetError, match=r"colon_aca: expected 5,000, got 12 \(-4,988\); colon_n: expected 5,000"):
        build("lc25000_colon", archive, tmp_path)


def test_faults_are_named(clustered, tmp_path):
    root = tmp_path / "in"
    shutil.copytree(clustered, root)
    path = root / "annotations" / "colon_n" / "UNI" / "resize_only" / "final_clusters.csv"
    path.write_text(path.read_text() + "3,.\\LC25000\\colon_n\\colonn1.jpeg\n")
    with pytest.raises(SetError, match=r"colonn1.jpeg is in cluster 3 here and in 0 elsewhere"):
        build("lc25000_colon", root, tmp_path / "out", allow_counts=True)
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    with pytest.raises(SetError, match=r"1 images are in no final_clusters.csv, first colonn12.jpeg"):
        build("lc25000_colon", root, tmp_path / "out", allow_counts=True)
    path.write_text("cluster,img_path\n")
    with pytest.raises(SetError, match="expected the columns cluster_label, img_path, got cluster, img_path"):
        build("lc25000_colon", root, tmp_path / "out", allow_counts=True)
    images = root / "lung_colon_image_set" / "lung_colon_image_set" / "colon_image_sets"
    (images / "colon_n" / "colonn2.jpeg").rename(images / "colon_aca" / "colonn2.jpeg")
    path.unlink()
    with pytest.raises(SetError, match="the name says colon_n, the folder colon_aca"):
        build("lc25000_colon", root, tmp_path / "out", allow_counts=True)
