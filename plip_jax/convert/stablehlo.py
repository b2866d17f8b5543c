"""StableHLO by `jax.export`: each tower as a program that runs without this package and without flax.

Owns what a folder holds, its description and its check; how it is loaded is in `load_stablehlo`, which imports nothing
of ours and is copied into the folder. A folder holds

- ``vision_model.stablehlo`` and ``text_model.stablehlo``: what ``jax.export`` serialises, for a CPU, an NVIDIA GPU and
  a TPU, with a batch of any size of one or more, for one device (a caller with several runs it on each). The
  arguments are the tower's weights, a dict, then the input; a caller that is not JAX passes the weights in the order of
  their names, as ``stablehlo.json`` lists them;
- ``weights.safetensors``: the weights by our paths. As constants they would make programs of hundreds of megabytes, and
  they outlive the programs: jax promises to read its exports for six months. Measured: 0.10.2 reads those of 0.7.2 and
  of itself, 0.12.0 those of 0.10.2 and of itself, and neither 0.7.2 those of 0.10.2, nor 0.10.2 those of 0.12.0, nor
  0.12.0 those of 0.7.2. The programs compute in float32; the loader widens a smaller dtype of the file;
- ``stablehlo.json``, ``load_stablehlo.py``, and the small files of `program_folder`.

The image program takes scaled and normalised float32 pixels [batch, side, side, 3], as every other format's does, so
that all are compared on the same inputs and a caller may normalise where it likes; the loader takes uint8 as well.
"""

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import tokenizers
from PIL import Image

from plip_jax.convert import load_stablehlo
from plip_jax.convert.export_format import (
    ConsumerFeatures,
    ConsumerUnusable,
    ExportError,
    ExportFormat,
    ParityInputs,
    round_params,
)
from plip_jax.convert.hf import read_preprocessing
from plip_jax.convert.hf_config import read_json, write_json
from plip_jax.convert.load import LoadedModel
from plip_jax.convert.names import LOSS_PARAMS, Params, flatten, nest
from plip_jax.convert.program_folder import stored_params, write_small_files
from plip_jax.convert.safetensors_file import read_safetensors_file, write_safetensors_file
from plip_jax.data.image import Preprocessing, preprocess_image
from plip_jax.model import clip

VISION_FILE = "vision_model.stablehlo"
TEXT_FILE = "text_model.stablehlo"
WEIGHTS_FILE = "weights.safetensors"
FORMAT_VERSION = 1
"""Of ``stablehlo.json``."""
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(folder: Path, model: LoadedModel, dtype: str) -> None:
    """Write both programs, the weights, and what a consumer needs beside them.

    Args:
        folder: exists; see `plip_jax.export` for how it becomes the target.
        model: to write.
        dtype: of the stored weights, ``float32`` or ``float16``.

    Raises:
        ExportError: flatbuffers is not installed, or a weight is too large for the dtype.
        HFConfigError: the configuration beside the programs cannot say how the model pools.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ExportError(
            "writing StableHLO needs the package flatbuffers, with which jax.export writes: pip install flatbuffers"
        )
    params, network, config = stored_params(model, dtype), clip.build(model.config), model.config
    write_small_files(folder, model)
    weights = {name: np.asarray(value, dtype, order="C") for name, value in flatten(params).items()}
    write_safetensors_file(folder / WEIGHTS_FILE, weights)
    side, length = config.vision.image_size, config.text.context_length
    image = _export(network.encode_image, params, "vision", ((side, side, 3), "float32"))
    text = _export(network.encode_text, params, "text", ((length,), "int32"))
    (folder / VISION_FILE).write_bytes(image.serialize())
    (folder / TEXT_FILE).write_bytes(text.serialize())
    description = {
        "format_version": FORMAT_VERSION,
        "jax_version": jax.__version__,
        "calling_convention_version": image.calling_convention_version,
        "platforms": list(image.platforms),
        "devices": image.nr_devices,
        "weights_file": WEIGHTS_FILE,
        "weights_hash": model.weights_hash,
        "logit_scale": float(params["logit_scale"]),
        **{name: _rounded_scalar(model.params.get(name), dtype) for name in LOSS_PARAMS},
        "features": "not normalised; logits = exp(logit_scale) * cosine (+ logit_bias, where there is one)",
        "image": {
            "program_file": VISION_FILE,
            **_described(image),
            "side": side,
            "pixels": "RGB; short side to `side` (bicubic), centre crop, / 255, - mean, / std",
            "mean": list(model.preprocessing.mean),
            "std": list(model.preprocessing.std),
        },
        "text": {
            "program_file": TEXT_FILE,
            **_described(text),
            "context_length": length,
            "tokenizer_file": "tokenizer.json",
            "pad_token_id": model.tokenizer.pad_token_id,
            "eot_token_id": config.text.eot_token_id,
        },
    }
    write_json(folder / load_stablehlo.DESCRIPTION_FILE, description)
    shutil.copyfile(load_stablehlo.__file__, folder / "load_stablehlo.py")


def read_stablehlo_weights(folder: Path) -> Params:
    """The parameters (ours, float32) of a written folder; a loss's own stand in its description."""
    tensors = read_safetensors_file(folder / WEIGHTS_FILE)
    description = read_json(folder / load_stablehlo.DESCRIPTION_FILE)
    told = {name: np.float32(description[name]) for name in LOSS_PARAMS if description[name] is not None}
    return {**nest({name: np.array(value, np.float32) for name, value in tensors.items()}), **told}


