"""A model: that it loads, from wherever it is, and that its numbers are finite."""

import os
from collections.abc import Iterator

import numpy as np

from plip_jax.doctoring.child import answer
from plip_jax.doctoring.finding import Asked, Finding, guarded, one_line


def find_checkpoint(asked: Asked) -> Iterator[Finding]:
    """What was loaded, or why it was not."""
    if asked.checkpoint is not None:
        yield from guarded(_model(asked.checkpoint), of=asked.checkpoint, status="problem")


def _model(source: str) -> Iterator[Finding]:
    from plip_jax.convert.load import load_model
    from plip_jax.convert.names import flatten

    try:
        model = load_model(source)
    except (ValueError, OSError) as error:
        yield Finding("problem", one_line(str(error)))
        return
    arrays = flatten(model.params)
    count = sum(np.size(leaf) for leaf in arrays.values())
    step = "" if model.step is None else f", step {model.step}"
    vision, text = model.config.vision, model.config.text
    yield Finding(
        "ok",
        f"{source}: {model.weights_file}{step}, {count / 1e6:,.1f} million parameters (images of "
        f"{vision.image_size} pixels in patches of {vision.patch_size}, {text.context_length} tokens, "
        f"{model.config.embed_dim} dimensions), sha256 {model.weights_hash[:16]}",
    )
    broken = [path for path, leaf in arrays.items() if not np.isfinite(leaf).all()]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        yield Finding(
            "problem",
            f"{len(broken)} of {len(arrays)} arrays are not finite: {', '.join(broken[:3])}{more}",
            "use an earlier checkpoint; the run's metrics.jsonl shows where its loss went wrong",
        )


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # a broken accelerator has a finding of its own; jax is not imported yet
    answer(find_checkpoint)
