"""CLIP's tokenizer: ids equal the original byte-pair code and transformers, truncation keeps <|endoftext|>."""

import csv
import gzip
import itertools
import json
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex

from plip_jax.data.tokenizer import (
    BOT_TOKEN,
    EOT_TOKEN,
    TOKENIZER_FILES,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
    train_tokenizer,
)

TEXTS = [
    "An H&E image of adenocarcinoma, 20x.",
    "it's we'll I'm they've you'd 're 't don't",
    "Déjà vu: Sjögren's, naïve, ÉCOLE, Ångström, ﬂow",
    "Cafe\N{COMBINING ACUTE ACCENT}",
    "腺癌の組織像。病理 한국어 العربية",
    "great case \N{MICROSCOPE}\N{MICROSCOPE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROSCOPE}!!! #pathology @user",
    "  tabs\tand\nnew   lines \r\n ",
    "1234 3.14 ½ ② ²",
    "p53+/HER2-(3+)…—'quoted'`` ~^_=|<>",
    "",
    " ",
    "a",
    "cell " * 200,
    f"{BOT_TOKEN} inside {EOT_TOKEN} text",
]
CORPUS = [
    "an image of tumour cells in the stroma",
    "tumour stroma with lymphocytes, and mucus",
    "lymphocytes in the mucus of the colon; the colon's glands",
]


