import hashlib
import stat

import pytest

from data_prep.curation.authors import (
    AuthorKey,
    AuthorKeyError,
    check_same_key,
    hash_author,
    hash_place,
    key_check,
    load_author_key,
    make_author_key,
)

KEY = AuthorKey(bytes(range(32)))


def test_the_hash_is_hmac_sha256_cut_to_128_bits():
    # HMAC written out: RFC 2104, section 2
    padded = KEY.secret + bytes(32)
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + b"1:x6253282").digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).hexdigest()
    assert hash_author(KEY, "x", "6253282") == outer[:32]


def test_hashes_tell_apart_authors_platforms_and_keys():
    names = [("x", "ab"), ("xa", "b"), ("x", "abc"), ("instagram", "ab"), ("1:x", "ab"), ("x", "\ud800")]
    hashes = {hash_author(KEY, *name) for name in names} | {hash_author(AuthorKey(bytes(32)), "x", "ab")}
    assert len(hashes) == 7
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in hashes)
    assert hash_author(KEY, "x", "ab") == hash_author(KEY, "x", "ab")


def test_nobody_stays_nobody():
    assert hash_author(KEY, "x", "") == ""


def test_a_key_is_made_once_for_its_owner_and_not_shown(tmp_path):
    path = tmp_path / "keys" / "authors.key"
    make_author_key(path)
    assert len(path.read_bytes()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(AuthorKeyError, match="already"):
        make_author_key(path)
    key = load_author_key(path, work=tmp_path / "work", out=tmp_path / "out")
    assert key.secret == path.read_bytes()
    assert "secret" not in repr(key)
    make_author_key(tmp_path / "other.key")
    assert (tmp_path / "other.key").read_bytes() != key.secret


@pytest.mark.parametrize("place", ["work/a.key", "out/deep/a.key", "work/../out/a.key", "link/a.key", "link.key"])
def test_a_key_within_the_dataset_is_refused(tmp_path, place):
    for folder in ("work", "out/deep", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "work")
    (tmp_path / "work/real.key").write_bytes(bytes(32))
    (tmp_path / "link.key").symlink_to(tmp_path / "work/real.key")
    if place != "link.key":
        (tmp_path / place).write_bytes(bytes(32))
    with pytest.raises(AuthorKeyError, match="elsewhere"):
        load_author_key(tmp_path / place, work=tmp_path / "work", out=tmp_path / "out")


def test_a_link_within_the_dataset_to_a_key_elsewhere_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "real.key").write_bytes(bytes(32))
    (tmp_path / "out/a.key").symlink_to(tmp_path / "real.key")
    with pytest.raises(AuthorKeyError, match="elsewhere"):
        load_author_key(tmp_path / "out/a.key", work=tmp_path / "work", out=tmp_path / "out")


def test_a_key_that_is_absent_or_short_is_refused(tmp_path):
    folders = {"work": tmp_path / "work", "out": tmp_path / "out"}
    with pytest.raises(AuthorKeyError, match="--make-author-key"):
        load_author_key(tmp_path / "absent.key", **folders)
    (tmp_path / "short.key").write_bytes(bytes(31))
    with pytest.raises(AuthorKeyError, match="31 bytes"):
        load_author_key(tmp_path / "short.key", **folders)


def test_a_work_folder_is_of_one_key(tmp_path):
    work, other = tmp_path / "work", AuthorKey(bytes(32))
    check_same_key(KEY, work)
    check_same_key(KEY, work)
    with pytest.raises(AuthorKeyError, match="made with another key"):
        check_same_key(other, work)
    (told,) = [path.read_text().strip() for path in work.iterdir()]
    assert told == key_check(KEY) != key_check(other)
    assert KEY.secret.hex() not in told


def test_a_place_is_a_hash_that_only_the_key_gives():
    place = "part-0.parquet row 1"
    assert hash_place(KEY, place) == hash_place(KEY, place)
    others = {hash_place(KEY, "part-0.parquet row 2"), hash_place(AuthorKey(bytes(32)), place)}
    others.add(hashlib.sha256(place.encode()).hexdigest()[:16])
    assert len({hash_place(KEY, place), *others}) == 4
    assert len(hash_place(KEY, place)) == 16
