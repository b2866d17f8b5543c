"""Optional parts: which are there, which cannot be imported, and what each is for."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from plip_jax.doctoring.child import answer, last_words
from plip_jax.doctoring.finding import Asked, Finding
from plip_jax.doctoring.installed import version_of


@dataclasses.dataclass(frozen=True)
class Part:
    """A part that plip_jax works without.

    Attributes:
        package: its name for pip.
        statement: what must run for it to be of use.
        used_for: what needs it.
        extra: of plip-jax, which installs it; empty where it is installed by its own name.
        beside: a package without which this one is of no use, and is passed over.
    """

    package: str
    statement: str
    used_for: str
    extra: str = ""
    beside: str = ""


PARTS = (
    Part("torch", "import torch", "the SigLIP baseline, and checking exports in PyTorch", "torch"),
    Part("torchvision", "import torchvision", "open_clip and transformers, which import it", beside="torch"),
    Part(
        "transformers",
        "from transformers import CLIPModel",
        "checking a Hugging Face export in PyTorch",
        beside="torch",
    ),
    Part("open_clip_torch", "import open_clip", "checking an open_clip export", beside="torch"),
    Part("onnx", "import onnx", "writing ONNX files", "onnx"),
    Part("onnxruntime", "import onnxruntime", "checking ONNX files", "onnx"),
    Part("flatbuffers", "import flatbuffers", "writing and loading StableHLO programs", "stablehlo"),
    Part("h5py", "import h5py", "reading and writing HDF5 features", "data"),
    Part("faiss-cpu", "import faiss", "finding near-duplicates among millions of images", "faiss"),
    Part("apache-beam", "import apache_beam", "building datasets (data_prep)", "data"),
    Part("tensorboardX", "import tensorboardX", "writing metrics for TensorBoard", "tensorboard"),
    Part("wandb", "import wandb", "writing metrics to Weights & Biases", "wandb"),
)
# What a failed import says -> what to do.
_ADVICE = (
    (
        r"torchvision::\w+ does not exist",
        "torchvision is not built for this torch: install both together, with one command and from one index, as "
        "PyTorch's page Get Started says for this machine",
    ),
    (r"numpy.*(ABI|dtype size|compiled using NumPy 1)", "it was compiled for another numpy: upgrade it with pip"),
    (r"lib\w+\.so[.\d]*: cannot open shared object", "a system library is missing: install the package that has it"),
    (r"no answer in|not tried", "try again with a longer --timeout"),
    (r"No module named", "a package that it needs is missing: install it with pip"),
)


# Of the probe's time: what one import may take, and when the last has ended, so that all is told before the end.
_OF_ONE = 1 / 3
_OF_ALL = 0.8


def find_optional(asked: Asked) -> Iterator[Finding]:
    """Which optional parts are there and can be imported; each is tried in a process of its own."""
    parts = [part for part in PARTS if not part.beside or version_of(part.beside) is not None]
    there = [part for part in parts if _is_there(part)]
    ends = time.monotonic() + _OF_ALL * asked.timeout_seconds
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        tries = [pool.submit(errors_of_import, part, _OF_ONE * asked.timeout_seconds, ends) for part in there]
        for part in parts:
            if part not in there:
                install = f"-e '.[{part.extra}]' in the folder of plip_jax's files," if part.extra else part.package
                yield Finding("note", f"{part.package} is not installed", f"pip install {install} for {part.used_for}")
        # Each as soon as it is known, in the order of the table: what is told stays told.
        for part, tried in zip(there, tries, strict=True):
            yield _judged(part, tried.result())


def _judged(part: Part, errors: str) -> Finding:
    if not errors:
        return Finding("ok", f"{_shown(part)}, for {part.used_for}")
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, errors)), "")
    what = f"{_shown(part)} is there, and `{part.statement}` fails: {last_words(errors)} ({part.used_for})"
    return Finding("warning", what, advice)


def errors_of_import(part: Part, seconds: float, ends: float) -> str:
    """What its import says where it fails, in a process of its own; empty where it does not.

    Args:
        part: to import.
        seconds: that it may take.
        ends: when it must have ended, of `time.monotonic`.
    """
    seconds = min(seconds, ends - time.monotonic())
    if seconds <= 0:
        return "not tried, as the others took all the time"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", part.statement], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:.3g} s"
    except OSError as error:
        return f"its process cannot be started: {error}"
    if ended.returncode == 0:
        return ""
    return ended.stderr.decode("utf-8", errors="replace").strip() or f"it ended with status {ended.returncode}"


def _shown(part: Part) -> str:
    return f"{part.package} {version_of(part.package) or ''}".rstrip()


def _is_there(part: Part) -> bool:
    """Whether it is installed, or is a checkout on the path that no package knows of."""
    if version_of(part.package) is not None:
        return True
    return importlib.util.find_spec(part.statement.split()[1].split(".")[0]) is not None


if __name__ == "__main__":
    answer(find_optional)
