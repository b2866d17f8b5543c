"""Installed packages: the versions that plip_jax needs, and jax beside its compiled parts.

The floors are read from the package's own metadata, so they are those of pyproject.toml.
"""

import importlib.metadata
import platform
import re
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.version import Version

import plip_jax
from plip_jax.doctoring.child import answer
from plip_jax.doctoring.finding import Asked, Finding, guarded
from plip_jax.doctoring.installed import at_this_version, has_nvidia_driver, version_of

# Named on the page even where nothing is wrong.
_NAMED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "pillow")
# Packages that need a jax: pip may take another one with a new version of theirs, and so leave its plugins behind.
_ON_JAX = ("flax", "optax", "orbax-checkpoint")
# jax's plugin for NVIDIA GPUs. The one for ROCm is released on its own, and jax takes any (jaxlib.plugin_support).
_PLUGIN = re.compile(r"jax-cuda\d*-plugin")


def find_packages(asked: Asked) -> Iterator[Finding]:
    """Versions against the floors, jax against jaxlib and its plugins, Pillow's decoder."""
    del asked
    yield Finding("ok", f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires("plip-jax") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "note", "plip_jax is run from its files and is not installed: its floors are not known", "pip install -e ."
        )
        requirements = []
    jax_fits = all(check_floor(requirement) is None for requirement in requirements if requirement.name == "jax")
    kept = at_this_version("jax") if jax_fits else ""
    lacking = [finding for requirement in requirements if (finding := check_floor(requirement, kept)) is not None]
    yield from lacking
    named = ", ".join(f"{name} {found}" for name in _NAMED if (found := version_of(name)))
    fitting = "" if lacking or not requirements else f"; all {_core(requirements)} packages it needs are there"
    yield Finding("ok", f"plip_jax {plip_jax.__version__}, {named}{fitting}")
    yield from guarded(_jax_parts(), of="jax beside jaxlib and its plugins")
    yield from guarded(_jpeg_decoder(), of="Pillow's JPEG decoder")


def check_floor(requirement: Requirement, kept: str = "") -> Finding | None:
    """What is wrong with one required package; None where it fits, or belongs to an extra or another Python.

    Args:
        requirement: of plip_jax.
        kept: the jax that must stay, for pip; empty where it need not.
    """
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    found = version_of(requirement.name)
    wanted = f"'{_bare(requirement)}'" + (f" '{kept}'" if kept and requirement.name in _ON_JAX else "")
    if found is None:
        return Finding("problem", f"{requirement.name} is not installed", f"pip install {wanted}")
    # A pre-release of the floor's version, as a nightly jax is, counts.
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(
            "problem",
            f"{requirement.name} {found}: plip_jax needs {requirement.specifier}",
            f"pip install --upgrade {wanted}",
        )
    return None


def _bare(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _core(requirements: list[Requirement]) -> int:
    return sum(one.marker is None or one.marker.evaluate({"extra": ""}) for one in requirements)


def _jax_parts() -> Iterator[Finding]:
    """Whether jaxlib and the accelerator's plugins are those of this jax; and whether one is missing."""
    jax, jaxlib = version_of("jax"), version_of("jaxlib")
    if jax is None or jaxlib is None:
        if jax is not None:
            yield Finding("problem", f"jax {jax} has no jaxlib", f"pip install --upgrade 'jax=={jax}'")
        return
    for requirement in map(Requirement, importlib.metadata.requires("jax") or ()):
        if requirement.name == "jaxlib" and requirement.marker is None and jaxlib not in requirement.specifier:
            yield Finding(
                "problem",
                f"jax {jax} and jaxlib {jaxlib} do not belong together (jax needs jaxlib {requirement.specifier})",
                f"pip install --upgrade 'jax=={jax}' 'jaxlib=={jax}'",
            )
    names = {dist.name.lower().replace("_", "-") for dist in importlib.metadata.distributions() if dist.name}
    plugins = {name: version_of(name) for name in sorted(names) if _PLUGIN.fullmatch(name)}
    for name, version in plugins.items():
        if version is not None and Version(version).release != Version(jaxlib).release:
            kind = name.removeprefix("jax-").removesuffix("-plugin")
            yield Finding(
                "problem",
                f"{name} {version} is not of jaxlib {jaxlib}: jax does not use it, and so no GPU",
                f"pip install --upgrade 'jax[{kind}]=={jax}'",
            )
    if has_nvidia_driver() and not plugins:
        yield Finding(
            "warning",
            "an NVIDIA driver is here, and jax has no CUDA plugin: everything runs on the CPU",
            f"pip install 'jax[cuda12]=={jax}' (this version, so that jax stays where it is)",
        )


def _jpeg_decoder() -> Iterator[Finding]:
    from PIL import features

    if not features.check("jpg"):
        yield Finding("problem", "Pillow was built without JPEG", "pip install --force-reinstall pillow (its wheel)")
    elif features.check("libjpeg_turbo"):
        yield Finding("ok", f"Pillow decodes JPEG by libjpeg-turbo {features.version('libjpeg_turbo')}")
    else:
        yield Finding(
            "warning",
            "Pillow decodes JPEG without libjpeg-turbo: slowly, and some pixels differ by a level",
            "pip install --force-reinstall pillow (its wheel)",
        )


if __name__ == "__main__":
    answer(find_packages)
