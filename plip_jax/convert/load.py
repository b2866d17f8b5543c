"""Any source of a model -> one `LoadedModel`: a Hugging Face folder, a hub id, or a workdir of ``plip_jax.train``.

Owns telling the sources apart (by what a folder contains, never by its name), the hash of the weights, and the model
between two models. The hub is asked for the files that are needed and no others.
"""

import argparse
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.hf import SMALL_FILES, WEIGHTS_FILES, is_hf_folder, read_hf
from plip_jax.convert.hub import HUB_ID, SourceError, download
from plip_jax.convert.names import flatten
from plip_jax.data.image import Preprocessing
from plip_jax.data.tokenizer import Tokenizer, restore_tokenizer
from plip_jax.model.presets import CLIPConfig
from plip_jax.training.checkpoint import Weights, Which, is_workdir, read_model
from plip_jax.training.interpolation import check_alpha, interpolate

# Files of one weights format, in the order of `WEIGHTS_FILES`; sharded safetensors have several.
_HUB_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("flax_model.msgpack",),
    ("pytorch_model.bin",),
)
# A person's list of what to fetch by hand: the newest names only.
_FILES_TO_FETCH = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with everything that goes with it.

    Attributes:
        config: the network.
        params: nested dict of float32 numpy arrays; a ``logit_bias`` is among them where SigLIP's loss trained them.
        tokenizer: for its captions.
        preprocessing: for its images.
        source: what was asked for.
        weights_file: the file, or the checkpoint step, that the parameters were read from.
        weights_hash: SHA-256 of the parameters, see `hash_params`.
        step: the training step of a checkpoint; None for a foreign model.
        weights: ``raw``, or ``ema`` where the parameters are the moving average that a run kept.
        mixed_from: what the weights were interpolated from, fit for JSON, see `interpolate_models`; None for none.
    """

    config: CLIPConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    source: str
    weights_file: str
    weights_hash: str
    step: int | None = None
    weights: str = "raw"
    mixed_from: Mapping[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Which weights these are, fit for JSON."""
        mixed = {} if self.mixed_from is None else {"mixed_from": dict(self.mixed_from)}
        return {
            "source": self.source,
            "weights_file": self.weights_file,
            "weights": self.weights,
            "weights_hash": self.weights_hash,
            "step": self.step,
            **mixed,
        }


def load_model(source: str | Path, *, which: Which = "latest", weights: Weights = "auto") -> LoadedModel:
    """Load a model from wherever it is.

    Args:
        source: a folder of Hugging Face files, a workdir of ``python -m plip_jax.train`` (its ``gs://`` URL too), or a
            hub id such as ``vinid/plip``. An existing folder wins over a hub id of the same name.
        which: of a workdir's checkpoints, ``latest``, ``best`` or a step.
        weights: of a workdir's checkpoint: ``ema``, the moving average of the weights, ``raw``, the weights themselves,
            or ``auto``, the moving average where the run kept one.

    Raises:
        SourceError: nothing there that is a model, or the hub cannot be reached.
        ValueError: the files are damaged or do not fit each other; the message names them.
    """
    if "://" in str(source):  # a Path would make one slash of two
        if not is_workdir(source):
            raise SourceError(f"{source}: expected the workdir of a run, with checkpoints/ in it, at a URL")
        return _load_workdir(source, which, weights)
    folder = Path(source).expanduser()
    if folder.is_dir():
        if is_workdir(folder):
            return _load_workdir(folder, which, weights)
        if not is_hf_folder(folder):
            raise SourceError(_unknown_folder(folder))
    elif not (isinstance(source, str) and HUB_ID.fullmatch(source)) or folder.exists():
        got = "a file" if folder.exists() else "nothing at that path"
        raise SourceError(f"{source}: expected a model folder, a training workdir or a hub id (owner/name), got {got}")
    if which != "latest":
        raise SourceError(
            f"{source}: which={which!r} chooses a checkpoint of a training workdir; this model has one only"
        )
    if weights == "ema":
        raise SourceError(
            f"{source}: weights='ema' asks for a training run's moving average; this model has one weight only"
        )
    model = read_hf(folder if folder.is_dir() else _download(str(source)))
    return LoadedModel(
        config=model.config,
        params=model.params,
        tokenizer=model.tokenizer,
        preprocessing=model.preprocessing,
        source=str(source),
        weights_file=model.weights_file,
        weights_hash=hash_params(model.params),
    )


