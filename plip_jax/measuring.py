"""Models on the tasks of a suite: one after the other, each image embedded once, with the leakage audit.

Owns what needs files and devices for it: opening encoders and training records, decoding for hashes and thumbnails.
What is measured is in `plip_jax.evaluation`.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plip_jax.api import Encoder
from plip_jax.convert.load import LoadedModel
from plip_jax.data.examples import open_examples
from plip_jax.data.image import ImageError, Preprocessing, decode_image, preprocess_image
from plip_jax.data.perceptual_hash import ImageHash, close_pairs, hash_image
from plip_jax.encoders.baseline import OpenOptions
from plip_jax.encoders.table import open_encoder
from plip_jax.encoders.task_model import make_model
from plip_jax.evaluation import suite
from plip_jax.evaluation.audit import Audit, AuditConfig, audit_sets
from plip_jax.evaluation.bootstrap import BootstrapConfig
from plip_jax.evaluation.embedding_cache import EmbeddingCache
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.examples import Examples, RecordLike
from plip_jax.evaluation.report_pictures import Thumbnails
from plip_jax.evaluation.task import TaskResult

# Side of an image in a picture, pixels; a report is looked at on a screen.
_THUMBNAIL = Preprocessing(image_size=192)
_HASHED_AT_A_TIME = 1024


@dataclasses.dataclass
class Measured:
    """What is known of the models so far.

    Attributes:
        described: each model, fit for JSON.
        not_applicable: why, by model and task that it cannot do.
        results: by model and task.
        without_flagged: reports without the examples that were found in the training data, by model and task.
        audit: what was found there; None where it was not looked for.
        failed: what went wrong with which task of which model; the other results stand.
        not_audited: why not.
    """

    described: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    not_applicable: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    results: dict[str, dict[str, TaskResult]] = dataclasses.field(default_factory=dict)
    without_flagged: dict[str, dict[str, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    audit: Audit | None = None
    failed: list[str] = dataclasses.field(default_factory=list)
    not_audited: str = "no training records were given (config.leakage.data)"

    def note_failure(self, model: str, task: str, error: EvaluationError) -> None:
        """Keep a task's error beside the results of the others."""
        self.not_applicable[model][task] = f"failed: {error}"
        self.failed.append(f"task {task}, model {model}: {error}")


