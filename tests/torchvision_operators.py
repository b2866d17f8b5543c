"""Lets torchvision be imported beside a build of torch that its compiled operators do not fit.

The CPU build of torch that the tests pin has no torchvision of its own on every index; the operators of the ordinary
wheel then do not load, and ``import torchvision`` fails on the two that it describes to torch. Nothing here calls them:
open_clip and transformers want torchvision's transforms. Where the operators load, this changes nothing.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

_libraries: list[object] = []  # torch forgets operators whose library is collected


class BeforeTorchvision(MetaPathFinder):
    """Finds nothing, but sees the first import of torchvision coming."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define_missing_operators()
        return None


def _define_missing_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
