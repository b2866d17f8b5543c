"""A folder written here loads in transformers 4.40, 4.57 and 5.x and gives the same ids, pixels and features there.

Each version lives in an environment of its own (``requirements-*.txt`` beside this file); ``PLIP_JAX_COMPAT_PYTHONS``
lists their interpreters, separated by colons. The transformers of the test environment itself is always checked.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import CAPTIONS, NO_TORCH, make_model

from plip_jax.api import PLIP
from plip_jax.data.image import normalize_pixels, preprocess_image
from plip_jax.export import export

pytest.importorskip("torch", reason=NO_TORCH)

SCRIPT = Path(__file__).with_name("check_hf_folder.py")
PYTHONS = [path for path in os.environ.get("PLIP_JAX_COMPAT_PYTHONS", "").split(":") if path]
TEXTS = [*CAPTIONS, "", "mucus " * 40, "Déjà vu: 腺癌 \N{MICROSCOPE} it's 20x"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An exported folder, and the file of what transformers must make of it."""
    scratch = tmp_path_factory.mktemp("compat")
    loaded = make_model()
    folder = export(loaded, scratch / "hf")
    model = PLIP.from_pretrained(folder, batch_size=8)
    # Neither square nor of the model's size, so that resizing and cropping show.
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (57, 83, 3), np.uint8))
    png = io.BytesIO()
    image.save(png, "PNG")
    pixels = normalize_pixels(preprocess_image(image, loaded.preprocessing), loaded.preprocessing)
    np.savez(
        scratch / "expected.npz",
        texts=np.array(TEXTS),
        image_png=np.frombuffer(png.getvalue(), np.uint8),
        input_ids=loaded.tokenizer(TEXTS),
        pixel_values=pixels.transpose(2, 0, 1)[None],
        image_features=model.encode_images(image),
        text_features=model.encode_text(TEXTS),
    )
    return folder, scratch / "expected.npz"


def _check(python: str, written: tuple[Path, Path], *, script: Path = SCRIPT) -> dict[str, object]:
    run = subprocess.run(
        [python, script, *written],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, f"{python} exited with {run.returncode}:\n{run.stdout}\n{run.stderr[-4000:]}"
    report = json.loads(run.stdout.splitlines()[-1])
    print(report)
    return report


def test_this_environments_transformers_reads_the_folder(written: tuple[Path, Path], tmp_path: Path) -> None:
    # As conftest.py does for the tests: this environment's torchvision may not fit its torch.
    with_operators = tmp_path / "with_operators.py"
    with_operators.write_text(
        f"import runpy, sys\nsys.path.insert(0, {str(SCRIPT.parents[1])!r})\n"
        "from torchvision_operators import BeforeTorchvision\n"
        f"sys.meta_path.insert(0, BeforeTorchvision())\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    assert _check(sys.executable, written, script=with_operators)["good"]


def test_the_files_are_those_that_the_other_versions_were_checked_with(written: tuple[Path, Path]) -> None:
    """Where the other versions are not installed: the bytes of a folder that 4.40, 4.57 and 5.x have read."""
    known = {
        "config.json": "b323fee04792c1241212dcd9b42fe530c41f32dbf2fb085af60d4985fafaf937",
        "preprocessor_config.json": "8ce7f6c118b3ad4f3a65d24303c116ea0a008156c12ceba0c8cbcedfbdded049",
        "special_tokens_map.json": "841c138373f4f9dd8a6b07a2e4d19b1e62b5364d7e09c41762bab5f7b851eb7f",
        "tokenizer_config.json": "0b8c846a5f4f064332b47aadccac7939d8a54f1a3c0d622080c3de04db37e84c",
    }
    found = {name: hashlib.sha256((written[0] / name).read_bytes()).hexdigest() for name in known}
    assert found == known, "check the new files with PLIP_JAX_COMPAT_PYTHONS before writing their hashes here"


@pytest.mark.skipif(not PYTHONS, reason="PLIP_JAX_COMPAT_PYTHONS lists no interpreters (.ci/run builds and lists them)")
@pytest.mark.parametrize("python", PYTHONS or ["none"])
def test_other_versions_of_transformers_read_the_folder(python: str, written: tuple[Path, Path]) -> None:
    assert _check(python, written)["good"]
