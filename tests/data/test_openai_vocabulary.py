"""OpenAI's vocabulary file: read, refused where it is not one, found where a package has it, and known again."""

import gzip
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import CAPTIONS, make_tokenizer
from small_vocabulary import write_vocabulary

from plip_jax.data.openai_vocabulary import VOCABULARY_FILE, find_installed
from plip_jax.data.tokenizer import TokenizerError, has_tokenizer, load_tokenizer


def test_the_first_merges_are_read_in_openais_order(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path / "clip", num_merges=60_000)
    assert has_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.context_length) == (49408, 77)
    # "!" and "a" are bytes 33 and 97, the first and the 65th printable one; 256 are before those that close a word.
    # The first merge is "! !</w>", behind 512 bytes; pairs of "a" begin behind 64 letters with 256 partners each.
    expected = [49406, 512, 64 + 256, 512 + 64 * 256 + 64, 49407]
    assert tokenizer(["!! a aa"])[0, :5].tolist() == expected
    assert not tokenizer.is_clips_own
    assert not make_tokenizer().is_clips_own


@pytest.mark.realdata
def test_the_published_file_gives_the_published_ids(realdata: Path, tmp_path: Path) -> None:
    published = realdata / "clip_tokenizer"
    folders = (tmp_path / "openai", tmp_path / "hf")
    for folder, names in zip(folders, ([VOCABULARY_FILE], ["vocab.json", "merges.txt"]), strict=True):
        folder.mkdir()
        for name in names:
            shutil.copy(published / name, folder)
    openai, hf = map(load_tokenizer, folders)
    texts = [*CAPTIONS, "", "Déjà vu: 腺癌, опухоль \N{MICROSCOPE} it's 20x", "mucus " * 90]
    np.testing.assert_array_equal(openai(texts), hf(texts))
    assert openai.files == hf.files
    assert openai.fingerprint == hf.fingerprint
    assert openai.is_clips_own


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no gzip", "expected OpenAI's gzip file"),
        (gzip.compress(b"title\na b\n"), "expected 48894 merges of two parts"),
        (gzip.compress(b"title\n" + b"a b c\n" * 50_000), "expected 48894 merges of two parts"),
        (gzip.compress(b"title\na b\n" * 9)[:-6], "expected OpenAI's gzip file"),
        (gzip.compress(bytes(17 << 20)), "got more than 16777216 bytes"),
        (gzip.compress(b"\xff\n" * 50_000), "expected readable tokenizer files"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / VOCABULARY_FILE).write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path)


def test_an_installed_package_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.split(".")[0] in ("open_clip", "clip")]:
        monkeypatch.delitem(sys.modules, name)
    assert find_installed() is None
    for package in ("open_clip", "clip"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "clip" / VOCABULARY_FILE).touch()
    assert find_installed() == tmp_path / "clip"
    (tmp_path / "open_clip" / VOCABULARY_FILE).touch()
    assert find_installed() == tmp_path / "open_clip"
