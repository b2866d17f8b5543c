"""Train, evaluate and use a gate on image embeddings.

    python -m data_prep.gate train --positive DIR --negative DIR --checkpoint MODEL --out gate.json --precision 0.99
    python -m data_prep.gate evaluate --gate gate.json --positive DIR --negative DIR
    python -m data_prep.gate score --gate gate.json --images DIR

Every file below a folder is an image; what cannot be read is listed and left out. Of copies one is counted. Embeddings
are kept beside the gate (`--cache`), by model and content.
"""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_prep.images.embeddings import ImageEncoder, embed, load_embeddings, plip_encoder
from data_prep.images.gate_training import TrainingSettings, train_gate
from data_prep.images.gates import ROLES, Counts, GateError, count, load_gate, save_gate, score
from plip_jax.data.image import ImageError, decode_image

# Unreadable files that are named; the others are counted.
_MOST_NAMED = 20


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images below a folder.

    Attributes:
        path: The folder.
        files: Digest of an image's bytes to its file, in the order of the files; the first of several copies.
        copies: Files whose bytes an earlier one has.
        unreadable: Files that are no images.
    """

    path: Path
    files: dict[str, Path]
    copies: int
    unreadable: tuple[Path, ...]

    def groups(self) -> list[str]:
        """For each image, its folder below this one; an image right in it is a group of its own."""
        parents = [file.relative_to(self.path).parent.as_posix() for file in self.files.values()]
        return [f"in {p}" if p != "." else digest for digest, p in zip(self.files, parents, strict=True)]


def read_folder(path: Path, encoder: ImageEncoder, cache: Path) -> Folder:
    """Find the images below a folder; those whose embedding is kept are not decoded again.

    Raises:
        GateError: No such folder, or no image in it.
    """
    if not path.is_dir():
        raise GateError(f"{path}: no such folder")
    known = load_embeddings(cache, encoder.fingerprint)
    files: dict[str, Path] = {}
    copies, unreadable = 0, []
    for file in sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")):
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest in files:
            copies += 1
            continue
        try:
            if digest not in known:
                decode_image(data, name=str(file))
            files[digest] = file
        except ImageError:
            unreadable.append(file)
    if not files:
        raise GateError(f"{path}: no image that can be read, of {len(unreadable)} files; expected a folder of images")
    return Folder(path, files, copies, tuple(unreadable))


def _print_folder(folder: Folder) -> None:
    print(
        f"{folder.path}: {len(folder.files)} images, {folder.copies} copies, {len(folder.unreadable)} unreadable files"
    )
    for file in folder.unreadable[:_MOST_NAMED]:
        print(f"  left out, not an image: {file}", file=sys.stderr)
    if len(folder.unreadable) > _MOST_NAMED:
        print(f"  and {len(folder.unreadable) - _MOST_NAMED} more", file=sys.stderr)


def _labelled_folders(options: argparse.Namespace, encoder: ImageEncoder, cache: Path) -> tuple[Folder, Folder]:
    folders = [read_folder(path, encoder, cache) for path in (options.positive, options.negative)]
    for folder in folders:
        _print_folder(folder)
    positive, negative = folders
    if both := positive.files.keys() & negative.files.keys():
        first = min(both, key=lambda digest: positive.files[digest])
        raise GateError(
            f"{len(both)} images are in both folders, the first is {positive.files[first]} = {negative.files[first]}: "
            "take them out of the wrong one"
        )
    return positive, negative


def _train(options: argparse.Namespace, make_encoder: Callable[[str], ImageEncoder]) -> None:
    settings = TrainingSettings(
        precision=options.precision, least_recall=options.least_recall, holdout=options.holdout, seed=options.seed
    )
    encoder = make_encoder(options.checkpoint)
    cache = _cache(options, options.out, encoder)
    positive, negative = _labelled_folders(options, encoder, cache)
    features = embed(encoder, {**positive.files, **negative.files}, cache)
    gate = train_gate(
        features[: len(positive.files)],
        features[len(positive.files) :],
        settings,
        name=options.name,
        model=encoder.model,
        fingerprint=encoder.fingerprint,
        role=options.role,
        private=True if options.private else None,
        groups=positive.groups() + negative.groups() if options.group_by == "folder" else None,
    )
    save_gate(gate, options.out)
    print(f"threshold {gate.threshold:g} for a precision of {gate.stated_precision:g} on the held-out images:")
    _print_counts(gate.held_out)
    if gate.held_out.precision_bound < gate.stated_precision:
        print("note: the lower bound of the precision is below the stated one; more images would narrow it")
    print(f"{gate.role} gate {gate.name!r} -> {options.out}")


def _evaluate(options: argparse.Namespace, make_encoder: Callable[[str], ImageEncoder]) -> None:
    gate = load_gate(options.gate)
    encoder = make_encoder(options.checkpoint or gate.model)
    cache = _cache(options, options.gate, encoder)
    positive, negative = _labelled_folders(options, encoder, cache)
    features = embed(encoder, {**positive.files, **negative.files}, cache)
    truth = np.repeat([True, False], [len(positive.files), len(negative.files)])
    scores = score(gate, features, fingerprint=encoder.fingerprint)
    print(f"{gate.role} gate {gate.name!r} at its threshold {gate.threshold:g}:")
    _print_counts(count(scores, truth, gate.threshold, confidence=gate.held_out.confidence))


def _score(options: argparse.Namespace, make_encoder: Callable[[str], ImageEncoder]) -> None:
    gate = load_gate(options.gate)
    encoder = make_encoder(options.checkpoint or gate.model)
    cache = _cache(options, options.gate, encoder)
    folder = read_folder(options.images, encoder, cache)
    scores = score(gate, embed(encoder, folder.files, cache), fingerprint=encoder.fingerprint)
    below, above = ("drop", "pass") if gate.role == "require" else ("pass", "hold")
    with (
        open(options.out, "w", encoding="utf-8", newline="")
        if options.out
        else contextlib.nullcontext(sys.stdout) as file
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "score", "result"])
        for path, value in zip(folder.files.values(), scores, strict=True):
            writer.writerow([path.relative_to(folder.path), f"{value:g}", above if value >= gate.threshold else below])
    if options.out:
        _print_folder(folder)
        print(f"{int((scores >= gate.threshold).sum())} {above}, {int((scores < gate.threshold).sum())} {below}")


def _print_counts(counts: Counts) -> None:
    bound = f"at least {{:.4f}} at {counts.confidence:.0%} confidence"
    print(f"  precision {counts.precision:.4f} ({bound.format(counts.precision_bound)})")
    print(f"  recall    {counts.recall:.4f} ({bound.format(counts.recall_bound)})")
    print(
        f"  {counts.true_positives} found, {counts.false_negatives} missed, {counts.false_positives} taken wrongly, "
        f"{counts.true_negatives} left rightly"
    )


def _cache(options: argparse.Namespace, gate: Path, encoder: ImageEncoder) -> Path:
    return (options.cache or gate.parent / "gate_embeddings") / f"embeddings-{encoder.fingerprint}"


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(prog="python -m data_prep.gate", description="Gates on image embeddings.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="make a gate from two folders")
    evaluate = verbs.add_parser("evaluate", help="judge a gate on two folders that it has not seen")
    use = verbs.add_parser("score", help="score the images of a folder")
    for verb in (train, evaluate):
        verb.add_argument("--positive", type=Path, required=True, metavar="DIR", help="images of what it shall find")
        verb.add_argument("--negative", type=Path, required=True, metavar="DIR", help="images of what it shall not")
    for verb in (evaluate, use):
        verb.add_argument("--gate", type=Path, required=True, metavar="FILE")
        verb.add_argument("--checkpoint", metavar="MODEL", help="where the gate's model is now (default: as it was)")
    train.add_argument("--checkpoint", required=True, metavar="MODEL", help="as PLIP.from_pretrained takes it")
    train.add_argument("--out", type=Path, required=True, metavar="FILE", help="the gate, JSON")
    train.add_argument("--name", default="pathology", help="of what it finds (default: pathology)")
    train.add_argument("--role", choices=ROLES, default="require", help="what the pipeline does (default: require)")
    train.add_argument("--private", action="store_true", help="show in no report what it ends (so is every hold gate)")
    train.add_argument("--precision", type=float, default=defaults.precision, help="on held-out images (default: 0.99)")
    train.add_argument("--least-recall", type=float, default=defaults.least_recall, help="there (default: 0.1)")
    train.add_argument("--holdout", type=float, default=defaults.holdout, help="share of the images (default: 0.3)")
    train.add_argument("--seed", type=int, default=defaults.seed, help="of the held-out images (default: 0)")
    train.add_argument(
        "--group-by",
        choices=("image", "folder"),
        default="image",
        help="what is never divided: with `folder` the sub-folders, say one for each slide (default: image)",
    )
    use.add_argument("--images", type=Path, required=True, metavar="DIR")
    use.add_argument("--out", type=Path, metavar="CSV", help="default: standard output")
    for verb in (train, evaluate, use):
        verb.add_argument("--cache", type=Path, metavar="DIR", help="default: gate_embeddings beside the gate")
    return parser.parse_args(arguments)


VERBS = {"train": _train, "evaluate": _evaluate, "score": _score}


def main(arguments: Sequence[str] | None = None, make_encoder: Callable[[str], ImageEncoder] = plip_encoder) -> int:
    """Run the program; returns the exit status: 0, or 1 with a message when nothing could be made."""
    options = _parse_arguments(arguments)
    try:
        VERBS[options.verb](options, make_encoder)
    except (OSError, ValueError) as error:
        print(f"data_prep.gate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
