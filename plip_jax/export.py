"""``python -m plip_jax.export``: any checkpoint -> the folder that another library loads.

Owns the command line and the safe writing of a folder (beside the target, read back, then renamed). Each format's
layout is in `plip_jax.convert`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from plip_jax.convert.hf import differing_params, read_hf, write_hf
from plip_jax.convert.load import LoadedModel, add_model_flags, interpolate_models, load_model, parse_alpha
from plip_jax.convert.names import without_loss_params


class ExportError(ValueError):
    """An export that was not made. The message says what is in the way."""


def export_hf(model: LoadedModel, folder: Path) -> None:
    """Write a Hugging Face CLIP folder and read it back; a weight of SigLIP's loss is left out, see `write_hf`.

    Raises:
        ExportError: what is read back is not what was written, to the last bit.
        ValueError: HF cannot express this model.
    """
    write_hf(folder, model.config, model.params, model.tokenizer, model.preprocessing)
    written = read_hf(folder)
    differing = differing_params(without_loss_params(model.params), written.params)
    if differing:
        raise ExportError(f"{folder}: read back, {len(differing)} parameters differ: {', '.join(differing[:8])}")
    if written.preprocessing != model.preprocessing or written.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise ExportError(f"{folder}: read back, the preprocessing or the tokenizer differs")


# Format -> a function that writes a model into an empty folder, and checks what it wrote.
EXPORTERS: dict[str, Callable[[LoadedModel, Path], None]] = {"hf": export_hf}


def export(model: LoadedModel, folder: str | Path, *, format: str = "hf", overwrite: bool = False) -> Path:
    """Write a model into a folder that appears only when it is whole.

    Args:
        model: from `plip_jax.convert.load.load_model`.
        folder: must not exist, or hold an earlier export if `overwrite`.
        format: a key of `EXPORTERS`.
        overwrite: replace an earlier export.

    Returns:
        The folder.

    Raises:
        ExportError: an unknown format, or a folder that is in the way.
        ValueError: the format cannot express this model.
    """
    if format not in EXPORTERS:
        raise ExportError(f"unknown format {format!r}; known: {', '.join(EXPORTERS)}")
    folder = Path(folder).expanduser().absolute()
    _check_target(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh, old = Path(scratch) / "fresh", Path(scratch) / "old"
        fresh.mkdir()
        EXPORTERS[format](model, fresh)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    return folder


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder}: expected a folder or nothing, got a file or a link")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"{folder} exists; pass --overwrite to replace it, or choose another --out")
    # Replacing means deleting: only what an export looks like, so that --out ~ --overwrite costs nothing.
    others = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if others or not (folder / "config.json").is_file():
        raise ExportError(
            f"{folder}: --overwrite replaces an earlier export (a config.json and no folders in it), "
            f"got {', '.join(others[:8]) or 'no config.json'}; remove it yourself if it is not needed"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    parser = argparse.ArgumentParser(prog="plip-jax export", description="Write a checkpoint for another library.")
    add_model_flags(parser)
    parser.add_argument("--format", default="hf", help=f"one of {', '.join(EXPORTERS)} (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at --out")
    parser.add_argument(
        "--wise-ft-from",
        metavar="START",
        help="write the weights between those of START (what fine-tuning started from) and the checkpoint's (WiSE-FT)",
    )
    parser.add_argument(
        "--alpha", type=parse_alpha, help="with --wise-ft-from: the checkpoint's share, from 0 (START) to 1"
    )
    flags = parser.parse_args(argv)
    if (flags.wise_ft_from is None) != (flags.alpha is None):
        parser.error("--wise-ft-from START and --alpha go together")
    try:
        if flags.format not in EXPORTERS:  # before minutes of loading
            raise ExportError(f"unknown format {flags.format!r}; known: {', '.join(EXPORTERS)}")
        _check_target(flags.out.expanduser().absolute(), flags.overwrite)
        model = load_model(flags.checkpoint, which=flags.which, weights=flags.weights)
        if flags.wise_ft_from is not None:
            model = interpolate_models(load_model(flags.wise_ft_from), model, flags.alpha)
        folder = export(model, flags.out, format=flags.format, overwrite=flags.overwrite)
    except (ValueError, OSError) as error:
        print(f"plip-jax export: {error}", file=sys.stderr)
        return 1
    mixed = f", {flags.alpha:g} of the way from {flags.wise_ft_from}" if model.mixed_from else ""
    print(f"read {model.weights_file} of {model.source}{mixed} (sha256 {model.weights_hash[:16]}…)")
    for path in sorted(folder.iterdir()):
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    print(f'load it with transformers.CLIPModel.from_pretrained("{folder}") or PLIP.from_pretrained("{folder}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
