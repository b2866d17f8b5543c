"""Images: each folder, list or tar opens as what it is, and its first and last image decode.

Whole folders are checked by ``python -m data_prep.verify``; this looks at each shard's header and at two images
a split.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from plip_jax.data.example import Example
from plip_jax.data.examples import Records, open_examples
from plip_jax.data.image import decode_image
from plip_jax.data.records import is_records_folder, open_records, read_manifest, records_root
from plip_jax.data.split_manifest import SplitManifestError
from plip_jax.doctoring.child import answer
from plip_jax.doctoring.finding import Asked, Finding, guarded, one_line
from plip_jax.image_sources import SourceImage, open_images


def find_data(asked: Asked) -> Iterator[Finding]:
    """What is in each place, or why it cannot be read."""
    for place in asked.data:
        yield from guarded(_images(place), of=place, status="problem")


def _images(place: str) -> Iterator[Finding]:
    path = Path(place).expanduser()
    if not path.exists():
        what = f"{place}: expected images, and nothing is there"
        yield Finding("problem", what, "check the path, and that its disk is mounted")
    elif not path.is_dir():
        yield from _unlabelled(place, path)
    elif is_records_folder(path):
        yield from _records(place, path)
    else:
        yield from _examples(place, path)


def _records(place: str, path: Path) -> Iterator[Finding]:
    try:
        splits = list(read_manifest(records_root(path)).splits)
    except (ValueError, OSError) as error:
        yield Finding("problem", one_line(str(error)), "build the folder again: python -m data_prep.build")
        return
    for split in splits:
        try:
            records = Records(open_records(path, split))
            _decode_ends(len(records), records.__getitem__)
        except (ValueError, OSError) as error:
            yield Finding(
                "problem",
                one_line(str(error)),
                f"python -m data_prep.verify {place} lists all that is damaged; copy or build the folder again",
            )
        else:
            yield Finding("ok", f"{place}: {len(records):,} records of the split {split}")


def _examples(place: str, path: Path) -> Iterator[Finding]:
    """A built set, or class folders, with one split or several."""
    try:
        sets: dict[str, Sequence[Example]] = {"": open_examples(path)}
    except SplitManifestError as error:  # it has several, and an evaluation names one
        yield Finding("ok", f"{place}: a built set ({one_line(str(error))})")
        return
    except (ValueError, OSError):
        sets = _splits(path)
        if not sets:
            yield from _unlabelled(place, path)
    for split, examples in sets.items():
        where = f"{place}{' split ' * bool(split)}{split}"
        yield _decoded(where, "with labels", len(examples), examples.__getitem__)


def _splits(path: Path) -> dict[str, Sequence[Example]]:
    """The folders in it that hold class folders."""
    sets: dict[str, Sequence[Example]] = {}
    for entry in sorted(path.iterdir()):
        with contextlib.suppress(ValueError, OSError):
            sets[entry.name] = open_examples(path, entry.name)
    return sets


def _unlabelled(place: str, path: Path) -> Iterator[Finding]:
    """What `plip_jax.embed` takes besides: images in no class folder, a list, a tar."""
    try:
        source = open_images(path)
    except (ValueError, OSError) as error:
        yield Finding("problem", one_line(str(error)))
    else:
        yield _decoded(place, f"without labels ({source.kind})", len(source), source.read)


def _decoded(where: str, kind: str, count: int, read: Callable[[int], Example | SourceImage]) -> Finding:
    try:
        _decode_ends(count, read)
    except (ValueError, OSError) as error:
        return Finding("problem", f"{where}: {one_line(str(error))}", "remove the file, or fetch it again")
    return Finding("ok", f"{where}: {count:,} images {kind}")


def _decode_ends(count: int, read: Callable[[int], Example | SourceImage]) -> None:
    for index in dict.fromkeys((0, count - 1)):
        found = read(index)
        data = found.image if isinstance(found.image, bytes) else found.image.read_bytes()
        decode_image(data, name=found.id)


if __name__ == "__main__":
    answer(find_data)
