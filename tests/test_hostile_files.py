"""Hostile files of every kind, through the doors that people use: the right answer, or an error that says what is so.

Nothing in a file is executed (no canary), none costs much time or memory, and nothing already written is lost.
"""

import contextlib
import csv
import os
import pickle
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hostile_images import ANYTHING, HOSTILE_IMAGES, PICTURE, RED, encoded, write_images
from hostile_pickles import CANARY, PAYLOADS
from hostile_weights import HOSTILE_SOURCES, SOURCE_OF, HostileSource, sound, write_source
from PIL import Image
from small_models import make_model

from plip_jax import embed as embed_program
from plip_jax import export as export_program
from plip_jax.answers import DamagedImagesWarning
from plip_jax.api import PLIP
from plip_jax.convert.load import LoadedModel, load_model
from plip_jax.data.image import ImageError
from plip_jax.embedding_store import open_embeddings
from plip_jax.sharding import make_mesh

SOUND_HASH = make_model().weights_hash

# Each takes milliseconds; a loaded machine is given the rest.
MAX_SECONDS = 10.0
# The largest file has 1 MB; the largest picture that is let in, 120 kB. The rest is the room of allocators.
MAX_BYTES = 128 << 20

# What our errors say is to be done, or what would have been right.
ADVICE = r"expected|does not have|again|refused|supported|is the configuration|raise max_pixels"


@pytest.fixture(scope="module", autouse=True)
def sound_files() -> None:
    """Made before anything is measured: jax is started for them."""
    for layout in SOURCE_OF:
        sound(layout)


@pytest.fixture(autouse=True)
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of its own: no canary in the end, not much time, and no new high-water mark of the memory."""
    monkeypatch.chdir(tmp_path)
    with limited():
        yield
    assert not list(tmp_path.rglob(CANARY))


@contextlib.contextmanager
def limited() -> Iterator[None]:
    memory, began = _peak_memory(), time.monotonic()
    yield
    assert time.monotonic() - began < MAX_SECONDS
    assert _peak_memory() - memory < MAX_BYTES


def _peak_memory() -> int:
    """Bytes; of the process since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check_error(error: ValueError, where: str) -> None:
    """It is one of ours, names the file or its folder, and says what to do."""
    assert type(error).__module__.startswith("plip_jax."), repr(error)
    assert where in str(error)
    with pytest.raises(type(error), match=ADVICE):
        raise error


def test_there_are_hundreds_of_different_ones() -> None:
    sources = {
        (case.layout, *sorted((file, hash(content)) for file, content in case.changes().items()))
        for case in HOSTILE_SOURCES.values()
    }
    images = {hash(image.make()) for image in HOSTILE_IMAGES.values()}
    assert len(sources) == len(HOSTILE_SOURCES)
    assert len(images) == len(HOSTILE_IMAGES)
    assert len(sources) + len(images) >= 300


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", SOURCE_OF)
def test_the_sound_ones_are_read(tmp_path: Path, layout: str) -> None:
    """The counterpart of the cases below: the same files, nothing wrong."""
    assert load_model(write_source(tmp_path, HostileSource(layout, dict))).weights_hash == SOUND_HASH


@pytest.mark.parametrize("name", PAYLOADS)
def test_pickle_itself_would_run_the_code(tmp_path: Path, name: str) -> None:
    pickle.loads(b"\x80\x04" + PAYLOADS[name] + b".")
    (tmp_path / CANARY).unlink()


@pytest.mark.parametrize("name", HOSTILE_SOURCES)
def test_source(tmp_path: Path, name: str) -> None:
    case = HOSTILE_SOURCES[name]
    folder = tmp_path / "model"
    folder.mkdir()
    source = write_source(folder, case)
    files = _content(folder)
    try:
        model = load_model(source)
    except ValueError as error:
        assert case.outcome != "sound"
        check_error(error, str(folder))
    else:
        assert case.outcome != "refused"
        assert model.weights_hash == SOUND_HASH
    assert _content(folder) == files


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plip() -> PLIP:
    model = PLIP(make_model(), batch_size=8, mesh=make_mesh(jax.devices()[:1]))  # one device compiles faster
    assert np.abs(model.encode_images(PICTURE) - model.encode_images(RED)).max() > 0.1  # else no picture is wrong
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "images"
    folder.mkdir()
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def together(plip: PLIP, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, ImageError]]:
    """All of them in one call: the features of those that can be read, the errors of the others."""
    with limited(), pytest.warns(DamagedImagesWarning) as caught:
        features = plip.encode_images([folder / name for name in HOSTILE_IMAGES], damaged="nan")
    assert len(caught) == 1
    warning = caught[0].message
    assert isinstance(warning, DamagedImagesWarning)
    names = list(HOSTILE_IMAGES)
    errors = {names[row]: error for row, error in warning.errors.items()}
    assert np.isnan(features).any(axis=1).tolist() == [name in errors for name in names]
    return {name: row for name, row in zip(names, features, strict=True) if name not in errors}, errors


