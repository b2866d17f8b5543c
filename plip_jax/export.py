"""``python -m plip_jax.export``: any checkpoint -> the folder that another library loads, checked by that library.

Owns the command line and the safe writing of a folder (beside the target, checked, then renamed). Each format's layout
is in `plip_jax.convert`, the check in `plip_jax.convert.parity`, the model card in `plip_jax.model_card`.
"""

import argparse
import contextlib
import dataclasses
import difflib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plip_jax import __version__, model_card
from plip_jax.convert import hub_upload
from plip_jax.convert.export_format import ExportError as ExportError  # a part of this module's interface
from plip_jax.convert.export_format import ExportFormat
from plip_jax.convert.hf import HF_EXPORT_FILES
from plip_jax.convert.hf_format import HF
from plip_jax.convert.load import (
    LoadedModel,
    add_model_flags,
    interpolate_models,
    load_model,
    parse_alpha,
    settings_of,
)
from plip_jax.convert.onnx_format import ONNX
from plip_jax.convert.open_clip import OPEN_CLIP
from plip_jax.convert.openai import OPENAI
from plip_jax.convert.parity import PARITY_FILE, check_export, read_parity, write_parity
from plip_jax.convert.stablehlo import STABLEHLO
from plip_jax.model_card import CardFacts
from plip_jax.training.checkpoint import is_workdir, read_description

EXPORTERS: dict[str, ExportFormat] = {
    "hf": HF,
    "open_clip": OPEN_CLIP,
    "openai": OPENAI,
    "onnx": ONNX,
    "stablehlo": STABLEHLO,
}
"""``--format`` -> format. Another one is a file with an `ExportFormat`, and a line here."""
_PACKAGE = Path(__file__).parent
# The entries of a folder: name, identity, size and time of change; None for no folder.
_Entries = tuple[tuple[str, int, int, int], ...] | None


def export(
    model: LoadedModel,
    folder: str | Path,
    *,
    format: str = "hf",
    dtype: str | None = None,
    overwrite: bool = False,
    facts: CardFacts | None = None,
) -> Path:
    """Write a model into a folder that appears only when it is whole and checked.

    Beside the format's own files stand ``parity.json``, what the check found, and ``README.md``, the model card.

    Args:
        model: from `plip_jax.convert.load.load_model`.
        folder: must not exist, or hold an earlier export if `overwrite`.
        format: a key of `EXPORTERS`.
        dtype: of the tensors, one of the format's; its first by default.
        overwrite: replace an earlier export.
        facts: what the model card says besides what the model itself does.

    Returns:
        The folder.

    Raises:
        ExportError: an unknown format or dtype, a folder that is in the way or changed meanwhile, or a check that
            failed: what was written does not hold the parameters to the last bit, or its consumer's library computes
            other features from it.
        ValueError: the format cannot express this model, or the evaluation in `facts` is of other weights.
    """
    exporter, dtype = _chosen(format, dtype)
    folder = Path(folder).expanduser().absolute()
    _check_target(folder, overwrite, _places(model))
    before = _entries(folder)
    facts = _with_training(facts or CardFacts(), model)
    model_card.check_evaluation(facts.evaluation, model)  # before minutes of writing
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        if facts.repo_id is not None and exporter.write_for_hub is not None:
            exporter.write_for_hub(fresh, model, dtype, facts.repo_id)
        else:
            exporter.write(fresh, model, dtype)
        parity = check_export(model, fresh, exporter, name=format, dtype=dtype, version=__version__)
        write_parity(fresh, parity)
        card = model_card.make_model_card(model, parity, how_to_load=exporter.how_to_load, facts=facts)
        (fresh / model_card.CARD_FILE).write_text(card, encoding="utf-8")
        # Not inside the scratch folder, which is deleted whatever happens.
        _swap(fresh, folder, old=Path(f"{scratch}.old"), before=before)
    return folder


