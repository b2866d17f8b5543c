"""Any source of a model -> one `LoadedModel`: a folder, a file of weights, a hub id or a workdir of ``plip_jax.train``.

Owns telling the sources apart (by what they contain, never by their name), the hash of the weights, and the model
between two models. The hub is asked for the files that are needed and no others.
"""

import argparse
import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.hf import SMALL_FILES, WEIGHTS_FILES, ReadModel, is_hf_folder, read_hf
from plip_jax.convert.hub import HUB_ID, SourceError, download
from plip_jax.convert.names import flatten
from plip_jax.convert.open_clip_config import CONFIG_FILE as OPEN_CLIP_CONFIG_FILE
from plip_jax.convert.weights_file import detect, read_weights_file, with_activation
from plip_jax.data.image import Preprocessing
from plip_jax.data.tokenizer import Tokenizer, restore_tokenizer
from plip_jax.model.presets import Activation, CLIPConfig
from plip_jax.training.checkpoint import Weights, Which, is_workdir, read_model
from plip_jax.training.interpolation import check_alpha, interpolate

# Files of one weights format, in the order of `WEIGHTS_FILES`; sharded safetensors have several.
_HUB_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("flax_model.msgpack",),
    ("pytorch_model.bin",),
    ("open_clip_model.safetensors",),
    ("open_clip_pytorch_model.bin",),
)
# Weights files of an open_clip folder, in the order of preference.
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
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


def load_model(
    source: str | Path,
    *,
    which: Which = "latest",
    weights: Weights = "auto",
    tokenizer: str | Path | None = None,
    activation: Activation | None = None,
) -> LoadedModel:
    """Load a model from wherever it is.

    Args:
        source: a folder of Hugging Face files, or of open_clip's (one that is both is read as Hugging Face's, if it has
            its weights); a file of weights, or a folder with one in it, see `read_weights_file`; a workdir of ``python
            -m plip_jax.train`` (its ``gs://`` URL too); or a hub id such as ``vinid/plip``. What exists here wins over
            a hub id of the same name.
        which: of a workdir's checkpoints, ``latest``, ``best`` or a step.
        weights: of a workdir's checkpoint: ``ema``, the moving average of the weights, ``raw``, the weights themselves,
            or ``auto``, the moving average where the run kept one.
        tokenizer: a folder or hub id with the tokenizer's files, for weights that come without; wins over what is
            found beside them.
        activation: for weights that come without a configuration; wins over one, with a warning.

    Raises:
        SourceError: nothing there that is a model, it does not say enough, or the hub cannot be reached.
        ValueError: the files are damaged or do not fit each other; the message names them.
    """
    path = Path(source).expanduser()
    is_url = "://" in str(source)  # a Path would make one slash of two
    if is_url and not is_workdir(source):
        raise SourceError(f"{source}: expected the workdir of a run, with checkpoints/ in it, at a URL")
    if is_url or (path.is_dir() and is_workdir(path)):
        if tokenizer is not None or activation is not None:
            raise SourceError(f"{source}: a training workdir has its own tokenizer and activation; pass neither")
        return _load_workdir(source if is_url else path, which, weights)
    is_hub_id = isinstance(source, str) and bool(HUB_ID.fullmatch(source))
    if not path.exists() and not is_hub_id:
        raise SourceError(
            f"{source}: expected a model folder, a training workdir, a file of weights or a hub id (owner/name), got "
            "nothing at that path"
        )
    if path.exists() and not path.is_dir() and not path.is_file():  # a pipe would be waited for
        raise SourceError(f"{source}: expected a model folder or a file of weights, got a pipe or a device; copy it")
    if path.is_dir() and _weights_in(path) is None:
        raise SourceError(_unknown_folder(path))
    _check_is_the_only(source, which, weights)
    if path.is_file():
        model = read_weights_file(path, tokenizer=tokenizer, activation=activation)
    else:
        model = _read_folder(path if path.is_dir() else _download(str(source)), tokenizer, activation)
    return LoadedModel(
        config=model.config,
        params=model.params,
        tokenizer=model.tokenizer,
        preprocessing=model.preprocessing,
        source=str(source),
        weights_file=model.weights_file,
        weights_hash=hash_params(model.params),
    )