def opened(path: Path) -> Image.Image:
    """As a caller of Pillow has it, with Pillow's own warnings seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            image.load()
    return image


@pytest.mark.parametrize("name", HOSTILE_IMAGES)
def test_image(plip: PLIP, folder: Path, together: Any, name: str) -> None:
    image, (features, errors) = HOSTILE_IMAGES[name], together
    if name in errors:
        assert image.pixels is None or image.may_fail
        with pytest.raises(ImageError) as raised:
            plip.encode_images([PICTURE, folder / name])
        assert str(raised.value) == str(errors[name])
        check_error(raised.value, str(folder / name))
        return
    assert image.pixels is not None or image.may_fail
    forms = [folder / name, (folder / name).read_bytes(), opened(folder / name)]
    alone, *others = plip.encode_images(forms)
    for other in (features[name], *others):
        np.testing.assert_allclose(other, alone, atol=1e-6)  # 1e-6: another place in the batch
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)
    pixels = ANYTHING if image.pixels is None else image.pixels()
    if pixels is not ANYTHING:
        plain = plip.encode_images(encoded(np.ascontiguousarray(pixels), "PNG"))[0]
        np.testing.assert_allclose(alone, plain, atol=image.tolerance)


# ---- the programs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_encoder(plip: PLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's model is the one that is compiled already."""

    def make(model: LoadedModel, **_: Any) -> PLIP:
        assert model.weights_hash == SOUND_HASH
        return plip

    monkeypatch.setattr(embed_program, "PLIP", make)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("sound"), HostileSource("hf", dict))


def embed(checkpoint: Path, images: Path, out: Path, *more: str) -> int:
    flags = [f"--checkpoint={checkpoint}", f"--images={images}", f"--out={out}", "--batch-size=8", *more]
    return embed_program.main(flags)


@pytest.mark.usefixtures("one_encoder")
def test_embed_leaves_out_and_lists_what_cannot_be_read(
    checkpoint: Path, folder: Path, together: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features, errors = together
    out = tmp_path / "out"
    assert embed(checkpoint, folder, out) == 1
    assert "--damaged skip" in capfd.readouterr().err
    assert embed(checkpoint, folder, out, "--damaged=skip") == 0
    found = open_embeddings(out, check_content=True)
    assert found.ids == sorted(features)
    np.testing.assert_allclose(found.features, [features[name] for name in found.ids], atol=1e-6)  # 1e-6: as above
    with (out / "damaged.csv").open(newline="") as lines:
        listed = {row["id"] for row in csv.DictReader(lines)}
    # What is no file is seen by its name already, and never opened.
    assert listed == {name for name in errors if (folder / name).is_file()}


@pytest.mark.usefixtures("one_encoder")
def test_nothing_already_written_is_lost(
    checkpoint: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Runs with hostile files on top of what is finished: each fails, and every byte is as it was."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(encoded(PICTURE, "PNG"))
    features, exported = tmp_path / "features", tmp_path / "exported"
    assert embed(checkpoint, images, features) == 0
    # The layout stands for an export; to make one anew takes the consumer's library seconds.
    exported.mkdir()
    write_source(exported, HostileSource("hf", dict))
    before = _content(features), _content(exported)
    for number, case in enumerate(_one_of_each_kind()):
        bad = tmp_path / f"bad_{number}"
        bad.mkdir()
        source = write_source(bad, case)
        assert embed(source, images, features) == 1
        assert export_program.main([f"--checkpoint={source}", f"--out={exported}", "--overwrite"]) == 1
        assert capfd.readouterr().err.count(str(bad)) >= 2
    assert embed(checkpoint, folder, features) == 1
    assert embed(checkpoint, folder, features, "--damaged=skip") == 1
    assert (_content(features), _content(exported)) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def _one_of_each_kind() -> list[HostileSource]:
    kinds = {case.layout + name.split()[0]: case for name, case in HOSTILE_SOURCES.items() if case.outcome == "refused"}
    return list(kinds.values())


def _content(folder: Path) -> dict[str, bytes]:
    """The files of a folder; a link counts as what it says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found
