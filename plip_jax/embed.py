"""``python -m plip_jax.embed``: images, and texts, of any number -> embeddings on disk.

Owns the command line and the order of things: what is asked for is checked, then each process encodes its chunks on its
own devices, then the chunks are joined. Which images there are is in `plip_jax.image_sources`, what is safe on disk in
`plip_jax.embedding_writer`, and what features are in `plip_jax.api`. Killed at any moment, the same command goes on.
"""

import argparse
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from plip_jax import __version__, distributed
from plip_jax.api import PLIP
from plip_jax.convert.load import LoadedModel, add_model_flags, load_model
from plip_jax.data.image import ImageError
from plip_jax.data.text_list import read_texts
from plip_jax.embedding_folder import Stop
from plip_jax.embedding_store import (
    DTYPES,
    describe_model,
    hash_names,
    import_h5py,
    open_embeddings,
    write_h5,
)
from plip_jax.embedding_writer import Chunk, Store, begin, check_unchanged, chunks_to_write, finish, write_chunk
from plip_jax.image_sources import ImageSource, open_images, read_images
from plip_jax.sharding import make_mesh, values_of_processes
from plip_jax.training.loop import interrupted_by_signal

# What a killed process loses is one chunk; and for the first batch of each, and behind the last, the device waits.
_BATCHES_PER_CHUNK = 32
_POLL_SECONDS = 1.0
_SHOWN = 20
_VERSIONED = ("jax", "numpy", "pillow")


class EmbedError(ValueError):
    """Embeddings that were not made; the message says what is in the way."""


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """How to embed.

    Attributes:
        batch_size: images or texts computed at once, on the devices of one process.
        chunk_size: images or texts written at once; 0 for 32 batches. A folder that was begun keeps its own.
        dtype: of the features on disk, of `embedding_store.DTYPES`.
        compute_dtype: operands of the matrix products.
        normalize: make every row of length one.
        skip_damaged: leave out images that cannot be decoded, and list them; else they stop the program.
        images_moved: the images of a folder that was begun may be in another place now.
    """

    batch_size: int = 64
    chunk_size: int = 0
    dtype: str = "float32"
    compute_dtype: str = "float32"
    normalize: bool = True
    skip_damaged: bool = False
    images_moved: bool = False


def embed(
    model: LoadedModel,
    source: ImageSource,
    texts: Sequence[str],
    out: Path,
    options: EmbedOptions,
    stop: Stop,
    h5: Path | None = None,
) -> bool:
    """Embed images and texts into a folder, or go on with it; every process of a run calls this.

    Args:
        model: from `load_model`.
        source: the images.
        texts: different ones; none for images only.
        out: see `embedding_writer.begin`.
        options: how.
        stop: when to stop before the end.
        h5: also write this file.

    Returns:
        Whether the folder is finished.

    Raises:
        EmbedError: images that cannot be decoded, unless they are skipped; they are listed.
        EmbeddingStoreError: the folder, or the file, holds something else.
        ImageSourceError, OSError: images cannot be read, which is nothing to skip: the disk has gone.
    """
    plip = PLIP(
        model,
        compute_dtype=options.compute_dtype,
        batch_size=options.batch_size,
        mesh=make_mesh(jax.local_devices()),  # no process waits for another's images
    )
    settings, about, card = _describe(model, source, texts, options)
    chunk_size = options.chunk_size or _BATCHES_PER_CHUNK * plip.encoder.batch_size
    moved = options.images_moved or source.kind == "records"  # of these, the fingerprint holds the content
    store = begin(out, settings, about, card, chunk_size, moved=moved)
    if store.finished:
        check_unchanged(store, source.sizes and source.sizes(range(len(source))))
        _say(f"{out} is finished already")
    elif not (_embed_images(store, plip, source, options, stop) and _embed_texts(store, plip, texts, stop)):
        return False
    return _finish(store, stop, h5)


def _embed_images(store: Store, plip: PLIP, source: ImageSource, options: EmbedOptions, stop: Stop) -> bool:
    """Write this process's chunks; False where it is to stop before the last."""
    chunks, todo, done = _share(store, "images", source.sizes, options.skip_damaged)
    with _bar("images", initial=done, total=done + sum(len(chunks[number]) for number in todo)) as bar:
        for number in todo:
            if stop.here(store.folder):
                return False
            chunk = _encode_images(plip, source, chunks[number], store.settings["normalized"], bar)
            if chunk.damaged and not options.skip_damaged:
                raise EmbedError(_damaged_message(chunk.damaged, chunks[number]))
            write_chunk(store, "images", number, _stored(chunk, store))
    return True


def _embed_texts(store: Store, plip: PLIP, texts: Sequence[str], stop: Stop) -> bool:
    chunks, todo, done = _share(store, "texts")
    if not todo:
        return True
    with _bar("texts", initial=done, total=done + sum(len(chunks[number]) for number in todo)) as bar:
        for number in todo:
            if stop.here(store.folder):
                return False
            names = [texts[place] for place in chunks[number]]
            features = plip.encode_text(names, normalize=store.settings["normalized"])
            write_chunk(store, "texts", number, _stored(Chunk(features, names), store))
            bar.update(len(names))
    return True