def _check_is_the_only(source: str | Path, which: Which, weights: Weights) -> None:
    """Refuse to choose among the checkpoints of a model that is no workdir."""
    if which != "latest":
        raise SourceError(
            f"{source}: which={which!r} chooses a checkpoint of a training workdir; this model has one only"
        )
    if weights == "ema":
        raise SourceError(
            f"{source}: weights='ema' asks for a training run's moving average; this model has one weight only"
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
    """Add ``--checkpoint`` and the other arguments of `load_model` to a program's flags.

    Args:
        parser: of the program.
        several: ``--checkpoint`` may be given more than once, with a name and a kind of encoder before the source.
    """
    one = "workdir of a training run, folder of Hugging Face or open_clip, file of weights, or hub id"
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
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_ID",
        help="the tokenizer of weights that come without one (default: what is beside them, or else CLIP's own)",
    )
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of weights that come without a configuration (OpenAI's and PLIP's: quick_gelu; LAION's: gelu)",
    )


def settings_of(source: str | Path, *, tokenizer: str | None, activation: Activation | None) -> dict[str, Any]:
    """``--tokenizer`` and ``--activation`` for one source of several: a single file alone may need to be told."""
    return {"tokenizer": tokenizer, "activation": activation} if Path(source).expanduser().is_file() else {}


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


def _read_folder(folder: Path, tokenizer: str | Path | None, activation: Activation | None) -> ReadModel:
    """Read a folder that has a model; Hugging Face's files are needed whole, unless a tokenizer is given."""
    file = _weights_in(folder)
    if (is_hf_folder(folder) and tokenizer is None) or file is None:
        model = read_hf(folder)
        return dataclasses.replace(model, config=with_activation(model.config, activation, where=str(folder)))
    return read_weights_file(file, tokenizer=tokenizer, activation=activation)


def _weights_in(folder: Path) -> Path | None:
    """The weights file of a folder: Hugging Face's, else open_clip's, else the only one that there is."""
    layouts = (("config.json", WEIGHTS_FILES), (OPEN_CLIP_CONFIG_FILE, _OPEN_CLIP_WEIGHTS))
    for config, names in layouts:
        for name in names if (folder / config).is_file() else ():
            if (folder / name).is_file():
                return folder / name
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and detect(path)]
    return files[0] if len(files) == 1 else None


def _unknown_folder(folder: Path) -> str:
    found = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return (
        f"{folder}: expected a Hugging Face CLIP folder (config.json and one of {', '.join(WEIGHTS_FILES)}), an "
        f"open_clip folder ({OPEN_CLIP_CONFIG_FILE} and one of {', '.join(_OPEN_CLIP_WEIGHTS)}), a folder with one "
        f"file of weights, or a workdir of `python -m plip_jax.train`, found "
        f"{', '.join(found[:12]) or 'an empty folder'}{more}"
    )


def _download(repo_id: str) -> Path:
    """Fetch a hub id into the Hugging Face cache, or find it there: the small files and one format of weights."""
    wanted = (
        f"{', '.join(_FILES_TO_FETCH)} and one of {', '.join(WEIGHTS_FILES)} (of an open_clip model: "
        f"{OPEN_CLIP_CONFIG_FILE}, one of {', '.join(_OPEN_CLIP_WEIGHTS)}, and the tokenizer's files)"
    )

    def has_weights(folder: Path) -> bool:
        is_open_clip = (folder / OPEN_CLIP_CONFIG_FILE).is_file()
        return is_hf_folder(folder) or (is_open_clip and any((folder / name).is_file() for name in _OPEN_CLIP_WEIGHTS))

    files = (*SMALL_FILES, OPEN_CLIP_CONFIG_FILE)
    folder = download(repo_id, files, _HUB_WEIGHTS, is_whole=has_weights, wanted=wanted)
    if not has_weights(folder):
        raise SourceError(f"hub id {repo_id}: {_unknown_folder(folder)}")
    return folder
