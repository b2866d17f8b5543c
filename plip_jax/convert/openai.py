"""OpenAI's format of CLIP: the file that OpenAI's and open_clip's loaders read.

Owns the layout of an exported folder (``model.pt`` and the tokenizer) and what such a file can say. It has no
configuration: OpenAI's ``build_model`` reads every size from a shape, and takes the rest for granted: heads of 64
features, QuickGELU, 1e-5 in the norms, end-of-text as the largest id. The tensors' names are in `names`, column
``openai``; reading such files, OpenAI's own archives too, is in `weights_file`.

Source: ``clip/model.py`` of github.com/openai/CLIP, and open_clip's ``openai.py`` and ``model.py`` after it.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.export_format import ConsumerFeatures, ExportError, ExportFormat, ParityInputs
from plip_jax.convert.load import LoadedModel
from plip_jax.convert.names import TABLE, beyond_range, flatten, from_params, warn_of_loss_params, without_loss_params
from plip_jax.convert.open_clip import import_open_clip
from plip_jax.convert.torch_file import OPENAI_SIZES
from plip_jax.convert.torch_writer import write_torch_file
from plip_jax.convert.weights_file import read_weights_file
from plip_jax.data.image import CLIP_MEAN, CLIP_STD

Params = dict[str, Any]

WEIGHTS_FILE = "model.pt"

_HEAD_WIDTH = 64  # build_model: transformer_heads = transformer_width // 64, vision_heads = vision_width // 64
_NORM_EPS = 1e-5  # torch.nn.LayerNorm's own

# What the loaders' convert_weights holds in float16: convolutions, linear layers, attention and the two projections.
_HALF = re.compile(
    r"visual\.conv1\.weight|visual\.proj|text_projection|.*\.attn\.(in_proj|out_proj\.).*|.*\.mlp\.c_(fc|proj)\..*"
)


def write_openai(folder: str | Path, model: LoadedModel, dtype: str = "float32") -> None:
    """Write ``model.pt``, a state dict that ``clip.load`` and ``open_clip.load_openai_model`` take, and the tokenizer.

    Both loaders round the weights of convolutions, linear layers, attention and projections to float16 whatever the
    file holds (``convert_weights``), also where they compute in float32 afterwards (open_clip 3.3 with
    ``precision="fp32"``); `rounded_by_loader` does the same. Their tokenizers have OpenAI's vocabulary built in; a
    model with another one needs the tokenizer beside the file.

    Args:
        folder: made if missing; files of the same names are replaced.
        model: SigLIP's ``logit_bias`` is left out with a warning.
        dtype: of all tensors, ``float32`` or ``float16``; the loaders hold norms and embeddings in float32 again.

    Raises:
        ExportError: the format cannot express this model; everything in the way is listed.
    """
    if dtype not in OPENAI.dtypes:
        raise ExportError(f"expected tensors of {' or '.join(OPENAI.dtypes)}, got {dtype!r}")
    folder = Path(folder)
    params = without_loss_params(model.params)
    faults = _inexpressible(model) + _beyond_half(params)
    if faults:
        raise ExportError("OpenAI's format cannot express this model:\n  " + "\n  ".join(faults))
    warn_of_loss_params(model.params, "OpenAI's CLIP")
    config = model.config
    tensors = {name: tensor.astype(dtype) for name, tensor in from_params(params, config, "openai").items()}
    sizes = (config.vision.image_size, config.text.context_length, config.text.vocab_size)
    tensors |= {name: np.asarray(size, np.int64) for name, size in zip(OPENAI_SIZES, sizes, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    model.tokenizer.save(folder)
    write_torch_file(folder / WEIGHTS_FILE, tensors)


def rounded_by_loader(params: Params, dtype: str) -> Params:
    """The parameters with which the loaders compute, also in float32: most of the network rounded to float16.

    Args:
        params: ours, float32.
        dtype: of the file; the parameters that the loaders do not round are rounded to it.
    """
    half = {row.path for row in TABLE if _HALF.fullmatch(row.openai.name)}

    def rounded(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {name: rounded(leaf, f"{path}/{name}" if path else name) for name, leaf in value.items()}
        return np.asarray(value, np.float32).astype(np.float16 if path in half else dtype).astype(np.float32)

    return rounded(params, "")


def _inexpressible(model: LoadedModel) -> list[str]:
    """Everything about a model that a file of OpenAI's cannot say, or says otherwise."""
    config, tokenizer, preprocessing = model.config, model.tokenizer, model.preprocessing
    last = tokenizer.vocab_size - 1  # the table may have more rows: no caption has their ids
    demands: list[tuple[str, Any, Any]] = [
        ("activation", config.activation, "quick_gelu"),
        ("norm_eps", config.norm_eps, _NORM_EPS),
        ("text.eot_token_id (the largest id, where argmax pools)", config.text.eot_token_id, last),
        ("the tokenizer's end-of-text id", tokenizer.eot_token_id, last),
        ("the tokenizer's context_length", tokenizer.context_length, config.text.context_length),
        ("preprocessing.image_size", preprocessing.image_size, config.vision.image_size),
        ("preprocessing.mean", preprocessing.mean, CLIP_MEAN),
        ("preprocessing.std", preprocessing.std, CLIP_STD),
    ]
    for name, tower in (("vision", config.vision), ("text", config.text)):
        demands.append((f"{name}.num_heads (of {_HEAD_WIDTH} features)", tower.num_heads, tower.width / _HEAD_WIDTH))
        demands.append((f"{name}.mlp_dim", tower.mlp_dim, 4 * tower.width))
    return [f"{name}: expected {expected}, got {got}" for name, got, expected in demands if got != expected]


def _beyond_half(params: Params) -> list[str]:
    values = flatten(params)
    with np.errstate(over="ignore"):  # what overflows is what is looked for
        rounded = flatten(rounded_by_loader(params, "float16"))
    return [
        f"{path}: values up to {np.abs(values[path]).max():.4g}, beyond float16's 65504, to which the loaders round"
        for path in beyond_range(values, rounded)
    ]


def _consumer_features(folder: Path, inputs: ParityInputs) -> ConsumerFeatures | None:
    """What open_clip computes in float32 from ``model.pt``."""
    if (libraries := import_open_clip()) is None:
        return None
    open_clip, torch = libraries
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # open_clip tries torch.jit first, which new versions of torch deprecate
        model = open_clip.load_openai_model(str(folder / WEIGHTS_FILE), precision="fp32", device="cpu")
        images = model.encode_image(torch.from_numpy(np.ascontiguousarray(inputs.pixel_values.transpose(0, 3, 1, 2))))
        texts = model.encode_text(torch.from_numpy(np.asarray(inputs.tokens, np.int64)))
    library = f"open_clip_torch {open_clip.__version__}, torch {torch.__version__}"
    return ConsumerFeatures(library, images.numpy(), texts.numpy())


OPENAI = ExportFormat(
    write=write_openai,
    read_back=lambda folder: read_weights_file(folder / WEIGHTS_FILE).params,
    consumer_features=_consumer_features,
    rounded=rounded_by_loader,
    consumer="open_clip_torch",
    tolerance=1e-5,
    dtypes=("float32", "float16"),
    # Not clip.load alone: it computes in float16 on a GPU.
    how_to_load=(
        'open_clip.load_openai_model("{folder}/model.pt", precision="fp32", device="cpu")'
        "  # or clip.load; both round most weights to float16"
    ),
)
