"""Embeddings from files: HF's own CLIP written so gives our predictions and ranks; every layout; what is missing."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, NO_TORCH, make_tokenizer, make_torch_model, save_torch_folder

from plip_jax.convert.embedding_files import EmbeddingFilesError, read_embedding_files
from plip_jax.data.image import Preprocessing, normalize_pixels, preprocess_image
from plip_jax.encoders.table import open_encoder
from plip_jax.encoders.task_model import make_model
from plip_jax.evaluation.examples import Examples
from plip_jax.evaluation.retrieval_task import RetrievalConfig, run_retrieval
from plip_jax.evaluation.task import Inputs
from plip_jax.evaluation.zero_shot_task import ZeroShotConfig, run_zero_shot

IDS, FEATURES = ["a/1.png", "b é", "c"], np.arange(12, dtype=np.float32).reshape(3, 4) + 1


@dataclasses.dataclass(frozen=True)
class Record:
    id: str
    label: str
    captions: tuple[str, ...]
    image: bytes


PROMPTS = {
    "name": "tiny",
    "source": "made here",
    "classes": {
        "tumor": ["colorectal adenocarcinoma epithelium"],
        "normal": ["normal colon mucosa"],
        "fat": ["fat", "lipid"],
    },
    "templates": ["An H&E image of {}.", "{}"],
}


@pytest.fixture(scope="module")
def examples() -> Examples:
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 32 + i, 3), np.uint8)).save(stream, "PNG")
        captions = (CAPTIONS[i % 4], f"{CAPTIONS[(i + 1) % 4]} number {i}")
        records.append(Record(f"tile {i}", list(PROMPTS["classes"])[i % 3], captions, stream.getvalue()))
    return Examples.from_records(records)


def test_hfs_own_embeddings_give_identical_predictions_and_ranks(examples, tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    reference = make_torch_model(seed=3)
    folder = save_torch_folder(tmp_path / "hf", reference)
    preprocessing = Preprocessing(32)
    pixels = np.stack([preprocess_image(Image.open(io.BytesIO(r.image)), preprocessing) for r in examples.records])
    prompts = [t.format(name) for t in PROMPTS["templates"] for names in PROMPTS["classes"].values() for name in names]
    captions = [caption for captions in examples.captions for caption in captions]  # some of them many times
    with torch.no_grad():
        values = normalize_pixels(pixels, preprocessing).transpose(0, 3, 1, 2)
        images = reference.visual_projection(
            reference.vision_model(torch.from_numpy(np.ascontiguousarray(values))).pooler_output
        )
        tokens = torch.from_numpy(make_tokenizer(16)([*prompts, *captions]).astype(np.int64))
        texts = reference.text_projection(reference.text_model(tokens).pooler_output)
    files = tmp_path / "theirs"
    files.mkdir()
    np.save(files / "images.npy", images.numpy())
    (files / "image_ids.txt").write_text("\n".join(examples.ids) + "\n")
    np.save(files / "texts.npy", texts.numpy())
    (files / "texts.json").write_text(json.dumps([*prompts, *captions]))
    (files / "logit_scale.txt").write_text(str(float(np.exp(reference.logit_scale.item()))))

    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    ours, theirs = (make_model(open_encoder(source, batch_size=8)) for source in (folder, f"files:{files}"))
    assert ours.logit_scale == pytest.approx(theirs.logit_scale, rel=1e-6)  # a float32 written as text
    assert (theirs.tower, theirs.name) == (None, "theirs")
    inputs = [Inputs({"test": examples}, model) for model in (ours, theirs)]
    zero_shot = [run_zero_shot(ZeroShotConfig(str(tmp_path / "prompts.json")), given) for given in inputs]
    assert [row["predicted"] for row in zero_shot[0].rows] == [row["predicted"] for row in zero_shot[1].rows]
    metrics = [dict(result.report["metrics"]) for result in zero_shot]
    # The one metric of confidences and not of ranks: float32 features of two libraries.
    assert metrics[0].pop("ece") == pytest.approx(metrics[1].pop("ece"), abs=1e-5)
    assert metrics[0] == metrics[1]
    assert len({row["predicted"] for row in zero_shot[0].rows}) > 1  # else this could hardly fail
    retrieval = [run_retrieval(RetrievalConfig("caption", (1, 5)), given) for given in inputs]
    assert retrieval[0].rows == retrieval[1].rows
    assert retrieval[0].report == retrieval[1].report


def write(folder, layout: str) -> None:
    if layout == "npz":
        np.savez(folder / "images.npz", ids=np.array(IDS), features=FEATURES)
    elif layout == "h5":
        h5py = pytest.importorskip("h5py", reason="h5py is in the extra data")
        with h5py.File(folder / "images.h5", "w") as file:
            file["ids"], file["features"] = IDS, FEATURES
    else:
        np.save(folder / "images.npy", FEATURES)
        if layout == "txt":
            (folder / "image_ids.txt").write_text("\r\n".join(IDS), encoding="utf-8", newline="")
        elif layout == "json":
            (folder / "image_ids.json").write_text(json.dumps(IDS))
        else:
            (folder / "image_ids.csv").write_text("row,id\n" + "\n".join(f"{i},{name}" for i, name in enumerate(IDS)))


@pytest.mark.parametrize("layout", ["txt", "json", "csv", "npz", "h5"])
def test_every_layout_gives_the_same_rows_by_id(tmp_path, layout):
    write(tmp_path, layout)
    encoder = open_encoder(f"files:{tmp_path}", name="CONCH")

    def unread():
        raise AssertionError("an image was read")
        yield b""

    np.testing.assert_array_equal(
        encoder.encode_images(unread(), names=("c", "a/1.png")), [[9, 10, 11, 12], [1, 2, 3, 4]]
    )
    assert (encoder.name, encoder.encode_text, encoder.logit_scale, encoder.computed) == ("CONCH", None, None, False)
    assert json.loads(json.dumps(encoder.describe())) == encoder.describe()
    (tmp_path / "copy").mkdir()
    write(tmp_path / "copy", layout)
    assert open_encoder(f"files:{tmp_path / 'copy'}").key == encoder.key
    if layout in ("npz", "h5"):
        alone = open_encoder(f"files:{tmp_path / f'images.{layout}'}")
        np.testing.assert_array_equal(alone.encode_images([], names=IDS), FEATURES)


def test_missing_ids_are_counted_and_the_first_is_named(tmp_path):
    write(tmp_path, "txt")
    encoder = open_encoder(f"files:{tmp_path}")
    with pytest.raises(EmbeddingFilesError, match=r"has 3 image ids, but not 2 of the 3 asked for, first 'x'"):
        encoder.encode_images([], names=("c", "x", "y"))


def test_texts_are_looked_up_by_the_text_itself(tmp_path):
    write(tmp_path, "txt")
    np.save(tmp_path / "texts.npy", FEATURES.astype(np.float16))
    (tmp_path / "texts.csv").write_text('text\n"mucus, and\nstroma"\nfat\nlipid\n')
    (tmp_path / "metadata.json").write_text(json.dumps({"name": "M", "logit_scale": 50, "normalized": False}))
    encoder = open_encoder(f"files:{tmp_path}")
    assert (encoder.name, encoder.logit_scale, encoder.normalized) == ("M", 50, False)
    assert encoder.encode_text is not None
    features = encoder.encode_text(["fat", "mucus, and\nstroma", "fat"])
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features[:, 0], [5, 1, 5])
    with pytest.raises(EmbeddingFilesError, match="not 1 of the 1 asked for, first 'Fat'"):
        encoder.encode_text(["Fat"])


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(EmbeddingFilesError, match="nothing is there"):
        read_embedding_files(tmp_path / "absent")
    with pytest.raises(EmbeddingFilesError, match=r"expected images\.npy .* found an empty folder"):
        read_embedding_files(tmp_path)
    np.save(tmp_path / "images.npy", FEATURES)
    with pytest.raises(EmbeddingFilesError, match=r"expected one of image_ids\.txt, .* got none"):
        read_embedding_files(tmp_path)
    ids = tmp_path / "image_ids.txt"
    ids.write_text("a\nb\n")
    with pytest.raises(EmbeddingFilesError, match="a name for each of 3 rows, got 2"):
        read_embedding_files(tmp_path)
    ids.write_text("a\nb\na\n")
    with pytest.raises(EmbeddingFilesError, match="each name once, got 'a' twice"):
        read_embedding_files(tmp_path)
    ids.write_text("a\nb\nc\n")
    np.save(tmp_path / "texts.npy", FEATURES)
    (tmp_path / "texts.txt").write_text("x\ny\nx\n")
    with pytest.raises(EmbeddingFilesError, match="'x' twice with different features"):
        read_embedding_files(tmp_path)
    np.save(tmp_path / "texts.npy", FEATURES[:, :3])
    (tmp_path / "texts.txt").write_text("x\ny\nz\n")
    with pytest.raises(EmbeddingFilesError, match="of one space, got 4 and 3 features"):
        read_embedding_files(tmp_path)
    (tmp_path / "logit_scale.txt").write_text("-4.6")
    np.save(tmp_path / "texts.npy", FEATURES)
    with pytest.raises(EmbeddingFilesError, match="expected a positive number"):
        read_embedding_files(tmp_path)
    np.savez(tmp_path / "images.npz", ids=np.array(IDS), features=FEATURES)
    with pytest.raises(EmbeddingFilesError, match=r"images once, got images\.npy, images\.npz"):
        read_embedding_files(tmp_path)


def test_pickles_inside_arrays_are_not_loaded(tmp_path):
    np.savez(tmp_path / "images.npz", ids=np.array(IDS, dtype=object), features=FEATURES)
    with pytest.raises(EmbeddingFilesError, match="allow_pickle"):
        read_embedding_files(tmp_path)
    (tmp_path / "images.npz").unlink()
    np.save(tmp_path / "images.npy", np.array([{}, {}, {}], dtype=object))
    (tmp_path / "image_ids.json").write_text(json.dumps(IDS))
    with pytest.raises(EmbeddingFilesError, match=r"images\.npy: expected an array saved by numpy\.save"):
        read_embedding_files(tmp_path)