def interpolate_models(start: LoadedModel, end: LoadedModel, alpha: float) -> LoadedModel:
    """The model at ``(1 - alpha) * start + alpha * end``; with the tokenizer, preprocessing and source of ``end``.

    Raises:
        SourceError: the two are not of one network or vocabulary.
        ValueError: alpha outside [0, 1], or parameters that differ in shape.
    """
    check_alpha(alpha)
    ours, theirs = _compared(start), _compared(end)
    differing = [name for name in ours if ours[name] != theirs[name]]
    if differing:
        raise SourceError(
            f"{start.source} and {end.source} are not of one network, they differ in {', '.join(differing)}: weights "
            "can be interpolated only between a model and what was fine-tuned from it"
        )
    params = interpolate(start.params, end.params, alpha)
    return dataclasses.replace(
        end,
        params=params,
        weights_hash=hash_params(params),
        mixed_from={"alpha": float(alpha), "start": start.describe(), "end": end.describe()},
    )


def _compared(model: LoadedModel) -> dict[str, Any]:
    """What must agree for two models' weights to mean the same."""
    # Not the pooling convention: the same model has either, by the file it was read from.
    text = {name: value for name, value in dataclasses.asdict(model.config.text).items() if name != "eot_pooling"}
    return {
        "embed_dim": model.config.embed_dim,
        "vision": model.config.vision,
        "text": text,
        "activation": model.config.activation,
        "norm_eps": model.config.norm_eps,
        "the tokenizer's vocabulary": [model.tokenizer.files[name] for name in ("vocab.json", "merges.txt")],
    }


def add_model_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add ``--checkpoint``, ``--which`` and ``--weights``, the arguments of `load_model`, to a program's flags.

    Args:
        parser: of the program.
        several: ``--checkpoint`` may be given more than once, with a name and a kind of encoder before the source.
    """
    one = "workdir of a training run, Hugging Face folder or hub id"
    if several:
        parser.add_argument(
            "--checkpoint",
            required=True,
            action="append",
            metavar="[NAME=][KIND:]SOURCE",
            help=f"{one}; give it again for another model to compare. KIND is one of clip (the default), siglip, vit, "
            "densenet, files (a folder of embeddings)",
        )
    else:
        parser.add_argument("--checkpoint", required=True, help=one)
    parser.add_argument(
        "--which", type=_which, default="latest", help="of a workdir: latest, best or a step (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        choices=("auto", "raw", "ema"),
        default="auto",
        help="of a workdir: raw weights, their moving average (ema), or auto: ema where the run kept one "
        "(default: %(default)s)",
    )


def parse_alpha(text: str) -> float:
    """Read an alpha from the command line."""
    try:
        alpha = float(text)
        check_alpha(alpha)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number from 0 (start) to 1 (checkpoint), got {text!r}") from None
    return alpha


def _which(text: str) -> Which:
    if text in ("latest", "best"):
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected latest, best or a step, got {text!r}")
    return int(text)


def hash_params(params: dict[str, Any]) -> str:
    """SHA-256 over path, shape, dtype and bytes of every parameter, in the order of the paths.

    The same weights have the same hash, whichever file or device they come from.
    """
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {np.shape(leaf)} {array.dtype.name}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _load_workdir(folder: str | Path, which: Which, weights: Weights) -> LoadedModel:
    files = read_model(folder, which, weights)
    return LoadedModel(
        config=CLIPConfig.from_dict(files.description.model_config),
        params=files.params,
        tokenizer=restore_tokenizer(files.tokenizer_files),
        preprocessing=Preprocessing.from_dict(files.description.preprocessing),
        source=str(folder),
        weights_file=f"checkpoint of step {files.step}" + (", moving average" if files.weights == "ema" else ""),
        weights_hash=hash_params(files.params),
        step=files.step,
        weights=files.weights,
    )


def _unknown_folder(folder: Path) -> str:
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return (
        f"{folder}: expected a Hugging Face CLIP folder (config.json and one of {', '.join(WEIGHTS_FILES)}) or a "
        f"workdir of `python -m plip_jax.train`, found {', '.join(found[:12]) or 'an empty folder'}{more}"
    )


def _download(repo_id: str) -> Path:
    """Fetch a hub id into the Hugging Face cache, or find it there: the small files and one format of weights."""
    wanted = f"{', '.join(_FILES_TO_FETCH)} and one of {', '.join(WEIGHTS_FILES)}"
    folder = download(repo_id, SMALL_FILES, _HUB_WEIGHTS, is_whole=is_hf_folder, wanted=wanted)
    if not is_hf_folder(folder):
        raise SourceError(f"hub id {repo_id}: {_unknown_folder(folder)}")
    return folder