def _encode_images(plip: PLIP, source: ImageSource, places: range, normalize: bool, bar: Any) -> Chunk:
    """Features of a run of images, without those that cannot be read."""
    ids: list[str] = []  # grows as images are read; each is named before it is decoded
    sizes: list[int] = []
    damaged: dict[int, str] = {}

    def images() -> Iterator[bytes]:
        for name, found in read_images(source, places):
            ids.append(name)
            if isinstance(found, ImageError):
                damaged[len(sizes)] = str(found)
                found, size = b"", -1  # keeps its place in the batch
            else:
                size = len(found)
            sizes.append(size)
            yield found
            bar.update()

    def on_damaged(index: int, error: ImageError) -> None:
        damaged.setdefault(index, str(error))

    features = plip.encoder.encode_images(plip.params, images(), names=ids, normalize=normalize, on_damaged=on_damaged)
    kept = [index for index in range(len(places)) if index not in damaged]
    return Chunk(
        features[kept],
        [ids[index] for index in kept],
        [(ids[index], damaged[index]) for index in sorted(damaged)],
        None if source.coords is None else source.coords[places.start : places.stop][kept],
        None if source.sizes is None else np.asarray(sizes, np.int64),
    )


def _stored(chunk: Chunk, store: Store) -> Chunk:
    with np.errstate(over="ignore"):  # what float16 cannot hold is refused when it is written
        return dataclasses.replace(chunk, features=chunk.features.astype(store.settings["dtype"]))