def measure(
    checkpoints: Mapping[str, str],
    planned: Sequence[suite.PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    *,
    options: OpenOptions,
    cache: EmbeddingCache,
    bootstrap: BootstrapConfig | None,
    leakage: AuditConfig,
) -> Measured:
    """Measure one model after the other on every task that it can do.

    Args:
        checkpoints: sources by name, as `open_encoder` reads them.
        planned: the tasks.
        data: the examples by source.
        options: how encoders compute.
        cache: of embeddings.
        bootstrap: how intervals are made; None for none.
        leakage: the training records to look for.

    Raises:
        EvaluationError: images that cannot be read (all of them are named), or a model that gives no embeddings.
    """
    measured = Measured()
    training = Examples.from_records(open_examples(leakage.data, leakage.split or None)) if leakage.data else None
    for name, source in checkpoints.items():
        encoder = open_encoder(source, name=name, **vars(options))
        model = make_model(encoder, cache)
        measured.described[name] = encoder.describe()
        measured.not_applicable[name] = {item.name: why for item in planned if (why := suite.lacks(item.task, model))}
        print(f"{name}: {encoder.source} (sha256 {measured.described[name]['weights_hash'][:16]}…)", flush=True)
        try:
            measured.results[name] = suite.run_tasks(
                planned,
                data,
                model,
                bootstrap=bootstrap,
                progress=lambda task: print(f"  {task}", flush=True),
                on_error=functools.partial(measured.note_failure, name),
            )
            if training is not None and measured.audit is None:
                # A table of embeddings has no rows for the training images.
                witness = model if encoder.computed else None
                measured.audit = audit_sets(
                    training, data, planned, witness, leakage, hash_images=_hash_images, close_pairs=close_pairs
                )
            if measured.audit is not None:
                measured.without_flagged[name] = suite.run_without(
                    planned, data, model, measured.results[name], measured.audit.flagged, bootstrap=bootstrap
                )
        except ImageError as error:
            raise EvaluationError(_name_bad_images(data.values(), error)) from error
    return measured


def _hash_images(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes of images and their turns, uint64 [N, 8], and which are blank, bool [N]; decoded by threads."""
    found = []
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(examples), _HASHED_AT_A_TIME):  # the files of so many images are in memory
            found += pool.map(_hash_record, examples.records[start : start + _HASHED_AT_A_TIME])
    return np.stack([one.bits for one in found]), np.asarray([one.is_flat for one in found])


def _hash_record(record: RecordLike) -> ImageHash:
    return hash_image(decode_image(record.image, name=record.id))


def _name_bad_images(data: Iterable[Examples], error: ImageError) -> str:
    """The encoder knows an image by its place; say which records cannot be read, all of them."""
    reasons = []
    for record in itertools.chain.from_iterable(examples.records for examples in data):
        try:
            decode_image(record.image, name=record.id)
        except ImageError as reason:
            reasons.append(str(reason))
    if not reasons:
        return str(error)
    more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"{len(reasons)} images cannot be read: {'; '.join(reasons[:5])}{more}"


def evaluate_models(
    models: Iterable[LoadedModel],
    planned: Sequence[suite.PlannedTask],
    data: Mapping[tuple[str, str], Examples],
    *,
    options: OpenOptions,
    bootstrap: BootstrapConfig | None,
) -> list[tuple[LoadedModel, dict[str, TaskResult]]]:
    """Evaluate models of one network; every image is read and decoded once for all of them.

    Their parameters are on the devices together, and on the host one after the other.

    Args:
        models: the last one's tokenizer and preprocessing are used, which all of them share.
        planned: the tasks.
        data: by source.
        options: how to compute.
        bootstrap: how intervals are made; None for none.

    Returns:
        Each model, without its parameters, and its results by task.

    Raises:
        EvaluationError: images that cannot be read; all of them are named.
    """
    encoder: Encoder | None = None
    placed, kept, logit_scales = [], [], []
    for model in models:
        encoder = encoder or Encoder(
            model.config,
            model.tokenizer,
            model.preprocessing,
            compute_dtype=options.compute_dtype,
            batch_size=options.batch_size,
        )
        placed.append(encoder.put_params(model.params))
        logit_scales.append(float(np.exp(float(model.params["logit_scale"]))))
        kept.append(dataclasses.replace(model, params={}))
    if encoder is None:
        return []
    try:
        results = suite.evaluate_models(
            planned,
            data,
            # As an encoder of the table gives them: the rows are normalised once, by the tasks.
            encode_images=functools.partial(
                encoder.encode_images_of, placed, normalize=False, progress=options.progress
            ),
            encode_texts=[functools.partial(encoder.encode_text, params, normalize=False) for params in placed],
            logit_scales=logit_scales,
            bootstrap=bootstrap,
        )
    except ImageError as error:
        raise EvaluationError(_name_bad_images(data.values(), error)) from error
    return list(zip(kept, results, strict=True))


def thumbnails_of(planned: Sequence[suite.PlannedTask], data: Mapping[tuple[str, str], Examples]) -> Thumbnails:
    """A function that reads the images of a picture: task and ids -> uint8 [H, W, 3] by id."""
    sources = {item.name: item.source for item in planned}

    def read(task: str, wanted: set[str]) -> dict[str, np.ndarray]:
        examples = data[sources[task]]
        found = ((index, name) for index, name in enumerate(examples.ids) if name in wanted)
        return {
            name: preprocess_image(decode_image(examples.records[index].image, name=name), _THUMBNAIL)
            for index, name in found
        }

    return read
