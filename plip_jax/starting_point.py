"""The network a run starts from: loaded to be fine-tuned, drawn from scratch, or what its checkpoint says.

Owns which tokenizer and which pixel statistics go with it; the parameters are placed by the program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from plip_jax.convert.load import load_model
from plip_jax.convert.names import without_loss_params
from plip_jax.data.image import Preprocessing
from plip_jax.data.records import open_records
from plip_jax.data.tokenizer import Tokenizer, load_tokenizer, restore_tokenizer, train_tokenizer
from plip_jax.model import clip
from plip_jax.model.presets import CLIPConfig, get_preset
from plip_jax.run_config import RunConfig
from plip_jax.training.checkpoint import Checkpoints, Description
from plip_jax.training.loop import TrainingError
from plip_jax.training.losses import get_loss


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The network that is trained.

    Attributes:
        config: its sizes.
        params: weights to fine-tune; None to draw them, or where a checkpoint holds them.
        tokenizer: for the captions.
        preprocessing: for evaluation, and the statistics that training pixels are normalised by.
    """

    config: CLIPConfig
    params: dict[str, Any] | None
    tokenizer: Tokenizer
    preprocessing: Preprocessing


def resumed_point(resumed: Description, checkpoints: Checkpoints) -> StartingPoint:
    """What the newest checkpoint says it holds; the starting weights are not read again."""
    return StartingPoint(
        config=CLIPConfig.from_dict(resumed.model_config),
        params=None,
        tokenizer=restore_tokenizer(checkpoints.read_tokenizer_files()),
        preprocessing=Preprocessing.from_dict(resumed.preprocessing),
    )


def starting_point(config: RunConfig) -> StartingPoint:
    """The network of a new run: loaded, or of a preset's sizes with a tokenizer given or learned.

    Raises:
        TrainingError: a tokenizer that does not fit the network.
        ValueError: an unknown preset, or weights or a tokenizer that cannot be read.
    """
    if config.model.init_from:
        loaded = load_model(config.model.init_from)
        tokenizer = loaded.tokenizer
        if config.model.tokenizer:
            tokenizer = load_tokenizer(config.model.tokenizer, context_length=loaded.config.text.context_length)
            if (tokenizer.vocab_size, tokenizer.eot_token_id) != (
                loaded.config.text.vocab_size,
                loaded.config.text.eot_token_id,
            ):
                raise TrainingError(
                    f"model.tokenizer {config.model.tokenizer}: expected the vocabulary of the starting weights "
                    f"({loaded.config.text.vocab_size} ids, end of text {loaded.config.text.eot_token_id}), got "
                    f"{tokenizer.vocab_size} and {tokenizer.eot_token_id}; leave it empty to use theirs"
                )
        return StartingPoint(loaded.config, loaded.params, tokenizer, loaded.preprocessing)
    network = get_preset(config.model.preset)
    context_length = network.text.context_length
    if config.model.tokenizer:
        tokenizer = load_tokenizer(config.model.tokenizer, context_length=context_length)
    else:
        captions = (
            caption
            for source in config.sources
            for record in open_records(source.path, source.split)
            for caption in record.captions
        )
        tokenizer = train_tokenizer(captions, vocab_size=network.text.vocab_size, context_length=context_length)
    text = dataclasses.replace(network.text, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id)
    return StartingPoint(
        config=dataclasses.replace(network, text=text),
        params=None,
        tokenizer=tokenizer,
        preprocessing=Preprocessing(image_size=network.vision.image_size),
    )


def initial_params(config: RunConfig, start: StartingPoint) -> dict[str, Any] | Callable[[], dict[str, Any]]:
    """The weights to fine-tune, or the function that draws them; a loss's own parameters start where it says."""
    if start.params is not None:
        return _with_loss_params(config, start.params)
    return lambda: _with_loss_params(config, clip.build(start.config).init(jax.random.key(config.seed)))


def _with_loss_params(config: RunConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Give the loss its parameters, and no other loss's.

    A contrastive loss goes on with the temperature that the weights were trained with; SigLIP's bias and scale belong
    together, so weights without the bias start from both values that the loss names.
    """
    wanted = get_loss(config.loss).init_params
    if not wanted.keys() <= params.keys():
        return {**params, **{name: jnp.float32(value) for name, value in wanted.items()}}
    return params if "logit_bias" in wanted else without_loss_params(params)
