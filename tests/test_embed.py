"""The program: the features of `PLIP` from any source, whatever the chunks; damaged images listed; kills survived."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_evaluation import draw
from small_models import CAPTIONS, make_model

from data_prep.shards import RecordsWriter
from plip_jax import embed as program
from plip_jax.api import PLIP
from plip_jax.convert.load import LoadedModel
from plip_jax.data.examples import IMAGE_SUFFIXES
from plip_jax.data.records import Record
from plip_jax.embedding_folder import Stop
from plip_jax.embedding_store import open_embeddings
from plip_jax.embedding_writer import write_chunk
from plip_jax.encoders.baseline import OpenOptions
from plip_jax.encoders.files import FilesEncoder
from plip_jax.export import export
from plip_jax.image_sources import ImageSource, SourceImage, open_images
from plip_jax.sharding import make_mesh

ROOT = Path(__file__).parents[1]
COUNT = 21
NAMES = [f"{index % 3}/{index:02d}.png" for index in range(COUNT)]
MODEL = make_model()


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """The same model in every test: compiled once for them all."""
    monkeypatch.setattr(program, "PLIP", make_plip)


def make_plip(model: LoadedModel, **options: Any) -> PLIP:
    key = (model.weights_hash, *sorted((name, str(value)) for name, value in options.items()))
    if key not in _PLIPS:
        _PLIPS[key] = PLIP(model, **options)
    return _PLIPS[key]


_PLIPS: dict[tuple, PLIP] = {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return export(MODEL, tmp_path_factory.mktemp("checkpoint") / "hf")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images") / "tiles"
    for index, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(draw(index))
    return root


@pytest.fixture(scope="module")
def expected(images) -> dict[str, np.ndarray]:
    """What the public class says of these images, one call for all."""
    plip = PLIP(MODEL, batch_size=8)
    return dict(zip(sorted(NAMES), plip.encode_images([images / name for name in sorted(NAMES)]), strict=True))


def arguments(checkpoint: Path, images: Path, out: Path, *more: str) -> list[str]:
    where = [f"--checkpoint={checkpoint}", f"--images={images}", f"--out={out}"]
    return [*where, "--batch-size=8", "--chunk-size=5", *more]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def unbroken(checkpoint, images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    texts = out.parent / "captions.csv"
    texts.write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate([*CAPTIONS, CAPTIONS[0]])))
    assert program.main(arguments(checkpoint, images, out, f"--texts={texts}")) == 0
    return out


def test_features_are_those_of_the_public_class_to_the_bit(unbroken, expected):
    found = open_embeddings(unbroken, model=MODEL, check_content=True)
    assert found.ids == sorted(NAMES)
    # Chunks of five in batches of eight: other neighbours, and padding, beside every image.
    np.testing.assert_array_equal(found.features, np.stack([expected[name] for name in found.ids]))
    assert found.texts == CAPTIONS
    assert found.text_features is not None
    np.testing.assert_array_equal(found.text_features, PLIP(MODEL, batch_size=8).encode_text(CAPTIONS))
    assert found.normalized
    open_embeddings(unbroken, model=PLIP(MODEL))


def test_the_evaluation_takes_it_as_an_encoder(unbroken, expected):
    encoder = FilesEncoder(str(unbroken), OpenOptions())
    wanted = [NAMES[7], NAMES[0]]
    np.testing.assert_array_equal(encoder.encode_images([b"", b""], names=wanted), [expected[name] for name in wanted])
    assert encoder.encode_text is not None
    assert encoder.encode_text(CAPTIONS[:1]).shape == (1, MODEL.config.embed_dim)
    assert encoder.logit_scale == pytest.approx(float(np.exp(np.float32(2.6592))), rel=1e-6)  # of small_models
    assert encoder.name == "hf"


def test_a_list_a_tar_and_records_give_the_same(images, expected, tmp_path):
    listed = images.parent / "list.csv"
    listed.write_text("path,x,y\n" + "".join(f"tiles/{name},{i},{2 * i}\n" for i, name in enumerate(NAMES)))
    archive = tmp_path / "tiles.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(images, ".")
    with RecordsWriter(tmp_path / "records") as writer:
        for name in NAMES:
            writer.write(Record(name, (images / name).read_bytes(), ("tissue",)), "train")
    options = program.EmbedOptions(batch_size=8, chunk_size=16)
    for source in map(open_images, (listed, archive, tmp_path / "records")):
        out = tmp_path / f"out_{source.kind}"
        assert program.embed(MODEL, source, [], out, options, Stop(threading.Event()))
        found = open_embeddings(out)
        ids = [name.removeprefix("tiles/") for name in found.ids]
        assert sorted(ids) == sorted(NAMES)
        np.testing.assert_array_equal(found.features, np.stack([expected[name] for name in ids]), source.kind)
        if source.kind == "list":
            assert found.coords is not None
            assert found.coords.tolist() == [[i, 2 * i] for i in range(COUNT)]


def test_one_device_and_eight_agree(expected, images):
    plip = PLIP(MODEL, batch_size=8, mesh=make_mesh(jax.devices()[:1]))
    alone = plip.encode_images([images / name for name in expected])
    eight = np.stack(list(expected.values()))
    assert len(jax.devices()) == 8
    assert np.linalg.norm(alone - eight) <= 1e-5 * np.linalg.norm(eight)  # the house's bound for a normalised feature


def test_lengths_are_kept_and_float16_halves_the_file(images, expected, tmp_path):
    options = program.EmbedOptions(batch_size=8, dtype="float16", normalize=False)
    assert program.embed(MODEL, open_images(images), [], tmp_path / "out", options, Stop(threading.Event()))
    found = open_embeddings(tmp_path / "out")
    assert (found.features.dtype, found.normalized) == (np.float16, False)
    lengths = np.linalg.norm(found.features.astype(np.float64), axis=1)
    assert np.abs(lengths - 1).max() > 0.1
    unit = found.features / lengths[:, None]
    # Half a unit in the last of float16's 11 bits, at most, in each value.
    np.testing.assert_allclose(unit, np.stack([expected[name] for name in found.ids]), atol=2**-11)


def test_damaged_images_stop_or_are_left_out_and_listed(checkpoint, images, expected, tmp_path, capsys):
    listed = images.parent / "with_damaged.txt"
    (images.parent / "cut.png").write_bytes(draw(0)[:60])
    (images.parent / "empty.png").write_bytes(b"")
    damaged = {3: "cut.png", 4: "empty.png", 12: "gone.png"}
    names = [f"tiles/{name}" for name in NAMES]
    for place, name in damaged.items():
        names.insert(place, name)
    listed.write_text("\n".join(names))
    out = tmp_path / "out"
    assert program.main(arguments(checkpoint, listed, out)) == 1
    error = capsys.readouterr().err
    assert "2 of the images 0 to 4 cannot be read" in error
    assert "cut.png" in error
    assert "--damaged skip" in error
    assert program.main(arguments(checkpoint, listed, out, "--damaged=skip")) == 0
    assert f"{COUNT} images, 3 that cannot be read in {out / 'damaged.csv'}" in capsys.readouterr().out
    found = open_embeddings(out)
    assert found.ids == [name for name in names if name not in damaged.values()]
    np.testing.assert_array_equal(
        found.features, np.stack([expected[name.removeprefix("tiles/")] for name in found.ids])
    )
    with (out / "damaged.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(damaged.values())
    assert "damaged or truncated PNG" in rows[0]["reason"]
    assert "0 bytes" in rows[1]["reason"]
    assert "No such file" in rows[2]["reason"]


def test_nothing_but_damaged_images_is_an_error(tmp_path, checkpoint, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    assert program.main(arguments(checkpoint, tmp_path, tmp_path / "out", "--damaged=skip")) == 1
    assert "none of the 1 images could be read" in capsys.readouterr().err


def test_a_finished_folder_is_left_as_it_is(checkpoint, images, unbroken, tmp_path, capsys):
    texts = f"--texts={unbroken.parent / 'captions.csv'}"
    before = {path: path.stat().st_mtime_ns for path in unbroken.iterdir()}
    assert program.main(arguments(checkpoint, images, unbroken, texts)) == 0
    assert f"{unbroken} is finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in unbroken.iterdir()} == before
    assert program.main(arguments(checkpoint, images, unbroken, texts, "--no-normalize", "--dtype=float16")) == 1
    error = capsys.readouterr().err
    assert 'normalized: it was true, now false; dtype: it was "float32", now "float16"' in error
    other = export(make_model(1), tmp_path / "other")
    assert program.main(arguments(other, images, unbroken, texts)) == 1
    assert "model/weights_hash: it was" in capsys.readouterr().err


def test_a_signal_ends_after_the_chunk_and_the_same_command_goes_on(
    checkpoint, images, unbroken, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    command = arguments(checkpoint, images, out, f"--texts={unbroken.parent / 'captions.csv'}")

    def write_and_signal(store, kind, number, chunk):
        write_chunk(store, kind, number, chunk)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(program, "write_chunk", write_and_signal)
    assert program.main(command) == 0
    assert f"Resume with:\n  python -m plip_jax.embed --checkpoint={checkpoint}" in capsys.readouterr().err
    assert sorted(path.name for path in (out / "parts").iterdir()) == ["images-00000000.npz", "images-00000001.npz"]
    monkeypatch.undo()
    # The default would be 32 batches: a folder keeps the size that it was begun with.
    assert program.main([argument for argument in command if "chunk-size" not in argument]) == 0
    assert content(out) == content(unbroken)


class Alive(bytes):
    """Bytes of an image file that count how many of them are there."""

    now = most = 0

    def __init__(self, _: bytes):
        Alive.now += 1
        Alive.most = max(Alive.most, Alive.now)

    def __del__(self) -> None:
        Alive.now -= 1


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    data = draw(3)
    count, batch = 400, 8
    source = ImageSource("made", tmp_path, "f", count, lambda place: SourceImage(f"{place}.png", Alive(data)))
    options = program.EmbedOptions(batch_size=batch, chunk_size=200)
    assert program.embed(MODEL, source, [], tmp_path / "out", options, Stop(threading.Event()))
    assert len(open_embeddings(tmp_path / "out").ids) == count
    assert Alive.most <= 6 * batch  # the batches that `Batcher` decodes ahead, and the one that it reads


@pytest.mark.realdata
def test_real_micrographs(realdata, tmp_path):
    options = program.EmbedOptions(batch_size=8, skip_damaged=True)
    source = open_images(realdata / "kather2016_100")
    assert program.embed(MODEL, source, [], tmp_path / "out", options, Stop(threading.Event()))
    found = open_embeddings(tmp_path / "out", model=MODEL, check_content=True)
    files = sorted(path for path in (realdata / "kather2016_100").rglob("*.*") if path.suffix in IMAGE_SUFFIXES)
    assert len(found.ids) == len(files) >= 100
    expected = PLIP(MODEL, batch_size=8).encode_images([realdata / "kather2016_100" / name for name in found.ids])
    np.testing.assert_array_equal(found.features, expected)
    assert np.unique(found.features, axis=0).shape == found.features.shape


@pytest.mark.parametrize(
    ("text", "message"),
    [("name\nx\n", "expected a column text or caption"), ("text\n\n", "got none"), ("text\n\x80", "in UTF-8")],
)
def test_texts_that_are_none_are_refused(checkpoint, images, tmp_path, capsys, text, message):
    file = tmp_path / "t.csv"
    file.write_text(text, encoding="latin-1")
    assert program.main(arguments(checkpoint, images, tmp_path / "out", f"--texts={file}")) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_hdf5_beside_the_folder(checkpoint, images, unbroken, tmp_path, capsys):
    h5py = pytest.importorskip("h5py", reason="an extra")
    texts = f"--texts={unbroken.parent / 'captions.csv'}"
    file = tmp_path / "tiles.h5"
    assert program.main(arguments(checkpoint, images, unbroken, texts, f"--h5={file}")) == 0
    with h5py.File(file, "r") as found:
        np.testing.assert_array_equal(found["features"][:], open_embeddings(unbroken).features)
        assert "coords" not in found
    assert program.main(arguments(checkpoint, images, unbroken, texts, f"--h5={unbroken / 'images.h5'}")) == 1
    assert "would be read in place of" in capsys.readouterr().err
    assert program.main(arguments(checkpoint, images, tmp_path / "new", texts, f"--h5={file}")) == 1
    assert f"{file} exists" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def start(command: list[str], log: Path, *, devices: int = 1) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "plip_jax.embed", *command],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(checkpoint, tmp_path):
    root, count = tmp_path / "tiles", 400
    root.mkdir()
    for index in range(count):
        (root / f"{index:03d}.png").write_bytes(draw(index))
    options = ["--batch-size=8", "--chunk-size=8"]
    outs = [tmp_path / "unbroken", tmp_path / "killed"]
    whole, broken = (arguments(checkpoint, root, out, *options) for out in outs)
    process = start(whole, tmp_path / "log")
    assert process.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    kills, moments = 0, random.Random(6)
    for _ in range(40):
        process = start(broken, tmp_path / "log")
        done = len(list((outs[1] / "parts").glob("*.npz")))
        deadline = time.monotonic() + 120
        # The kill falls anywhere in the two or three chunks behind those that are there.
        while process.poll() is None and len(list((outs[1] / "parts").glob("*.npz"))) <= done + moments.randrange(20):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(moments.random() * 0.01)
        process.kill()
        if process.wait(timeout=30) == 0:
            break
        kills += 1
    assert kills >= 3
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert content(outs[1]) == content(outs[0])


@pytest.mark.slow
def test_two_processes_share_the_images(checkpoint, images, tmp_path):
    from test_multi_host import finish, free_port, kill

    out = tmp_path / "out"
    where = [f"--coordinator=localhost:{free_port()}", "--num-processes=2"]
    command = arguments(checkpoint, images, out, "--batch-size=2", *where)
    processes = [start([*command, f"--process-id={i}"], tmp_path / f"{i}.log", devices=2) for i in range(2)]
    try:
        logs = finish(processes, tmp_path)
    finally:
        kill(processes)
    assert f"{COUNT} images" in logs[0]
    assert "wrote" not in logs[1]
    found = open_embeddings(out, model=MODEL, check_content=True)
    assert found.ids == sorted(NAMES)
    alone = PLIP(MODEL, batch_size=8).encode_images([images / name for name in found.ids])
    assert np.linalg.norm(found.features - alone) <= 1e-5 * np.linalg.norm(alone)  # the house's bound of a feature
    assert json.loads((out / "manifest.json").read_text())["finished"]["images"]["rows"] == COUNT


@pytest.mark.slow
def test_a_process_that_stops_tells_the_other(checkpoint, images, tmp_path):
    from test_multi_host import free_port, kill

    listed, out = images.parent / "last_damaged.txt", tmp_path / "out"
    listed.write_text("".join(f"tiles/{name}\n" for name in NAMES) + "gone.png\n")
    where = [f"--coordinator=localhost:{free_port()}", "--num-processes=2"]
    command = arguments(checkpoint, listed, out, "--batch-size=2", *where)
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    processes = [start([*command, f"--process-id={i}"], logs[i]) for i in range(2)]
    try:
        # Without it the first would wait for chunks that never come, and jax end it after minutes.
        assert [process.wait(timeout=120) for process in processes] == [0, 1], [log.read_text() for log in logs]
    finally:
        kill(processes)
    assert "stopped because another process did; saved. Resume with:" in logs[0].read_text()
    assert "No such file" in logs[1].read_text()
    assert program.main([*arguments(checkpoint, listed, out), "--damaged=skip"]) == 0
    assert open_embeddings(out).ids == [f"tiles/{name}" for name in NAMES]
