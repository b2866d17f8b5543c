"""The model card of an export: ``README.md`` with the hub's metadata, from what is known and nothing else.

Owns the card's text and which facts may leave this machine. No path, host or user name of it does; what nobody told is
called unknown. The metadata follow https://huggingface.co/docs/hub/model-cards.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plip_jax.convert.load import LoadedModel
from plip_jax.convert.parity import PARITY_FILE, public_description, public_source
from plip_jax.evaluation.headline import Score, first_prompts, scores_of

CARD_FILE = "README.md"
# The layout of evaluation.json that is read, `plip_jax.evaluation.report_files.FORMAT_VERSION`.
_EVALUATION_VERSION = 2
_UNKNOWN = "unknown"
# The hub's name of a task -> the kinds of tasks of plip_jax.evaluate that are it; others keep their own name.
_HUB_TASKS = {
    "zero-shot-image-classification": ("zero_shot", "zero_shot_multi_label"),
    "image-classification": ("linear_probe", "published_probe", "few_shot", "fine_tune"),
}
# Whose widgets and code snippets the hub shows.
_LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "onnx": "onnx"}
# PLIP's tissues, for the widget of a model that no zero-shot task was evaluated on.
_LABELS = ("adipose tissue", "lymphocytes", "mucus", "necrosis", "smooth muscle")

_PLIP_CITATION = """\
@article{huang2023plip,
  title   = {A visual-language foundation model for pathology image analysis using medical Twitter},
  author  = {Huang, Zhi and Bianchi, Federico and Yuksekgonul, Mert and Montine, Thomas J. and Zou, James},
  journal = {Nature Medicine}, volume = {29}, pages = {2307--2316}, year = {2023},
  doi     = {10.1038/s41591-023-02504-3}
}
"""
_CLIP_CITATION = """\
@inproceedings{radford2021clip,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and others}, booktitle = {ICML}, year = {2021}
}
"""


class ModelCardError(ValueError):
    """Facts that do not belong on this model's card."""


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card says besides what the model itself does; None is unknown, and said to be.

    Attributes:
        evaluation: the content of an ``evaluation.json``, from `read_evaluation`.
        license: of the weights, as the hub names it, such as ``mit``.
        base_model: hub id of the weights that training started from.
        run_config: of the run, by dotted names, as its checkpoints hold it.
        repo_id: hub id that the export is pushed to.
    """

    evaluation: Mapping[str, Any] | None = None
    license: str | None = None
    base_model: str | None = None
    run_config: Mapping[str, Any] | None = None
    repo_id: str | None = None


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Read the ``evaluation.json`` of a report folder.

    Raises:
        ModelCardError: none there, or of another layout.
    """
    path = Path(path).expanduser()
    path = path / "evaluation.json" if path.is_dir() else path
    try:
        evaluation = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCardError(
            f"{path}: expected the evaluation.json of a report of plip_jax.evaluate ({type(error).__name__}: {error})"
        ) from None
    found = evaluation.get("format_version") if isinstance(evaluation, dict) else None
    if found != _EVALUATION_VERSION:
        raise ModelCardError(
            f"{path}: expected format_version {_EVALUATION_VERSION}, got {found!r}; evaluate the checkpoint again"
        )
    for part in ("models", "tasks"):
        entries = evaluation.get(part)
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise ModelCardError(f"{path}: expected an object of objects under {part!r}; it is damaged, evaluate again")
    return evaluation


def check_evaluation(evaluation: Mapping[str, Any] | None, model: LoadedModel) -> str | None:
    """The name under which an evaluation has these very weights; None where there is no evaluation.

    Raises:
        ModelCardError: it is of other weights, of another network or of other image settings, whose numbers would
            stand on this model's card.
    """
    if evaluation is None:
        return None
    hashes = {name: str(described.get("weights_hash")) for name, described in evaluation["models"].items()}
    same = [name for name, found in hashes.items() if found == model.weights_hash]
    ours = _network(model.config.to_dict(), model.preprocessing.to_dict())
    differing: list[str] = []
    for name in same:
        described = evaluation["models"][name]
        theirs = _network(described.get("network"), described.get("preprocessing"))
        differing = [part for part in ours if ours[part] != theirs.get(part)]
        if not differing:
            return name
    if same:
        raise ModelCardError(
            f"the evaluation is of these weights in another network: {', '.join(differing)} differ; evaluate this "
            "checkpoint, with the same --activation, with plip_jax.evaluate"
        )
    listed = ", ".join(f"{name} {found[:16]}…" for name, found in hashes.items())
    raise ModelCardError(
        f"the evaluation is of other weights: expected {model.weights_hash[:16]}…, got {listed}; evaluate this "
        "checkpoint (the same --which and --weights) with plip_jax.evaluate"
    )


