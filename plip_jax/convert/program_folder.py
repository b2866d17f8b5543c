"""What the folders of programs (ONNX, StableHLO) share: the small files beside them, and how weights are rounded.

A program holds a tower and no more: a consumer still needs the sizes, the image settings and the tokenizer. They are
written as Hugging Face's files, which transformers.js, Optimum, transformers and tokenizers read.
"""

from pathlib import Path
from typing import Any

import numpy as np

from plip_jax.convert.export_format import ExportError, round_params
from plip_jax.convert.hf_config import config_to_hf, preprocessing_to_hf, write_json
from plip_jax.convert.load import LoadedModel
from plip_jax.convert.names import beyond_range, flatten, without_loss_params


def write_small_files(folder: Path, model: LoadedModel) -> None:
    """Write ``config.json``, ``preprocessor_config.json`` and the tokenizer's files.

    Raises:
        HFConfigError: HF's configuration would say another pooling than the program's.
    """
    tokenizer = model.tokenizer
    values = config_to_hf(
        model.config,
        last_token_id=tokenizer.vocab_size - 1,
        bos_token_id=tokenizer.bot_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # No tensor carries the trained temperature here, so the configuration does.
    values["logit_scale_init_value"] = float(model.params["logit_scale"])
    write_json(folder / "config.json", values)
    write_json(folder / "preprocessor_config.json", preprocessing_to_hf(model.preprocessing))
    tokenizer.save(folder)


def stored_params(model: LoadedModel, dtype: str) -> dict[str, Any]:
    """CLIP's parameters rounded to the dtype of the file, as float32; without a loss's own, see `without_loss_params`.

    Raises:
        ExportError: a value is too large for the dtype.
    """
    params = without_loss_params(model.params)
    with np.errstate(over="ignore"):  # reported below, by name
        rounded = round_params(params, dtype)
    if lost := beyond_range(flatten(params), flatten(rounded)):
        raise ExportError(
            f"expected weights that {dtype} can hold, got larger ones in {', '.join(lost[:8])}; export float32"
        )
    return rounded
