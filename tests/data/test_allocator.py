"""The allocator's settings, in processes of their own: they hold for a whole process and cannot be taken back."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import io, resource, sys
import numpy as np
from PIL import Image
from plip_jax.data.allocator import keep_freed_memory
from plip_jax.data.augment import augment_plip
from plip_jax.data.image import decode_image

done = keep_freed_memory()
buffer = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(buffer, "JPEG")

def view():
    augment_plip(decode_image(buffer.getvalue(), name="x"), 224, np.random.default_rng(0))

view()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    view()
print(done, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def page_faults(**environment: str) -> tuple[bool, float]:
    """Whether the setting was made, and the page faults of one view."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    program = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, capture_output=True, text=True, check=True
    )
    done, faults = program.stdout.split()
    return done == "True", float(faults)


@pytest.mark.skipif(
    not (hasattr(os, "confstr") and "CS_GNU_LIBC_VERSION" in os.confstr_names), reason="the settings are glibc's"
)
def test_images_reuse_their_memory():
    done, faults = page_faults()
    assert done
    assert faults < 50  # 545 without the setting; a decoded image alone has 300 pages


def test_the_environments_settings_win():
    done, _ = page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert not done
