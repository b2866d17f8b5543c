"""Zero-shot classification from prompt ensembles.

The classifier of a class is the mean of its prompts' normalised embeddings, normalised again (Radford et al. 2021,
section 3.1.4); with one class name and one template, as PLIP publishes, it is that prompt's embedding.
"""

from collections.abc import Sequence

import numpy as np

from plip_jax.evaluation.embeddings import EvaluationError, Similarity, normalize_rows
from plip_jax.evaluation.prompts_file import Prompts
from plip_jax.evaluation.task import EncodeText


def class_embeddings(prompts: Prompts, encode_text: EncodeText) -> np.ndarray:
    """Embed each class of a prompt file.

    Returns:
        float32 [K, D], L2-normalised, in the order of ``prompts.labels``.
    """
    return class_embeddings_of([prompts], encode_text)[0]


def class_embeddings_of(several: Sequence[Prompts], encode_text: EncodeText) -> list[np.ndarray]:
    """`class_embeddings` of several prompt files, float32 [K, D] each; each distinct text is embedded once."""
    texts_of = [[prompts.texts(label) for label in prompts.labels] for prompts in several]
    distinct = list(dict.fromkeys(text for classes in texts_of for texts in classes for text in texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    features = normalize_rows(encode_text(distinct), names=tuple(distinct)).astype(np.float64)
    return [
        normalize_rows(
            np.stack([features[[row_of[text] for text in texts]].mean(axis=0) for texts in classes]),
            names=prompts.labels,
        )
        for prompts, classes in zip(several, texts_of, strict=True)
    ]


def class_scores(image_features: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Cosine similarity of images (float32 [N, D]) and classes ([K, D]), both normalised: float32 [N, K]."""
    return Similarity(classes)(image_features)


def predict(scores: np.ndarray) -> np.ndarray:
    """The best class of each row, int64 [N]; of equal scores the lowest class index."""
    return scores.argmax(axis=1).astype(np.int64)


def label_ids(labels: Sequence[str], prompts: Prompts, *, allow_missing: bool = False) -> np.ndarray:
    """Number the data's labels in the prompt file's class order.

    Args:
        labels: one an example.
        prompts: says which classes there are, and their order.
        allow_missing: accept that some classes have no example; they can still be predicted.

    Returns:
        int64 [N].

    Raises:
        EvaluationError: a label that the prompt file does not know, or (unless ``allow_missing``) a class without
            an example; both sides are named.
    """
    _check_labels(dict.fromkeys(labels), prompts, allow_missing)
    index = {label: position for position, label in enumerate(prompts.labels)}
    return np.array([index[label] for label in labels], np.int64)


def label_table(label_sets: Sequence[Sequence[str]], prompts: Prompts, *, allow_missing: bool = False) -> np.ndarray:
    """Which of the prompt file's classes each example of a multi-label set shows; none of them is an answer, too.

    Args:
        label_sets: one an example.
        prompts: says which classes there are, and their order.
        allow_missing: accept that some classes have no example; they get no score.

    Returns:
        bool [N, K].

    Raises:
        EvaluationError: as `label_ids`, or no example has a label set.
    """
    if not any(label_sets):
        raise EvaluationError(
            "multi_label needs examples with sets of labels (label_set), and none has one; set multi_label=false for "
            "one label an example"
        )
    _check_labels(dict.fromkeys(label for labels in label_sets for label in labels), prompts, allow_missing)
    index = {label: position for position, label in enumerate(prompts.labels)}
    table = np.zeros((len(label_sets), len(prompts.labels)), bool)
    for row, labels in enumerate(label_sets):
        table[row, [index[label] for label in labels]] = True
    return table


def _check_labels(found: dict[str, None], prompts: Prompts, allow_missing: bool) -> None:
    unknown = [label for label in found if label not in prompts.labels]
    missing = [label for label in prompts.labels if label not in found]
    sides = f"classes of {prompts.name}: {', '.join(prompts.labels)}; labels of the data: {_listed(found)}"
    if unknown:
        raise EvaluationError(
            f"{len(unknown)} labels of the data are not classes of the prompts: {_listed(unknown)} ({sides}); "
            "name the class folders or records as the prompt file does, or write a prompt file for them"
        )
    if missing and not allow_missing:
        raise EvaluationError(
            f"{len(missing)} classes of the prompts have no example in the data: {_listed(missing)} ({sides}); "
            "if that is meant, set missing_classes=allow"
        )


def _listed(labels: Sequence[str] | dict[str, None], limit: int = 12) -> str:
    shown = [repr(label) if not label.strip() else label for label in list(labels)[:limit]]
    return ", ".join(shown) + (f" and {len(labels) - limit} more" if len(labels) > limit else "") if shown else "none"