class OriginalTokenizer:
    """OpenAI's simple_tokenizer.py, rewritten from its description: merge the pair that was learned first.

    Without its ``ftfy`` and ``html.unescape``, which leave every string in these tests alone but for NFC.
    """

    words = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def __init__(self, merges: list[tuple[str, str]]):
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        letters = {byte: chr(byte) for byte in printable}
        hidden = [byte for byte in range(256) if byte not in letters]
        letters |= {byte: chr(256 + place) for place, byte in enumerate(hidden)}
        base = [letters[byte] for byte in printable + hidden]
        vocab = [*base, *(letter + "</w>" for letter in base), *map("".join, merges), BOT_TOKEN, EOT_TOKEN]
        self.letters = letters
        self.ids = {token: index for index, token in enumerate(vocab)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    def split(self, word: str) -> list[str]:
        if word in (BOT_TOKEN, EOT_TOKEN):
            return [word]
        letters = [self.letters[byte] for byte in word.encode()]
        parts = [*letters[:-1], letters[-1] + "</w>"]
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, place = [], 0
            while place < len(parts):
                step = 2 if tuple(parts[place : place + 2]) == best else 1
                merged.append("".join(parts[place : place + step]))
                place += step
            parts = merged
        return parts

    def __call__(self, text: str, context_length: int) -> list[int]:
        text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip().lower()
        inside = [self.ids[part] for word in self.words.findall(text) for part in self.split(word)]
        row = [self.ids[BOT_TOKEN], *inside, self.ids[EOT_TOKEN]]
        if len(row) > context_length:
            row = [*row[: context_length - 1], self.ids[EOT_TOKEN]]
        return row


def read_merges(path: Path) -> list[tuple[str, str]]:
    left_right = [line.split() for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    return [(left, right) for left, right in left_right]


def check_against_original(tokenizer: Tokenizer, original: OriginalTokenizer, texts: list[str]) -> None:
    rows = tokenizer(texts)
    for text, row in zip(texts, rows.tolist(), strict=True):
        expected = original(text, tokenizer.context_length)
        assert row[: len(expected)] == expected, text
        assert set(row[len(expected) :]) <= {tokenizer.pad_token_id}, text


@pytest.fixture(scope="module")
def learned() -> Tokenizer:
    return train_tokenizer(CORPUS, vocab_size=560, context_length=16)


@pytest.fixture
def folder(learned: Tokenizer, tmp_path: Path) -> Path:
    learned.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.realdata
def test_ids_equal_the_original_code_with_the_published_vocabulary(realdata: Path):
    with gzip.open(realdata / "clip_tokenizer" / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    original = OriginalTokenizer(merges)
    assert original.ids[EOT_TOKEN] == 49407
    tokenizer = load_tokenizer(realdata / "clip_tokenizer")
    assert (tokenizer.vocab_size, tokenizer.context_length, tokenizer.eot_token_id) == (49408, 77, 49407)
    # By hand, from the published vocabulary.
    assert tokenizer("a photo of a cat")[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    check_against_original(tokenizer, original, TEXTS)
    with (realdata / "pathology_atlas" / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = sorted({row["caption"] for row in csv.DictReader(file)})
    with (realdata / "openstax_histology" / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions += sorted({row["caption"] for row in csv.DictReader(file)})
    assert len(captions) > 50
    check_against_original(tokenizer, original, captions)


# transformers 5.15 hands file names to tokenizers, which newer tokenizers call deprecated.
@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0:DeprecationWarning")
@pytest.mark.realdata
def test_ids_equal_transformers_with_the_published_vocabulary(realdata: Path, tmp_path: Path):
    from transformers import CLIPTokenizerFast

    tokenizer = load_tokenizer(realdata / "clip_tokenizer")
    tokenizer.save(tmp_path)
    texts = [*TEXTS, "“curly” ΟΔΟΣ İ ß &amp; \x85 a\u200bb"]
    for source in (realdata / "clip_tokenizer", tmp_path):
        theirs = CLIPTokenizerFast.from_pretrained(source)
        expected = theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
        np.testing.assert_array_equal(tokenizer(texts), expected)
    for name in ("vocab.json", "merges.txt"):
        ours, published = (
            (path / name).read_text(encoding="utf-8") for path in (tmp_path, realdata / "clip_tokenizer")
        )
        if name == "vocab.json":
            assert list(json.loads(ours).items()) == list(json.loads(published).items())
        else:
            assert ours == published


def test_ids_of_a_learned_vocabulary_equal_the_original_algorithm(folder: Path):
    tokenizer = load_tokenizer(folder, context_length=77)
    check_against_original(tokenizer, OriginalTokenizer(read_merges(folder / "merges.txt")), TEXTS + CORPUS)


def test_ids_of_a_learned_vocabulary_equal_transformers(learned: Tokenizer, folder: Path, tmp_path: Path):
    from transformers import AutoTokenizer, CLIPTokenizer, CLIPTokenizerFast

    for kind in (CLIPTokenizer, CLIPTokenizerFast):
        theirs = kind.from_pretrained(folder)
        assert theirs.model_max_length == 16
        assert len(theirs) == learned.vocab_size
        rows = theirs(TEXTS + CORPUS, padding="max_length", truncation=True)["input_ids"]
        np.testing.assert_array_equal(learned(TEXTS + CORPUS), rows)
        theirs.save_pretrained(tmp_path / kind.__name__)  # and back, as the installed version writes it
        again = load_tokenizer(tmp_path / kind.__name__)
        np.testing.assert_array_equal(again(TEXTS), learned(TEXTS))
        assert again.context_length == 16
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert AutoTokenizer.from_pretrained(folder)(CORPUS[0])["input_ids"][0] == learned.bot_token_id


def test_a_long_caption_is_cut_and_keeps_end_of_text_last(learned: Tokenizer):
    rows = learned(["stroma " * 50, "stroma " * 14, "stroma " * 13])
    assert rows.dtype == np.int32
    assert rows.shape == (3, 16)
    assert rows[:, 0].tolist() == [learned.bot_token_id] * 3
    assert rows[:, -1].tolist() == [learned.eot_token_id] * 3
    assert (rows == learned.eot_token_id).argmax(1).tolist() == [15, 15, 14]  # 14 words just fit


def test_no_caption_one_caption_and_an_empty_caption(learned: Tokenizer):
    assert learned([]).shape == (0, 16)
    np.testing.assert_array_equal(learned("stroma"), learned(["stroma"]))
    assert learned("")[0].tolist() == [learned.bot_token_id] + [learned.eot_token_id] * 15


def test_the_vocabulary_has_openais_layout(learned: Tokenizer):
    tokens = list(json.loads(learned.files["vocab.json"]).items())
    assert [index for _, index in tokens] == list(range(560))
    names = [token for token, _ in tokens]
    assert names[:2] == ["!", '"']
    assert names[256:258] == ["!</w>", '"</w>']
    assert names[-2:] == [BOT_TOKEN, EOT_TOKEN]
    assert learned.vocab_size == 560
    assert learned.eot_token_id == 559
    merges = learned.files["merges.txt"].split("\n")[1:-1]
    assert len(merges) == 560 - 512 - 2
    assert "the</w>" in names
    assert [left + right for left, right in map(str.split, merges)] == names[512:-2]


def test_learning_is_the_same_in_every_process_and_thread_count(learned: Tokenizer):
    program = (
        "from plip_jax.data.tokenizer import train_tokenizer\n"
        f"print(train_tokenizer({CORPUS!r}, vocab_size=560, context_length=16).fingerprint)"
    )
    for threads in ("1", "4"):
        env = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        root = Path(__file__).parents[2]
        printed = subprocess.run(
            [sys.executable, "-c", program], env=env, cwd=root, capture_output=True, text=True, check=True
        ).stdout
        assert printed.strip() == learned.fingerprint


def test_a_small_corpus_gives_a_smaller_vocabulary():
    tokenizer = train_tokenizer(["ab ab"], vocab_size=1000, context_length=8)
    assert tokenizer.vocab_size == 515  # one merge
    assert tokenizer.eot_token_id == 514
    with pytest.raises(TokenizerError, match=r"vocab_size: expected at least 514 .*, got 513"):
        train_tokenizer(["ab"], vocab_size=513, context_length=8)


def test_saving_and_loading_changes_nothing(learned: Tokenizer, folder: Path):
    again = load_tokenizer(folder)
    assert again.files == learned.files
    assert again.fingerprint == learned.fingerprint
    assert again.folder == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(TOKENIZER_FILES)
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert all(isinstance(merge, str) for merge in merges)  # tokenizers < 0.20 (transformers 4.40) reads no pairs
    (folder / "tokenizer.json").unlink()
    assert load_tokenizer(folder).fingerprint == learned.fingerprint  # from vocab.json and merges.txt


def test_the_fingerprint_changes_with_what_decides_the_ids(learned: Tokenizer, folder: Path):
    fingerprints = {
        learned.fingerprint,
        load_tokenizer(folder, context_length=15).fingerprint,
        train_tokenizer(CORPUS, vocab_size=559, context_length=16).fingerprint,
        train_tokenizer([*CORPUS, "other words"], vocab_size=560, context_length=16).fingerprint,
    }
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["normalizer"]["normalizers"].pop()  # the lower-casing
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    fingerprints.add(load_tokenizer(folder).fingerprint)
    assert len(fingerprints) == 5


@pytest.mark.parametrize("pad", ["!", {"content": "!"}])
def test_the_folders_own_pad_token_is_kept(pad: str | dict, folder: Path, tmp_path: Path):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": pad}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer("")[0].tolist() == [tokenizer.bot_token_id, tokenizer.eot_token_id] + [0] * 14
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").pad_token_id == 0


@pytest.mark.parametrize(("declared", "length"), [(16, 16), (1e30, 77), (None, 77)])
def test_the_context_length_comes_from_the_folder(declared: float | None, length: int, folder: Path):
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": declared}))
    assert load_tokenizer(folder).context_length == length
    assert load_tokenizer(folder, context_length=5)("cells " * 9).shape == (1, 5)


def test_a_pickled_copy_encodes_the_same(learned: Tokenizer):
    assert learned.files
    data = pickle.dumps(learned)
    np.testing.assert_array_equal(pickle.loads(data)(TEXTS), learned(TEXTS))


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TokenizerError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt, got \[\]"):
        load_tokenizer(empty)
    with pytest.raises(TokenizerError, match="context_length: expected 2 or more"):
        load_tokenizer(folder, context_length=1)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(state | {"post_processor": None}), encoding="utf-8")
    with pytest.raises(TokenizerError, match="expected CLIP's tokenizer"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(
        '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', encoding="utf-8"
    )
    with pytest.raises(TokenizerError, match=r"expected the token <\|startoftext\|> in the vocabulary"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match="expected readable tokenizer files"):
        load_tokenizer(folder)


def test_without_the_network_the_error_names_the_folder_to_fetch():
    with pytest.raises(TokenizerError, match=r"without the network, download https://huggingface\.co/nobody/plip"):
        load_tokenizer("nobody/plip")


def test_neither_transformers_nor_torch_nor_jax_is_imported(folder: Path):
    program = (
        "import sys; from plip_jax.data.tokenizer import load_tokenizer; from plip_jax.data import image, augment\n"
        f"load_tokenizer({str(folder)!r})('stroma')\n"
        "print({'transformers', 'torch', 'jax', 'tensorflow', 'huggingface_hub'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