def _chosen(format: str, dtype: str | None) -> tuple[ExportFormat, str]:
    if format not in EXPORTERS:
        raise ExportError(f"unknown format {format!r}; known: {', '.join(EXPORTERS)}")
    dtypes = EXPORTERS[format].dtypes
    if dtype is not None and dtype not in dtypes:
        raise ExportError(f"format {format} has no dtype {dtype!r}; it has: {', '.join(dtypes)}")
    return EXPORTERS[format], dtype or dtypes[0]


def _check_target(folder: Path, overwrite: bool, places: Sequence[str]) -> None:
    """Refuse a target that holds what an export may not replace.

    Args:
        folder: the target.
        overwrite: an earlier export may be replaced.
        places: what the model was read from.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ExportError(f"{folder}: expected a folder or nothing, got a file or a link")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"{folder} exists; pass --overwrite to replace it, or choose another --out")
    for place in places:
        path = Path(place).expanduser()
        if "://" not in place and path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{folder}: the model is read from there ({place}); choose another --out")
    # Replacing means deleting: only what an export looks like, so that --out ~ --overwrite costs nothing. Earlier
    # versions wrote no parity.json; config.json alone is in the folder of every training program.
    entries = list(folder.iterdir())
    is_ours = (folder / PARITY_FILE).is_file()
    others = sorted(path.name for path in entries if path.is_dir() or not (is_ours or path.name in HF_EXPORT_FILES))
    if others or not (is_ours or (folder / "config.json").is_file()):
        raise ExportError(
            f"{folder}: --overwrite replaces an earlier export ({PARITY_FILE}, or nothing but the files of format hf, "
            f"and no folders in it), got {', '.join(others[:8]) or 'neither'}; remove it yourself if it is not needed"
        )


def _places(model: LoadedModel) -> list[str]:
    mixed = model.mixed_from or {}
    return [model.source, *(str(mixed[end]["source"]) for end in ("start", "end") if end in mixed)]


def _entries(folder: Path) -> _Entries:
    if not folder.is_dir():
        return None
    found = ((path.name, path.lstat()) for path in folder.iterdir())
    return tuple(sorted((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found))


def _swap(fresh: Path, folder: Path, *, old: Path, before: _Entries) -> None:
    """Put a new folder in the place of what was checked, and nothing else; what stood there is never lost.

    Args:
        fresh: the new one, on the same file system.
        folder: the target.
        old: does not exist; where the target's content stands meanwhile.
        before: the entries of the target as they were checked, minutes ago.

    Raises:
        ExportError: they are no longer those: another export, or a person, was there.
    """
    changed = f"{folder}: changed while the export was written; nothing was replaced, choose another --out or try again"
    try:
        if before is None:
            if folder.exists():
                raise ExportError(changed)
        else:
            folder.rename(old)
            if _entries(old) != before:  # only now can nobody write by that name
                raise ExportError(changed)
        fresh.rename(folder)
    except BaseException as error:  # Ctrl-C between the two renames too
        if old.exists() and not folder.exists():
            old.rename(folder)
        elif old.exists() and fresh.exists():
            raise ExportError(f"{changed}; what stood there before is {old}") from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _with_training(facts: CardFacts, model: LoadedModel) -> CardFacts:
    """Add the configuration of the run that a checkpoint is of."""
    if facts.run_config is not None or model.step is None or not is_workdir(model.source):
        return facts
    return dataclasses.replace(facts, run_config=read_description(model.source, model.step).config)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="plip-jax export", description="Write a checkpoint for another library.")
    add_model_flags(parser)
    parser.add_argument("--format", default="hf", help=f"one of {', '.join(EXPORTERS)} (default: %(default)s)")
    parser.add_argument("--dtype", help="of the tensors: float32, float16 or bfloat16 (default: the format's own)")
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
    card = parser.add_argument_group("model card", "what README.md of the export says; nothing in it is guessed")
    card.add_argument("--evaluation", type=Path, metavar="DIR", help="a report of plip_jax.evaluate of these weights")
    card.add_argument("--license", metavar="ID", help="of the weights, as the hub names it (default: unknown)")
    card.add_argument("--base-model", metavar="ID", help="hub id of the weights that training started from")
    push = parser.add_argument_group("Hugging Face hub", "the token is read from the environment variable HF_TOKEN")
    push.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the export once it is whole at --out")
    push.add_argument("--private", action="store_true", help="to a private repository")
    flags = parser.parse_args(argv)
    # A shell leaves the ~ of --out=~/x, and what is printed is pasted into Python, where ~ is no home folder either.
    for name in ("checkpoint", "tokenizer", "wise_ft_from", "out", "evaluation"):
        value = getattr(flags, name)
        if value is not None:
            setattr(flags, name, type(value)(os.path.expanduser(value)))
    if (flags.wise_ft_from is None) != (flags.alpha is None):
        parser.error("--wise-ft-from START and --alpha go together")
    if flags.private and flags.push_to_hub is None:
        parser.error("--private needs --push-to-hub OWNER/NAME")
    for flag, value in (("--push-to-hub", flags.push_to_hub), ("--base-model", flags.base_model)):
        if value is not None and not hub_upload.is_repo_id(value):
            parser.error(f"{flag}: expected OWNER/NAME, got {value!r}")
    if flags.license is not None and flags.license not in hub_upload.LICENSES:
        near = difflib.get_close_matches(flags.license.lower(), hub_upload.LICENSES)
        parser.error(
            f"--license: expected one of the hub's ids, got {flags.license!r}; near it: {', '.join(near) or 'none'}; "
            "'other' is for a licence that has no id (https://huggingface.co/docs/hub/repositories-licenses)"
        )
    return flags


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print our warnings as the program's other messages: without the file and line of this code."""
    usual = warnings.formatwarning

    def format_warning(message: Warning | str, category: type[Warning], filename: str, *place: Any) -> str:
        if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            return f"plip-jax export: {message}\n"
        return usual(message, category, filename, *place)  # of another library: where it comes from is news

    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _export(flags: argparse.Namespace) -> tuple[LoadedModel, Path]:
    # All that can be said without the model, before minutes of loading.
    _chosen(flags.format, flags.dtype)
    if flags.push_to_hub is not None:
        hub_upload.read_token(flags.push_to_hub)
    places = [flags.checkpoint, *([flags.wise_ft_from] if flags.wise_ft_from is not None else [])]
    _check_target(flags.out.absolute(), flags.overwrite, places)
    facts = CardFacts(
        evaluation=None if flags.evaluation is None else model_card.read_evaluation(flags.evaluation),
        license=flags.license,
        base_model=flags.base_model,
        repo_id=flags.push_to_hub,
    )
    told = {"tokenizer": flags.tokenizer, "activation": flags.activation}
    # With a start besides, the two may be meant for a file there; a workdir has its own.
    own = {} if flags.wise_ft_from is not None and is_workdir(flags.checkpoint) else told
    model = load_model(flags.checkpoint, which=flags.which, weights=flags.weights, **own)
    if flags.wise_ft_from is not None:
        start = load_model(flags.wise_ft_from, **settings_of(flags.wise_ft_from, **told))
        model = interpolate_models(start, model, flags.alpha)
    folder = export(model, flags.out, format=flags.format, dtype=flags.dtype, overwrite=flags.overwrite, facts=facts)
    return model, folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status."""
    flags = _parse(argv)
    try:
        with _warnings_as_lines():
            model, folder = _export(flags)
    except (ValueError, OSError) as error:
        print(f"plip-jax export: {error}", file=sys.stderr)
        return 1
    mixed = f", {flags.alpha:g} of the way from {flags.wise_ft_from}" if model.mixed_from else ""
    print(f"read {model.weights_file} of {model.source}{mixed} (sha256 {model.weights_hash[:16]}…)")
    for path in sorted(folder.iterdir()):
        print(f"wrote {flags.out / path.name} ({path.stat().st_size:,} bytes)")
    parity = read_parity(folder)
    print(model_card.parity_line(parity), file=sys.stdout if parity["checked"] else sys.stderr)
    print(f"load it with {EXPORTERS[flags.format].how_to_load.format(folder=flags.out)}")
    if flags.push_to_hub is None:
        return 0
    try:
        print(f"pushed to {hub_upload.upload(folder, flags.push_to_hub, private=flags.private)}")
    except hub_upload.UploadError as error:
        print(f"plip-jax export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