def _share(
    store: Store, kind: str, sizes: Callable[[range], np.ndarray] | None = None, keep_damaged: bool = True
) -> tuple[list[range], list[int], int]:
    """All chunks, the numbers of those that this process has to write, and how many rows of its share are there."""
    chunks = store.chunks(kind)
    process, processes = jax.process_index(), jax.process_count()
    mine = range(len(chunks) * process // processes, len(chunks) * (process + 1) // processes)
    todo = chunks_to_write(store, kind, mine, sizes, keep_damaged=keep_damaged)
    return chunks, todo, sum(len(chunks[number]) for number in set(mine) - set(todo))


def _finish(store: Store, stop: Stop, h5: Path | None) -> bool:
    """Join the chunks when all are there; the process that does so waits for the others, and they for it.

    jax ends the processes of a run when one of them has left, so none leaves before all is written.
    """
    stop.arrive(store.folder)

    def write() -> None:
        if h5 is not None:
            wrote = write_h5(open_embeddings(store.folder), h5)
            _say(f"wrote {h5}" if wrote else f"{h5} is there already, and left as it is")

    is_main = distributed.is_main_process()
    while not (stop.all_arrived(store.folder) and finish(store, write) if is_main else stop.released(store.folder)):
        if jax.process_count() == 1:
            raise EmbedError(f"{store.folder}: chunks that were written have gone; run the same again")
        if stop.interrupted.wait(_POLL_SECONDS) or stop.here(store.folder):
            return False
    return True


def _describe(
    model: LoadedModel, source: ImageSource, texts: Sequence[str], options: EmbedOptions
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What decides the features, what is told beside them, and what ``metadata.json`` says."""
    settings = {
        "model": describe_model(model),
        "images": {
            "kind": source.kind,
            "count": len(source),
            "fingerprint": source.fingerprint,
            "coords": source.coords is not None,
        },
        "texts": {"count": len(texts), "fingerprint": hash_names(texts)} if texts else None,
        "normalized": options.normalize,
        "dtype": options.dtype,
        "compute_dtype": options.compute_dtype,
        "feature_dim": model.config.embed_dim,
    }
    about = {
        "model": model.describe(),
        "images": str(source.path.resolve()),
        "left_out": source.left_out,
        "versions": {"plip_jax": __version__, **{name: metadata.version(name) for name in _VERSIONED}},
    }
    # Not "normalized": cosines are what CLIP means, so whoever reads these scales rows that are not of length one.
    scale = float(np.exp(np.asarray(model.params["logit_scale"], np.float64)))
    return settings, about, {"name": Path(model.source).name, "logit_scale": scale}


def _damaged_message(damaged: Sequence[tuple[str, str]], places: range) -> str:
    listed = [f"  {reason}" for _, reason in damaged[:_SHOWN]]
    more = [f"  and {len(damaged) - _SHOWN} more"] if len(damaged) > _SHOWN else []
    return "\n".join(
        [
            f"{len(damaged)} of the images {places.start} to {places.stop - 1} cannot be read:",
            *listed,
            *more,
            "repair them and run the same again, or leave such images out and list them with --damaged skip",
        ]
    )


def _bar(what: str, *, initial: int, total: int) -> Any:
    """A bar on a terminal; in a log, a line a minute."""
    unit = what.removesuffix("s")
    if sys.stderr.isatty():
        return tqdm.tqdm(desc=what, unit=unit, initial=initial, total=total)
    line = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]\n"
    return tqdm.tqdm(desc=what, unit=unit, initial=initial, total=total, mininterval=60, miniters=1, bar_format=line)


def _run(flags: argparse.Namespace, stop: Stop) -> bool:
    if flags.h5 is not None:  # before hours of computing
        import_h5py()
        if flags.h5.resolve().parent == flags.out.resolve() and flags.h5.stem in ("images", "texts"):
            raise EmbedError(f"--h5 {flags.h5}: a file of that name in --out would be read in place of {flags.out}")
        if flags.h5.exists() and not (flags.out / "images.npy").exists():
            raise EmbedError(f"--h5 {flags.h5} exists; remove it, or choose another name")
    source = open_images(flags.images, flags.split)
    texts = read_texts(flags.texts) if flags.texts is not None else []
    left_out = "".join(f", left out {count:,} {what}" for what, count in source.left_out.items())
    _say(f"{len(source):,} images of {source.path} ({source.kind}{left_out})")
    model = load_model(
        flags.checkpoint,
        which=flags.which,
        weights=flags.weights,
        tokenizer=flags.tokenizer,
        activation=flags.activation,
    )
    _say(f"{model.weights_file} of {model.source} (sha256 {model.weights_hash[:16]}…)")
    options = EmbedOptions(
        batch_size=flags.batch_size,
        chunk_size=flags.chunk_size,
        dtype=flags.dtype,
        compute_dtype=flags.compute_dtype,
        normalize=flags.normalize,
        skip_damaged=flags.damaged == "skip",
        images_moved=flags.images_moved,
    )
    if not embed(model, source, texts, flags.out, options, stop, flags.h5):
        return False
    if distributed.is_main_process():
        _report(flags.out)
    return True


def _report(out: Path) -> None:
    embeddings = open_embeddings(out)
    for kind, counts in embeddings.manifest["finished"].items():
        skipped = f", {counts['damaged']:,} that cannot be read in {out / 'damaged.csv'}" if counts["damaged"] else ""
        _say(f"{out}: {counts['rows']:,} {kind}{skipped}")
    _say(f'read them with plip_jax.embedding_store.open_embeddings("{out}"), or evaluate --checkpoint files:{out}')


def _say(line: str) -> None:
    if distributed.is_main_process():
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    flags = _parser().parse_args(argv)
    command = shlex.join(["python", "-m", "plip_jax.embed", *(sys.argv[1:] if argv is None else argv)])
    began = time.monotonic()
    try:
        distributed.start_from_flags(flags)  # first: it sets signal handlers of its own
        with interrupted_by_signal() as interrupted:
            # They have just met, so no one waits long for this answer.
            run = values_of_processes(int.from_bytes(os.urandom(3)))[0] if jax.process_count() > 1 else None
            stop = Stop(interrupted, run, jax.process_index(), jax.process_count())
            finished = False
            try:
                finished = _run(flags, stop)
            finally:
                if not finished:  # before anything was begun, too
                    stop.tell(flags.out)
    except (ValueError, OSError) as error:
        print(f"plip-jax embed: {error}", file=sys.stderr)
        return 1
    if not finished:
        why = "by a signal" if interrupted.is_set() else "because another process did"
        print(f"stopped {why}; saved. Resume with:\n  {command}", file=sys.stderr)
        return 0
    _say(f"done in {time.monotonic() - began:,.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plip-jax embed", description="Embed images, and texts, into a folder.")
    add_model_flags(parser)
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        help="a folder, a records folder or built set, a text file with a path a line, a .csv with the columns path "
        "(and x, y), or an uncompressed tar",
    )
    parser.add_argument("--split", help="of a records folder (default: all of them) or a built set")
    parser.add_argument("--texts", type=Path, help="also embed these: a text a line, or a .csv with a column text")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write, or to go on with")
    parser.add_argument("--h5", type=Path, metavar="FILE", help="also write HDF5: features, coords where known, ids")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="on disk (default: %(default)s)")
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="operands of the matrix products (default: %(default)s)",
    )
    parser.add_argument(
        "--no-normalize", dest="normalize", action="store_false", help="keep the length of every feature"
    )
    parser.add_argument(
        "--damaged",
        choices=("stop", "skip"),
        default="stop",
        help="images that cannot be decoded: stop and list them, or leave them out and list them (default: "
        "%(default)s); a disk that cannot be read always stops",
    )
    parser.add_argument(
        "--images-moved", action="store_true", help="go on though --images is another place: the same images are there"
    )
    parser.add_argument("--batch-size", type=_positive, default=64, help="computed at once (default: %(default)s)")
    parser.add_argument(
        "--chunk-size",
        type=_positive,
        default=0,
        help="images written at once, of a new folder (default: 32 batches)",
    )
    distributed.add_distributed_flags(parser)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
