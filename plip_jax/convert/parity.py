"""Whether another library computes from an export what plip_jax computes: fixed inputs, our features, the comparison.

Owns ``parity.json``. How a library loads what was written is in each format's own file.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from plip_jax.convert.export_format import (
    ConsumerFeatures,
    ConsumerUnusable,
    ExportError,
    ExportFormat,
    ParityInputs,
    round_params,
)
from plip_jax.convert.hf import differing_params
from plip_jax.convert.hub import HUB_ID
from plip_jax.convert.load import LoadedModel
from plip_jax.convert.names import without_loss_params
from plip_jax.data.image import normalize_pixels, preprocess_image
from plip_jax.data.tokenizer import load_tokenizer
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig

Params = dict[str, Any]

PARITY_FILE = "parity.json"
FORMAT_VERSION = 1
"""Of parity.json: changes when a reader of the older layout would misread the newer one."""
PIXEL_TOLERANCE = 1e-6
"""Normalised pixels are of size 1; the two sides divide by 255 and by the deviation in another order."""
TEXTS = (
    "An H&E image of colorectal adenocarcinoma epithelium.",
    "",
    "lymphocytes in cancer-associated stroma " * 40,
    "Déjà vu: 腺癌, опухоль \N{MICROSCOPE} it's 20x",
    "CD8+  T-cells\n(40x, 0.25 µm/px); Ki-67: 30%",
)
"""Plain, empty, cut to the context, of several scripts, outside the basic plane, of punctuation and double blanks."""
_PRIVATE = "a folder that is not published"


def parity_images() -> list[Image.Image]:
    """Noise, a gradient, blocks with edges, and black: RGB, no two of one size, neither square nor of the model's."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (257, 301, 3), np.uint8)
    rows, columns = np.mgrid[:300, :231]
    gradient = np.stack([rows % 256, columns, (rows + columns) // 3], axis=-1).astype(np.uint8)
    blocks = rng.integers(0, 256, (6, 9, 3), np.uint8).repeat(40, axis=0).repeat(40, axis=1)
    return [Image.fromarray(pixels) for pixels in (noise, gradient, blocks, np.zeros((40, 30, 3), np.uint8))]


def parity_inputs(model: LoadedModel) -> ParityInputs:
    """`TEXTS` and `parity_images` as the model's tokenizer and preprocessing make them."""
    pixels = np.stack([preprocess_image(image, model.preprocessing) for image in parity_images()])
    tokens = np.asarray(model.tokenizer(list(TEXTS)), np.int32)
    return ParityInputs(normalize_pixels(pixels, model.preprocessing), tokens)


def hash_inputs(inputs: ParityInputs) -> str:
    """SHA-256 (hex) of the shapes and bytes of both arrays."""
    digest = hashlib.sha256()
    for array in (inputs.pixel_values, inputs.tokens):
        digest.update(f"{array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def our_features(config: CLIPConfig, params: Params, inputs: ParityInputs) -> tuple[np.ndarray, np.ndarray]:
    """Image and text features, float32, not normalised; on the CPU where jax has one, in true float32 elsewhere."""
    encode_image, encode_text = _encoders(config)
    with _on_cpu(), jax.default_matmul_precision("highest"):
        image = encode_image(params, inputs.pixel_values)
        text = encode_text(params, inputs.tokens)
        return np.asarray(image), np.asarray(text)


@functools.lru_cache(maxsize=4)  # a process that exports several formats compiles a network once
def _encoders(config: CLIPConfig) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    model = clip.build(config)
    return jax.jit(model.encode_image), jax.jit(model.encode_text)


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        yield
        return
    with jax.default_device(device):
        yield


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value of ours; NaN where either has one.

    Raises:
        ExportError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ExportError(f"expected features of shape {ours.shape}, got {theirs.shape}")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), np.finfo(np.float32).tiny))


def check_export(
    model: LoadedModel,
    folder: Path,
    export_format: ExportFormat,
    *,
    name: str,
    dtype: str,
    version: str,
) -> dict[str, Any]:
    """Check a written folder: weights to the last bit, the small files, features by the consumer's own library.

    Args:
        model: what was written.
        folder: where.
        export_format: wrote it.
        name: of the format.
        dtype: of its tensors.
        version: of plip_jax.

    Returns:
        The content of ``parity.json``. What of it is unusable here is a warning besides.

    Raises:
        ExportError: a difference, or a consumer that fails.
    """
    if export_format.read_back is not None:
        # What the file holds; the consumer may round further as it loads (`ExportFormat.rounded`).
        _check_weights(round_params(model.params, dtype), folder, export_format)
    _check_small_files(model, folder, export_format)
    inputs = parity_inputs(model)
    report = _unchecked_report(model, export_format, inputs, name=name, dtype=dtype, version=version)
    try:
        theirs, read = _ask_consumer(folder, export_format, inputs)
    except ConsumerUnusable as error:
        # The message names paths of this machine, and so users: it stays here.
        warnings.warn(f"the features of the export are not checked: {error}", stacklevel=2)
        cause = error.__cause__ or error.__context__ or error
        return {
            **report,
            "why_not": f"the check with {export_format.consumer} cannot run here ({type(cause).__name__})",
        }
    if theirs is None:
        return report
    differences = _compare_features(model, export_format, dtype, inputs, theirs)
    report |= {"checked": True, "why_not": None, "consumer": theirs.library, "max_relative_difference": differences}
    return report | {"consumer_inputs": None if read is None else _compare_inputs(inputs, *read)}


