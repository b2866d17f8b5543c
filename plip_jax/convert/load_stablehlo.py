"""Load a StableHLO export: needs jax, flatbuffers (with which jax reads it), numpy and safetensors, and nothing else.

Copy this file where you need it, or put the export's folder on the path:

    import load_stablehlo

    model = load_stablehlo.load("folder")
    image_features = model.encode_image(images)  # uint8 [batch, side, side, 3], RGB, resized and cropped
    text_features = model.encode_text(tokens)  # int32 [batch, context_length]
    image_features /= jnp.linalg.norm(image_features, axis=-1, keepdims=True)

Tokens come from ``tokenizer.json`` by the library of that name, padded as ``stablehlo.json`` says:

    tokenizer = tokenizers.Tokenizer.from_file("folder/tokenizer.json")
    tokenizer.enable_truncation(77)  # text.context_length
    tokenizer.enable_padding(length=77, pad_id=49407)  # text.pad_token_id
    tokens = numpy.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], "int32")
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

DESCRIPTION_FILE = "stablehlo.json"


@dataclasses.dataclass(frozen=True)
class Programs:
    """The two towers of an export.

    Attributes:
        description: what ``stablehlo.json`` says.
        logit_scale: raw, in log space: logits = exp(logit_scale) * cosine.
        image_features: (weights, float32 [batch, side, side, 3]) to float32 [batch, embed_dim]; compiled once for each
            size of the batch.
        text_features: (weights, int32 [batch, context_length]) to float32 [batch, embed_dim]; the same.
        image_weights: by name, float32, on the default device.
        text_weights: the same.
    """

    description: dict[str, Any]
    logit_scale: float
    image_features: Callable[[dict[str, jax.Array], Any], jax.Array]
    text_features: Callable[[dict[str, jax.Array], Any], jax.Array]
    image_weights: dict[str, jax.Array]
    text_weights: dict[str, jax.Array]

    def encode_image(self, images: Any) -> jax.Array:
        """Image features, float32 [batch, embed_dim], not normalised.

        Args:
            images: [batch, side, side, 3], RGB, already resized and cropped; uint8, which is scaled and normalised
                here, or float32, which has been.

        Raises:
            TypeError: another dtype.
            ValueError: another shape.
        """
        images = np.asarray(images) if not isinstance(images, jax.Array) else images
        if images.dtype == np.uint8:
            images = normalize(images, self.description)
        elif images.dtype != np.float32:
            raise TypeError(f"images: expected uint8, or normalised float32, got {images.dtype}")
        side = self.description["image"]["side"]
        _check_shape("images", images, (side, side, 3))
        return self.image_features(self.image_weights, images)

    def encode_text(self, tokens: Any) -> jax.Array:
        """Text features, float32 [batch, embed_dim], not normalised.

        Args:
            tokens: integers [batch, context_length], padded with ``text.pad_token_id``.

        Raises:
            TypeError: no integers.
            ValueError: another shape.
        """
        tokens = np.asarray(tokens)
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens: expected integers, got {tokens.dtype}")
        _check_shape("tokens", tokens, (self.description["text"]["context_length"],))
        return self.text_features(self.text_weights, tokens.astype(np.int32))


def normalize(images: Any, description: dict[str, Any]) -> Any:
    """Scale uint8 RGB to float32 and normalise it as ``stablehlo.json`` says."""
    mean, std = (np.float32(description["image"][name]) for name in ("mean", "std"))
    return (images.astype(np.float32) / 255 - mean) / std


def load(folder: str | Path) -> Programs:
    """Load an export; its weights go to the default device as float32.

    Raises:
        ValueError: this jax cannot read what another version wrote; the message says what to do.
    """
    folder = Path(folder)
    description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    weights = {
        name: jnp.asarray(value, jnp.float32) for name, value in load_file(folder / description["weights_file"]).items()
    }

    def tower(entry: dict[str, Any]) -> tuple[Any, dict[str, jax.Array]]:
        program = _read_program(folder / entry["program_file"], description["jax_version"])
        return jax.jit(program.call), {name: weights[name] for name in entry["weights"]}

    image_features, image_weights = tower(description["image"])
    text_features, text_weights = tower(description["text"])
    logit_scale = float(description["logit_scale"])
    return Programs(description, logit_scale, image_features, text_features, image_weights, text_weights)


def _read_program(path: Path, written_by: str) -> jax.export.Exported:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError(f"{path}: jax reads it with the package flatbuffers, which is not installed: install it")
    data = bytearray(path.read_bytes())
    try:
        program = jax.export.deserialize(data)
        program.mlir_module()  # reads the StableHLO inside, which jax would do at the first call
        if program.nr_devices == 1:
            return program
        # jax 0.7.2 reads 0.10.2's format without a complaint, and wrongly: it finds no device in it.
        reason = f"a program for {program.nr_devices} devices"
    except Exception as error:  # jax raises its own types for each step of the reading
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"{path}: expected a program that jax {jax.__version__} can read, got one that jax {written_by} wrote "
        f"({reason}). jax reads what its versions of the last six months wrote, and nothing of newer ones: install the "
        "version that wrote it, or export the model again with this one"
    )


def _check_shape(name: str, array: Any, expected: tuple[int, ...]) -> None:
    if array.shape[1:] != expected or not array.shape[0]:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"{name}: expected [batch, {sizes}] with a batch of one or more, got {array.shape}")