def _network(network: Any, preprocessing: Any) -> dict[str, Any]:
    """What makes numbers of one set of weights: the network and the image settings, as JSON gives them back."""
    found = json.loads(json.dumps({**(network or {}), "preprocessing": preprocessing}))
    if isinstance(found.get("text"), dict):
        found["text"].pop("eot_pooling", None)  # the same model has either, by the file it was read from
    return found


def make_model_card(model: LoadedModel, parity: Mapping[str, Any], *, how_to_load: str, facts: CardFacts) -> str:
    """The card: metadata between ``---`` lines, then Markdown. The same facts give the same bytes.

    Args:
        model: what was exported.
        parity: the content of ``parity.json``.
        how_to_load: Python, with ``{folder}``.
        facts: what else is known.

    Raises:
        ModelCardError: the evaluation is of other weights.
    """
    known_as = check_evaluation(facts.evaluation, model)
    scores = [] if facts.evaluation is None or known_as is None else scores_of(facts.evaluation, known_as)
    name = facts.repo_id.split("/")[-1] if facts.repo_id else "pathology-clip" if _is_pathologys(facts) else "clip"
    sections = (
        f"# {name}",
        _summary(model, parity, facts),
        "## Use",
        _how_to_load(how_to_load, parity["format"], facts.repo_id),
        "For research only. It is **not for clinical use**: not a medical device, and validated for no diagnosis.",
        "## Evaluation",
        *_evaluation_section(facts.evaluation, scores, parity),
        "## Origin and licence",
        _origin(model, facts),
        "## Exactness",
        parity_line(parity) + _left_out(parity) + f" The whole record is `{PARITY_FILE}`.",
        "## Citation",
        _citation(facts),
    )
    return (
        f"---\n{_metadata(name, scores, parity, facts, _base_model(model, facts))}\n---\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


def parity_line(parity: Mapping[str, Any]) -> str:
    """What the check of an export found, in a line."""
    equal = "Read back, the weights are equal to the last bit. " if parity["bit_equal_weights"] else ""
    if not parity["checked"]:
        return f"{equal}Features not checked: {parity['why_not']}."
    largest = ", ".join(
        f"{what.replace('_', ' ')} {value:.1e}" for what, value in parity["max_relative_difference"].items()
    )
    read = parity["consumer_inputs"]
    same = (
        f" Its tokenizer gives the same ids, its pixels differ by {read['max_pixel_difference']:.1e}." if read else ""
    )
    return (
        f"{equal}Checked with {parity['consumer']}: largest difference, relative to the largest value, {largest} "
        f"(allowed {parity['tolerance']:.0e}).{same}"
    )


def _is_pathologys(facts: CardFacts) -> bool:
    """Whether a run or an evaluation says that the model is one for pathology, which its weights do not."""
    return facts.run_config is not None or facts.evaluation is not None


def _citation(facts: CardFacts) -> str:
    return f"```bibtex\n{_PLIP_CITATION if _is_pathologys(facts) else ''}{_CLIP_CITATION}```"


def _left_out(parity: Mapping[str, Any]) -> str:
    return "".join(
        f" The format has no place for `{name}` ({value:.4g}), left out, which a pair's sigmoid probability needs."
        for name, value in (parity.get("left_out") or {}).items()
    )


def _metadata(
    name: str, scores: Sequence[Score], parity: Mapping[str, Any], facts: CardFacts, base_model: str | None
) -> str:
    """The YAML of the hub."""
    import huggingface_hub  # not at the top: half a second

    results = [
        huggingface_hub.EvalResult(
            task_type=next((hub for hub, ours in _HUB_TASKS.items() if score.type in ours), score.type),
            task_name=score.type,
            dataset_type=score.dataset,
            dataset_name=score.dataset,
            # The hub merges results of one kind, set and split; two tasks may have all three in common.
            dataset_config=score.task,
            dataset_split=score.split or None,
            metric_type=score.metric,
            metric_name=metric_name,
            metric_value=value,
            metric_args=arguments or None,
        )
        for score in scores
        for metric_name, value, arguments in _published(score)
    ]
    is_pathologys = _is_pathologys(facts)
    labels = (first_prompts(facts.evaluation) if facts.evaluation else ()) or (_LABELS if is_pathologys else ())
    card = huggingface_hub.ModelCardData(
        language="en",
        license=facts.license or _UNKNOWN,
        library_name=_LIBRARIES.get(parity["format"]),
        pipeline_tag="zero-shot-image-classification",
        tags=[*(("pathology", "histology") if is_pathologys else ()), "clip", "plip_jax"],
        base_model=base_model,
        model_name=name,
        eval_results=results or None,
        # Labels alone: no image goes with an export, and none elsewhere is known to be free and of these tissues. The
        # widget takes the reader's own.
        widget=[{"example_title": "Tissue", "candidate_labels": ", ".join(labels)}] if labels else None,
    )
    return card.to_yaml()


def _published(score: Score) -> list[tuple[str, float, dict[str, Any]]]:
    """Name, value and arguments: of all images, and of those that do not look like training's, where some do."""
    words, arguments, leak = score.metric.replace("_", " "), {}, score.leak
    name = words
    if score.interval is not None and not score.is_too_narrow:  # a number in an index stands without its warning
        name += f" ({score.level:.0%} interval {_bounds(score)})"
        arguments = {"interval": list(score.interval), "level": score.level, "unit": score.unit}
    if leak is None or not leak.flagged:
        return [(name, score.value, arguments)]
    arguments["share_flagged"] = leak.share
    results = [(f"{name}, {leak.share:.1%} of the images look like training images", score.value, arguments)]
    if score.without_flagged is not None:
        results.append((f"{words} without the images that look like training images", score.without_flagged, {}))
    return results


def _how_to_load(how_to_load: str, format: str, repo_id: str | None) -> str:
    """A block of code; a format whose library knows no hub is downloaded first."""
    if repo_id is None:
        return f"```python\n{how_to_load.format(folder='FOLDER')}\n```"
    if format == "hf":
        return f"```python\n{how_to_load.format(folder=repo_id)}\n```"
    if format == "open_clip":
        return f"```python\n{how_to_load.replace('local-dir:', 'hf-hub:').format(folder=repo_id)}\n```"
    download = f"```sh\nhf download {repo_id} --local-dir FOLDER\n```"
    return f"{download}\n\n```python\n{how_to_load.format(folder='FOLDER')}\n```"


def _summary(model: LoadedModel, parity: Mapping[str, Any], facts: CardFacts) -> str:
    vision, text = model.config.vision, model.config.text
    moving = ", moving average of a run" if model.weights == "ema" else ""
    return (
        f"A CLIP for {'images of pathology' if _is_pathologys(facts) else 'images'} and English text, exported by "
        f"plip_jax {parity['plip_jax']} in the format `{parity['format']}`, "
        f"tensors in {parity['dtype']}.\n\n"
        f"- Images: {vision.image_size} x {vision.image_size} pixels, patches of {vision.patch_size}, "
        f"{vision.depth} layers of width {vision.width}.\n"
        f"- Text: up to {text.context_length} tokens, {text.depth} layers of width {text.width}.\n"
        f"- Joint space: {model.config.embed_dim} features; activation `{model.config.activation}`.\n"
        f"- Weights: SHA-256 `{model.weights_hash}` of the float32 parameters{moving}."
    )


def _evaluation_section(
    evaluation: Mapping[str, Any] | None, scores: Sequence[Score], parity: Mapping[str, Any]
) -> list[str]:
    if evaluation is None:
        return ["No evaluation of these weights came with the export."]
    if not scores:
        return ["The evaluation that came with the export has no number of these weights."]
    rows = [
        f"| {score.task} | {score.type.replace('_', ' ')} | {score.metric.replace('_', ' ')} | {_number(score.value)} "
        f"| {_bounds(score)}{' (too narrow)' * (score.is_too_narrow and score.interval is not None)} "
        f"| {_optional(score.constant)} | {score.unit or '-'} | {score.examples:,} "
        f"| {'-' if score.leak is None else f'{score.leak.share:.1%}'} | {_optional(score.without_flagged)} |"
        for score in scores
    ]
    head = f"| task | kind | metric | value | {scores[0].level:.0%} interval | constant class | unit | examples "
    head += "| flagged | without flagged |"
    paragraphs = ["\n".join((head, "|---|---|---|---:|---|---:|---|---:|---:|---:|", *rows))]
    if any(score.interval for score in scores):
        paragraphs.append(
            "Intervals are percentile bootstraps over the unit named; the constant class always answers the largest."
        )
    paragraphs += [f"{task}: {why}." for task, why in {score.task: score.warning for score in scores}.items() if why]
    if parity["dtype"] != "float32":
        paragraphs.append(f"The numbers are of the float32 weights, before they were rounded to {parity['dtype']}.")
    return [*paragraphs, *_leakage(evaluation, scores)]


def _leakage(evaluation: Mapping[str, Any], scores: Sequence[Score]) -> list[str]:
    if why := (evaluation.get("leakage") or {}).get("absent"):
        return [f"Training and evaluation images were not compared for copies: {why}."]
    compared = {f"{score.dataset} {score.split}".strip(): score.leak for score in scores if score.leak is not None}
    if not compared:
        return []
    lines = [
        f"- {name}: {leak.flagged:,} of {leak.examples:,} images ({leak.share:.1%}) look like a training image."
        for name, leak in compared.items()
    ]
    told = "The images of each set were compared with training images, for copies and near-copies (flagged):"
    return [told, "\n".join(lines), "A score on such images may measure memory. The last column leaves them out."]


def _bounds(score: Score) -> str:
    return "-" if score.interval is None else f"{_number(score.interval[0])} to {_number(score.interval[1])}"


def _optional(value: float | None) -> str:
    return "-" if value is None else _number(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def _base_model(model: LoadedModel, facts: CardFacts) -> str | None:
    """The hub id that training started from, where it was given, or of what was read from the hub and converted.

    Not ``model.init_from`` of a run: it does not tell a hub id from a folder ``runs/of_a_patient`` of another machine.
    """
    if facts.base_model:
        return facts.base_model
    return model.source if public_source(model.source) == model.source else None


def _origin(model: LoadedModel, facts: CardFacts) -> str:
    described = public_description(model)
    lines = [f"- Read from: {described['weights_file']} of {described['source']}."]
    if model.mixed_from is not None:
        mixed = described["mixed_from"]
        lines.append(
            f"- Between two models (WiSE-FT): {mixed['alpha']:g} of the way from {mixed['start']['source']} "
            f"(`{mixed['start']['weights_hash'][:16]}`) to {mixed['end']['source']} "
            f"(`{mixed['end']['weights_hash'][:16]}`)."
        )
    lines += [
        f"- Starting weights: {_starting_weights(model, facts)}.",
        f"- Training data: {_training_data(facts)}.",
        f"- Licence: {facts.license or _UNKNOWN}."
        + ("" if facts.license else " Nobody named one; that of the starting weights and of the data may bind."),
    ]
    return "\n".join(lines)


def _starting_weights(model: LoadedModel, facts: CardFacts) -> str:
    if origin := _base_model(model, facts):
        return f"`{origin}`, {'as the exporter says' if facts.base_model else 'converted, not trained further'}"
    if facts.run_config is None:
        return _UNKNOWN
    if facts.run_config.get("model.init_from"):
        return "a model that the exporter did not name"
    return "none, trained from scratch"


def _training_data(facts: CardFacts) -> str:
    if facts.run_config is None:
        return _UNKNOWN
    # data.sources.NAME.path: the name is the configuration's, the path is this machine's and stays here.
    prefix, suffix = "data.sources.", ".path"
    names = sorted(
        field.removeprefix(prefix).removesuffix(suffix)
        for field, value in facts.run_config.items()
        if field.startswith(prefix) and field.endswith(suffix) and value
    )
    return f"the sources {', '.join(f'`{name}`' for name in names)} of the run's configuration" if names else _UNKNOWN
