"""The house rules that imports can break, read from the source with ``ast``."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = {"train", "evaluate", "embed", "export", "doctor"}
GROUND = {"model", "data", "training", "sharding", "evaluation"}
# Upper and middle floors: what each may import besides itself. evaluation.suite and the ground follow their own rule.
ALLOWED = {
    "model": set(),
    "data": set(),
    "training": {"sharding"},
    "sharding": set(),
    "distributed": set(),
    "evaluation": set(),
    "convert": {
        "model",
        "data.tokenizer",
        "data.image",
        "data.image_settings",
        "data.openai_vocabulary",
        "training.checkpoint",
        "training.interpolation",
    },
    "batching": {"data", "sharding"},
    "answers": {"data"},
    "api": {"answers", "batching", "convert", "data", "image_search", "model", "sharding"},
    "encoders": {"api", "batching", "convert", "data", "evaluation", "model", "sharding"},
    "model_card": {"convert", "evaluation", "model"},
    "embedding_store": {"convert", "data"},
    "embedding_folder": {"embedding_store"},
    "embedding_writer": {"embedding_folder", "embedding_store"},
    "image_sources": {"data", "embedding_store"},
    "image_search": {"answers", "batching"},
    "original_plip": {"api"},
    "sklearn_transformer": {"api"},
    "doctoring": {"convert", "data", "image_sources", "model", "sharding", "training"},
    "measuring": {"api", "convert", "data", "encoders", "evaluation"},
    "config_file": set(),
    "run_config": {"config_file", "data", "evaluation", "sharding", "training"},
    "starting_point": {"convert", "data", "model", "run_config", "training"},
}
# Single files that may import more than their room: fine-tuning is the one evaluation that trains.
ALSO_ALLOWED = {"evaluation/fine_tune.py": {"model", "training"}}
# A library and the only place that may import it.
HOMES = {
    "flax": ("plip_jax/model/",),
    "grain": ("plip_jax/data/",),
    "array_record": ("plip_jax/data/",),
    "orbax": ("plip_jax/training/checkpoint.py",),
    "optax": ("plip_jax/training/optim.py", "plip_jax/training/state.py", "plip_jax/training/step.py"),
    "apache_beam": ("data_prep/",),
    "dask": ("data_prep/curation/engine.py",),
    "emoji": ("data_prep/text/",),
    "faiss": ("data_prep/images/neighbours.py",),
    "ftfy": ("data_prep/text/",),
    "py3langid": ("data_prep/text/language.py",),
    "urllib3": ("data_prep/fetching/fetch.py",),
    "onnx": ("plip_jax/convert/onnx_format.py",),
    "onnxruntime": ("plip_jax/convert/onnx_format.py",),
    "open_clip": ("plip_jax/convert/open_clip.py", "plip_jax/convert/openai.py"),
    # Where a baseline is run in PyTorch, and where an export is loaded with its consumer's own library.
    "torch": (
        "plip_jax/convert/siglip.py",
        "plip_jax/convert/hf_format.py",
        "plip_jax/convert/open_clip.py",
        "plip_jax/convert/openai.py",
    ),
    "tensorflow": (),
}


def modules() -> list[Path]:
    return sorted(p for folder in ("plip_jax", "data_prep", "configs") for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, at any depth; ``from a import b`` gives a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name lives"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "plip_jax").with_suffix("").parts
    return parts[0]


def test_there_is_something_to_check():
    assert len(modules()) > 30


def test_nothing_imports_a_program():
    programs = {f"plip_jax.{name}" for name in PROGRAMS}
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if any(name == program or name.startswith(program + ".") for program in programs)
    ]
    assert broken == []


def test_imports_run_downward():
    broken = []
    for path in (ROOT / "plip_jax").rglob("*.py"):
        here = room(path)
        if here in PROGRAMS | {"__init__", "__main__"}:
            continue
        assert here in ALLOWED, f"{path}: a new room needs its line in ALLOWED and in the README's map"
        allowed = ALLOWED[here] | ALSO_ALLOWED.get(path.relative_to(ROOT / "plip_jax").as_posix(), set())
        for name in imports(path):
            if not name.startswith("plip_jax."):
                continue
            target = name.removeprefix("plip_jax.")
            inside = target == here or target.startswith(here + ".")
            if not inside and not any(target == to or target.startswith(to + ".") for to in allowed):
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
    assert broken == []


def test_each_library_has_one_home():
    broken = []
    for path in modules():
        where = path.relative_to(ROOT).as_posix()
        for name in imports(path):
            library = name.split(".")[0]
            if library in HOMES and not where.startswith(HOMES[library] or ("nowhere",)):
                broken.append(f"{where} imports {name}")
    assert broken == []


def test_configs_import_ml_collections_only():
    for path in (ROOT / "configs").rglob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= {"ml_collections"}, path


def test_data_prep_imports_only_the_contract():
    allowed = (
        "plip_jax.data.records",
        "plip_jax.data.image",
        "plip_jax.data.perceptual_hash",
        "plip_jax.PLIP",
        "plip_jax.data.split_manifest",
        "plip_jax.data.examples",
        "plip_jax.config_file",
        "plip_jax.__version__",
    )
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "data_prep").rglob("*.py")
        for name in imports(path)
        if name.startswith("plip_jax") and not name.startswith(allowed)
    ]
    assert broken == []


def test_data_workers_import_no_jax():
    for path in (ROOT / "plip_jax" / "data").glob("*.py"):
        if path.name != "warp.py":  # it runs in the training step
            found = {name for name in imports(path) if name.split(".")[0] == "jax" or "plip_jax.data.warp" in name}
            assert not found, path