def _unchecked_report(
    model: LoadedModel, export_format: ExportFormat, inputs: ParityInputs, *, name: str, dtype: str, version: str
) -> dict[str, Any]:
    """``parity.json`` of an export whose files are right, before its consumer is asked."""
    kept = model.params if export_format.keeps_loss_params else without_loss_params(model.params)
    return {
        "format_version": FORMAT_VERSION,
        "format": name,
        "dtype": dtype,
        "plip_jax": version,
        "model": public_description(model),
        "bit_equal_weights": True if export_format.read_back is not None else None,
        "left_out": {key: float(model.params[key]) for key in sorted(model.params.keys() - kept.keys())},
        "checked": False,
        "why_not": f"install {export_format.consumer}",
        "consumer": None,
        "inputs": {"images": len(inputs.pixel_values), "texts": len(inputs.tokens), "sha256": hash_inputs(inputs)},
        "tolerance": export_format.tolerance,
        "max_relative_difference": None,
        "consumer_inputs": None,
    }


def write_parity(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``parity.json``."""
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    (folder / PARITY_FILE).write_text(text, encoding="utf-8")


def read_parity(folder: Path) -> dict[str, Any]:
    """Read ``parity.json``."""
    return json.loads((folder / PARITY_FILE).read_text(encoding="utf-8"))


def public_description(model: LoadedModel) -> dict[str, Any]:
    """`LoadedModel.describe` as it may leave this machine: a hub id stays, the path of a folder does not."""
    return _public(model.describe())


def public_source(source: str) -> str:
    """A hub id as it is; for anything else, which is a place on this machine or in a bucket, only that it is one."""
    is_local = not HUB_ID.fullmatch(source) or Path(source).exists()
    return _PRIVATE if is_local else source


def _public(described: Any) -> Any:
    if not isinstance(described, Mapping):
        return described
    public = {key: _public(value) for key, value in described.items()}
    if "source" in public:
        public["source"] = public_source(str(public["source"]))
    if "weights_file" in public:
        public["weights_file"] = re.split(r"[/\\]", str(public["weights_file"]))[-1]
    return public


def _check_weights(written: Params, folder: Path, export_format: ExportFormat) -> None:
    """Compare to the last bit; a format that has no place for a loss's own parameters said so as it wrote."""
    assert export_format.read_back is not None
    expected = written if export_format.keeps_loss_params else without_loss_params(written)
    if differing := differing_params(expected, export_format.read_back(folder)):
        raise ExportError(f"{folder}: read back, {len(differing)} parameters differ: {', '.join(differing[:8])}")


def _check_small_files(model: LoadedModel, folder: Path, export_format: ExportFormat) -> None:
    tokenizer = load_tokenizer(folder, context_length=model.tokenizer.context_length)
    if tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise ExportError(f"{folder}: read back, the tokenizer differs from the model's")
    if export_format.read_preprocessing is None:
        return
    found = export_format.read_preprocessing(folder)
    if found != model.preprocessing:
        raise ExportError(f"{folder}: read back, expected the preprocessing {model.preprocessing}, got {found}")


def _ask_consumer(
    folder: Path, export_format: ExportFormat, inputs: ParityInputs
) -> tuple[ConsumerFeatures | None, tuple[np.ndarray, np.ndarray] | None]:
    """The consumer's features, and its ids and pixels where it makes them."""
    try:
        theirs = export_format.consumer_features(folder, inputs)
        if theirs is None or export_format.consumer_inputs is None:
            return theirs, None
        return theirs, export_format.consumer_inputs(folder, TEXTS, parity_images())
    except (ConsumerUnusable, ExportError):
        raise
    except Exception as error:  # torch's RuntimeError, onnxruntime's Fail, and whatever else a library raises
        raise ExportError(
            f"{_versions(export_format.consumer)} cannot load or run what was written ({type(error).__name__}: "
            f"{error}); nothing was exported, try another version of it, or report this"
        ) from error


def _versions(packages: str) -> str:
    """Names of packages, as pip calls them, with their versions."""

    def version(package: str) -> str:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return package

    return ", ".join(map(version, packages.split()))


def _compare_features(
    model: LoadedModel, export_format: ExportFormat, dtype: str, inputs: ParityInputs, theirs: ConsumerFeatures
) -> dict[str, float]:
    image, text = our_features(model.config, export_format.rounded(model.params, dtype), inputs)
    differences = {
        "image_features": relative_difference(image, theirs.image_features),
        "text_features": relative_difference(text, theirs.text_features),
    }
    # Not "above": NaN is no agreement.
    wrong = [f"{what} by {value:.3g}" for what, value in differences.items() if not value <= export_format.tolerance]
    if wrong:
        raise ExportError(
            f"{theirs.library} computes other features than plip_jax from what was written: {', '.join(wrong)} of the "
            f"largest value, expected at most {export_format.tolerance:g}; nothing was exported, please report this"
        )
    return differences


def _compare_inputs(inputs: ParityInputs, tokens: np.ndarray, pixel_values: np.ndarray) -> dict[str, Any]:
    if not np.array_equal(inputs.tokens, tokens):
        raise ExportError("the consumer's tokenizer gives other ids than plip_jax for the check's texts")
    if pixel_values.shape != inputs.pixel_values.shape:
        raise ExportError(f"expected pixels of shape {inputs.pixel_values.shape}, got {pixel_values.shape}")
    difference = float(np.abs(inputs.pixel_values - pixel_values).max())
    if not difference <= PIXEL_TOLERANCE:
        raise ExportError(
            f"the consumer's image processor gives other pixels than plip_jax: by {difference:.3g}, expected at most "
            f"{PIXEL_TOLERANCE:g}"
        )
    return {"tokens_equal": True, "max_pixel_difference": difference}