def read_stablehlo_preprocessing(folder: Path) -> Preprocessing:
    """The image settings of a written folder.

    Raises:
        ExportError: its two files say different ones.
    """
    image = read_json(folder / load_stablehlo.DESCRIPTION_FILE)["image"]
    described = Preprocessing(image["side"], tuple(image["mean"]), tuple(image["std"]))
    if described != read_preprocessing(folder):
        raise ExportError(f"{folder}: {load_stablehlo.DESCRIPTION_FILE} and preprocessor_config.json differ")
    return described


def stablehlo_inputs(
    folder: Path, texts: Sequence[str], images: Sequence[Image.Image]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and pixels as the loader's own text says to make them: by ``tokenizers``, and from uint8.

    Returns:
        int32 [texts, context_length], and float32 [images, side, side, 3].
    """
    description = read_json(folder / load_stablehlo.DESCRIPTION_FILE)
    text = description["text"]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / text["tokenizer_file"]))
    tokenizer.enable_truncation(text["context_length"])
    tokenizer.enable_padding(length=text["context_length"], pad_id=text["pad_token_id"])
    tokens = np.array([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], np.int32)
    resized = Preprocessing(description["image"]["side"])
    pixels = np.stack([preprocess_image(image, resized) for image in images])
    return tokens, load_stablehlo.normalize(pixels, description)


def stablehlo_features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures | None:
    """Run both programs as the folder's loader does; None where flatbuffers, with which jax reads them, is absent.

    Raises:
        ConsumerUnusable: jax has been told to use no CPU.
        ValueError: jax cannot read the programs.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        return None
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ConsumerUnusable(f"jax finds no CPU; let JAX_PLATFORMS name it too: {error}") from None
    with jax.default_device(cpu):
        programs = load_stablehlo.load(folder)
        image_features = np.asarray(programs.encode_image(np.asarray(inputs.pixel_values, np.float32)))
        text_features = np.asarray(programs.encode_text(inputs.tokens))
    return ConsumerFeatures(f"jax {jax.__version__}", image_features, text_features)


def _export(
    encode: Callable[[Params, Any], jax.Array], params: Params, tower: str, item: tuple[tuple[int, ...], str]
) -> jax.export.Exported:
    """Export one tower for items of a shape and dtype."""

    def run(weights: Params, batch: jax.Array) -> jax.Array:
        return encode(nest(weights), batch)

    weights = {
        f"{tower}/{path}": jax.ShapeDtypeStruct(np.shape(value), "float32")
        for path, value in flatten(params[tower]).items()
    }
    shape, dtype = item
    (batch,) = jax.export.symbolic_shape("batch")
    # Without the source lines of every operation: they hold the paths of this machine, and those of the caller.
    limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue] # made at import
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        return jax.export.export(jax.jit(run), platforms=PLATFORMS)(
            weights, jax.ShapeDtypeStruct((batch, *shape), dtype)
        )
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def _rounded_scalar(value: Any, dtype: str) -> float | None:
    return None if value is None else float(round_params({"value": value}, dtype)["value"])


def _described(exported: jax.export.Exported) -> dict[str, Any]:
    """Shapes and dtypes of the arguments, in their order, and of the result."""
    (weights, batch), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return {
        # jax passes a dict's values in the sorted order of its keys.
        "weights": {name: list(weights[name].shape) for name in sorted(weights)},
        "input": {"dtype": batch.dtype.name, "shape": list(map(_size, batch.shape))},
        "output": {"dtype": exported.out_avals[0].dtype.name, "shape": list(map(_size, exported.out_avals[0].shape))},
    }


def _size(size: Any) -> int | str:
    """A number, or the name of the free size."""
    return size if isinstance(size, int) else str(size)


STABLEHLO = ExportFormat(
    write=write_stablehlo,
    read_back=read_stablehlo_weights,
    read_preprocessing=read_stablehlo_preprocessing,
    keeps_loss_params=True,
    consumer_features=stablehlo_features,
    consumer_inputs=stablehlo_inputs,
    rounded=round_params,
    consumer="flatbuffers",  # jax is there in any case
    tolerance=1e-5,  # the project's bound for normalised features; the same program, so 1e-6 was measured
    dtypes=("float32", "float16"),
    how_to_load='load_stablehlo.load("{folder}")',
)
