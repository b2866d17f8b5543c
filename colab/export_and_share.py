# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export a model and share it
#
# <a href="https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/export_and_share.ipynb" target="_parent"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open In Colab"/></a>
#
# A checkpoint becomes what other tools load: a Hugging Face folder, an open_clip folder, ONNX graphs, StableHLO programs. Every export is read back, loaded by its consumer's own library where that is installed, and compared: `parity.json` has the differences. The model card says what was measured and what nobody knows. Then the consumers load the folders, here without this package where they can, and must answer as `PLIP` does.
#
# - **Model**: by default a small CLIP, trained here from scratch on simulated tissue; its answers say nothing about pathology. One cell points at your own run, at a folder or file of weights, or at a hub id such as `vinid/plip`.
# - **Time**: four minutes on two CPU cores; training is the longest part of it. The installation comes on top.
# - **Tested on**: two CPU cores, with the newest jax and with jax 0.7.2 and flax 0.11.2, which Colab's TPU runtime holds. Colab itself, a T4 and a TPU v5e-1 were not at hand.
#
# Nothing is uploaded unless you say where to (`HUB`); no token is needed for the rest. For research only, not for clinical use.

# %% tags=["parameters"]
SMOKE = False  # True: everything in its smallest form, to see that it runs
SOURCE = "git+https://github.com/plip-jax/plip_jax"  # where pip finds plip_jax, if it is not installed
EXTRAS = "onnx,stablehlo"  # what of it is needed besides its core
CHECKPOINT = "simulated/run"  # this one is trained below; or a work directory, a folder or file of weights, a hub id
REPORT = "simulated/report"  # of `plip-jax evaluate` of these weights, for the card; this is made below; "" has none
LICENSE = ""  # of the weights, as the hub names it, such as "mit"; "" says unknown, which is the truth until you know
BASE_MODEL = ""  # hub id of the weights that training started from, where there were some
HUB = ""  # OWNER/NAME to push to, as a private repository; "" pushes nothing

# %% tags=["setup"]
import importlib
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from IPython import get_ipython


def system(command: str) -> None:
    """Run a command as `!` does, but one that fails stops the notebook. Its text is taken as it is: no `{name}`, no `$name`."""
    type(get_ipython()).system(get_ipython(), "{command}")  # expanded once, to the argument itself
    if get_ipython().user_ns["_exit_code"]:
        raise RuntimeError(f"this command failed: {command}")


get_ipython().system = lambda text: system(get_ipython().var_expand(text, depth=1))  # what `!` calls
# `python` and `plip-jax` are those of this kernel, whatever else the machine has.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def held() -> dict[str, str]:
    """What no installation may move: the runtime's jax, and what this kernel may have loaded already."""
    names = {one.name or "" for one in distributions()}
    pattern = r"jax(lib|[-_].*)?|libtpu.*|numpy|pillow|protobuf"
    return {name: version(name) for name in sorted(names) if re.fullmatch(pattern, name.lower())}


before = held()
Path("keep.txt").write_text("".join(f"{name}=={number}\n" for name, number in before.items()))
package = f"plip_jax[{EXTRAS}]"
try:
    version("plip_jax")  # is there: what EXTRAS needs is added to it
except PackageNotFoundError:
    package += f" @ {SOURCE}"
options = "--quiet --disable-pip-version-check --root-user-action ignore --constraint keep.txt"
system(f'"{sys.executable}" -m pip install {options} "{package}"')
importlib.invalidate_caches()
moved = before.items() - held().items()
assert not moved, f"the installation moved what this runtime came with: {dict(moved)}"
print(f"plip_jax {version('plip_jax')}; as before:", ", ".join(f"{name} {number}" for name, number in before.items()))

# %% [markdown]
# ## Your own model
#
# Run this cell with your values in place of the comments, or leave it as it is. A ViT-B/32 takes about 600 MB a format. Who may share weights? That is for the licences of the weights they started from and of the data to say: PLIP's repository names none.

# %%
# CHECKPOINT = "vinid/plip"  # from the hub
# CHECKPOINT = "/content/drive/MyDrive/runs/plip"  # or from your Drive; Colab asks for your permission
# REPORT = "/content/drive/MyDrive/report"
# BASE_MODEL = "openai/clip-vit-base-patch32"

# %%
if any(place.startswith("/content/drive/") for place in (CHECKPOINT, REPORT)):
    from google.colab import drive

    drive.mount("/content/drive")

# %% [markdown]
# ## A model to export
#
# A TPU belongs to one process, and the memory of a GPU to the first that takes it. So all commands come before the first cell that uses jax in this notebook's own process.

# %%
import shutil

if CHECKPOINT == "simulated/run":
    shutil.rmtree("simulated", ignore_errors=True)  # begun anew, if this cell is run again
    TILES = "--train 64 --test 48" if SMOKE else ""
    RECIPE = "configs/demo.py:smoke --config.train.steps=4" if SMOKE else "configs/demo.py"
    RESAMPLES = 100 if SMOKE else 2000
    # !python -m data_prep.simulate --out simulated/records {TILES}
    # !python -m plip_jax.train --config {RECIPE} --workdir simulated/run --config.data.sources.tissue.path=simulated/records --config.eval.tasks.tissue.data=simulated/records --config.eval.tasks.captions.data=simulated/records
    # !python -m plip_jax.evaluate --checkpoint simulated/run --config configs/eval_demo.py --out simulated/report --config.tasks.tissue.data=simulated/records --config.tasks.captions.data=simulated/records --config.bootstrap.resamples={RESAMPLES} > simulated/evaluation.log
elif REPORT == "simulated/report":
    REPORT = ""  # that one is of the model that is trained here

# %% [markdown]
# ## Export
#
# `--evaluation` puts the measured scores into the model card; `--license` and `--base-model` say what only you know. The same command takes `--dtype float16`, and `--format openai` for networks that OpenAI's format can express (heads of 64 features: ViT-B/32 and its kin, not the demo's).

# %%
import shlex

FACTS = [("--evaluation", REPORT), ("--license", LICENSE), ("--base-model", BASE_MODEL)]
CARD = " ".join(f"{flag} {shlex.quote(value)}" for flag, value in FACTS if value)
MODEL = f"--checkpoint {shlex.quote(CHECKPOINT)}"
# !python -m plip_jax.export {MODEL} --format hf --out hf --overwrite {CARD}

# %%
# !python -m plip_jax.export {MODEL} --format open_clip --out open_clip --overwrite {CARD}

# %%
# !python -m plip_jax.export {MODEL} --format onnx --out onnx --overwrite {CARD}

# %%
# !python -m plip_jax.export {MODEL} --format stablehlo --out stablehlo --overwrite {CARD}

# %% [markdown]
# ## How exact they are
#
# Largest differences of the features on fixed inputs (noise, edges, black; empty, cut and odd texts), relative to the largest value. An export whose features differ by more than is allowed does not appear at all. Where the consumer is not installed, the table says so: run the export again where it is.

# %%
import html
import json

from IPython.display import HTML, Markdown, display


def show_table(head: tuple, rows: list) -> None:
    def line(cells: tuple, tag: str) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag} style='text-align: left'>{html.escape(str(cell))}</{tag}>" for cell in cells)
            + "</tr>"
        )

    display(HTML(f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"))


FORMATS = ("hf", "open_clip", "onnx", "stablehlo")
rows = []
for name in FORMATS:
    parity = json.loads(Path(name, "parity.json").read_text())
    found = parity["max_relative_difference"] or {}
    differences = [f"{found[of]:.1e}" if of in found else "" for of in ("image_features", "text_features")]
    weights = {True: "equal to the last bit", False: "differ", None: "in the graph, not read back"}[
        parity["bit_equal_weights"]
    ]
    rows.append(
        (
            name,
            parity["dtype"],
            weights,
            parity["consumer"] or f"not checked: {parity['why_not']}",
            *differences,
            f"{parity['tolerance']:.0e}",
        )
    )
show_table(("format", "dtype", "weights", "features checked by", "images", "texts", "allowed"), rows)

# %% [markdown]
# ## The consumers load them
#
# The same tiles and sentences for each. Images and tokens are made by Pillow and the `tokenizers` library from what the folder says, as somebody would who has nothing but the folder.

# %%
import numpy as np
import tokenizers

from data_prep.simulate import CLASSES, simulate

described = json.loads(Path("stablehlo/stablehlo.json").read_text())
side, context = described["image"]["side"], described["text"]["context_length"]
tiles = [simulate(7, number, split="test", size=192) for number in range(9)]
images = np.stack([np.asarray(tile.image.resize((side, side), resample=3)) for tile in tiles])  # 3: bicubic
texts = [f"An H&E image of {words[0]}." for words in CLASSES.values()]

tokenizer = tokenizers.Tokenizer.from_file("stablehlo/tokenizer.json")
tokenizer.enable_truncation(context)
tokenizer.enable_padding(length=context, pad_id=described["text"]["pad_token_id"])
tokens = np.array([one.ids for one in tokenizer.encode_batch(texts)], "int32")
mean, std = (np.float32(described["image"][name]) for name in ("mean", "std"))
pixels = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
CONSUMERS = Path("consumers")  # the programs that load the folders, what they get and what they answer
CONSUMERS.mkdir(exist_ok=True)
np.savez(CONSUMERS / "inputs.npz", images=images, pixels=pixels, tokens=tokens)
print(images.shape, tokens.shape)


def cosines(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    def unit(features: np.ndarray) -> np.ndarray:
        return np.asarray(features) / np.linalg.norm(features, axis=-1, keepdims=True)

    return unit(image_features) @ unit(text_features).T


answers = {}

# %% [markdown]
# **StableHLO**, in a process that cannot import `plip_jax`: jax, flatbuffers, safetensors and the folder are enough.

# %%
Path(CONSUMERS, "load_alone.py").write_text("""
import sys

sys.modules["plip_jax"] = None  # importing it fails from here on
sys.path.insert(0, "stablehlo")
import load_stablehlo
import numpy as np

inputs, model = np.load("consumers/inputs.npz"), load_stablehlo.load("stablehlo")
features = {"image": model.encode_image(inputs["images"]), "text": model.encode_text(inputs["tokens"])}
print("on", next(iter(features["image"].devices())).platform, {name: one.shape for name, one in features.items()})
np.savez("consumers/alone.npz", **features)
""")
# !python consumers/load_alone.py
alone = np.load(CONSUMERS / "alone.npz")
answers["StableHLO, without plip_jax"] = cosines(alone["image"], alone["text"])

# %% [markdown]
# **ONNX** in onnxruntime, on the CPU:

# %%
import onnxruntime

vision, text = (
    onnxruntime.InferenceSession(f"onnx/{name}_model.onnx", providers=["CPUExecutionProvider"])
    for name in ("vision", "text")
)
answers[f"onnxruntime {onnxruntime.__version__}"] = cosines(
    vision.run(None, {"pixel_values": pixels})[0], text.run(None, {"input_ids": tokens.astype(np.int64)})[0]
)

# %% [markdown]
# **Hugging Face** `CLIPModel` and **open_clip**, in a process of their own, where PyTorch is installed (Colab's runtimes have it, and not open_clip):

# %%
Path(CONSUMERS, "load_in_torch.py").write_text("""
import importlib
import json

import numpy as np

inputs, found, absent = np.load("consumers/inputs.npz"), {}, {}
tokens, pixels = inputs["tokens"].astype("int64"), inputs["pixels"]


def with_transformers(transformers, torch):
    model = transformers.CLIPModel.from_pretrained("hf").eval()
    with torch.no_grad():
        answer = model(input_ids=torch.from_numpy(tokens), pixel_values=torch.from_numpy(pixels))
    return f"transformers {transformers.__version__}", answer.image_embeds, answer.text_embeds


def with_open_clip(open_clip, torch):
    model = open_clip.create_model("local-dir:open_clip").eval()
    with torch.no_grad():
        return f"open_clip {open_clip.__version__}", model.encode_image(torch.from_numpy(pixels)), model.encode_text(torch.from_numpy(tokens))


for consumer, load in (("transformers", with_transformers), ("open_clip", with_open_clip)):
    try:
        modules = importlib.import_module(consumer), importlib.import_module("torch")
        getattr(modules[0], "CLIPModel", None)  # transformers imports a model when it is asked for it
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
        error = error.__cause__ or error
        absent[consumer] = str(error).strip().splitlines()[-1]
        continue
    name, image_features, text_features = load(*modules)  # a folder that it cannot load is an error
    found[name] = [image_features.tolist(), text_features.tolist()]
json.dump({"found": found, "absent": absent}, open("consumers/torch.json", "w"))
""")
# !python consumers/load_in_torch.py
said = json.loads(Path(CONSUMERS, "torch.json").read_text())
absent = said["absent"]
answers |= {name: cosines(*map(np.array, features)) for name, features in said["found"].items()}

# %% [markdown]
# **`PLIP`** on the original checkpoint: from here on this process uses the accelerator. A table of the largest difference of any cosine; more than 1e-4 fails.

# %%
from plip_jax import PLIP

model = PLIP.from_pretrained(CHECKPOINT)
ours = cosines(model.encode_images(list(images)), model.encode_text(texts))
rows = [
    (name, f"{np.abs(theirs - ours).max():.1e}", f"{(theirs.argmax(1) == ours.argmax(1)).mean():.0%}")
    for name, theirs in answers.items()
]
rows += [(name, "not loaded here", why) for name, why in absent.items()]
show_table(("consumer", "largest difference of a cosine", "same label"), rows)
# All compute in float32; what is left are other kernels and other orders of the same sums.
assert all(np.abs(theirs - ours).max() < 1e-4 for theirs in answers.values()), "a consumer answers otherwise"

# %%
import matplotlib.pyplot as plt

names = [words[0] for words in CLASSES.values()]
figure = plt.figure(figsize=(11, 5), dpi=70, layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35))
left.suptitle("tiles, with the label that PLIP gives", fontsize=9)
for axes, tile, scores in zip(left.subplots(3, 3).flat, images, ours, strict=True):
    axes.imshow(tile)
    axes.set_title(names[scores.argmax()], fontsize=7.5)
    axes.axis("off")
axes = right.subplots()
shown = axes.imshow(ours, cmap="viridis")
axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
axes.set_yticks(range(len(tiles)), [tile.label.replace("_", " ") for tile in tiles], fontsize=8)
axes.set_ylabel("what was drawn")
axes.set_title("cosine of tile and sentence", fontsize=9)
right.colorbar(shown)
plt.show()

# %% [markdown]
# ## The model card
#
# `hf/README.md`, as the hub will show it. No path, host or user name of this machine is in it; what nobody told is called unknown.

# %%
_, metadata, card = Path("hf/README.md").read_text().split("---\n", 2)
display(Markdown(card))

# %% [markdown]
# Above it stands what the hub reads: licence, base model, and the scores with their intervals.

# %%
print(*metadata.splitlines()[:30], f"… and {len(metadata.splitlines()) - 30} lines more", sep="\n")

# %% [markdown]
# ## To the hub
#
# Only if `HUB` names a repository. The token is taken from Colab's secrets (`HF_TOKEN`) or from `hf auth login`, and is written nowhere. The repository is private; an upload over another model's files is refused.

# %%
if HUB:
    try:
        from google.colab import userdata

        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    except ImportError:
        import huggingface_hub

        os.environ["HF_TOKEN"] = huggingface_hub.get_token() or ""
    # !JAX_PLATFORMS=cpu python -m plip_jax.export {MODEL} --format hf --out hf --overwrite {CARD} --push-to-hub {HUB} --private
else:
    print("nothing is pushed: HUB is empty")

# %% [markdown]
# ## What is where
#
# | folder | load it with |
# |---|---|
# | `hf/` | `transformers.CLIPModel.from_pretrained("hf")`, `plip_jax.PLIP.from_pretrained("hf")` |
# | `open_clip/` | `open_clip.create_model_from_pretrained("local-dir:open_clip")` |
# | `onnx/` | `onnxruntime.InferenceSession("onnx/vision_model.onnx")`, the same of `text_model.onnx` |
# | `stablehlo/` | `load_stablehlo.load("stablehlo")`, with the folder's own `load_stablehlo.py` |
#
# On Colab they go with the runtime: copy them to your Drive, or push them. Next: [the formats in full](https://github.com/plip-jax/plip_jax/blob/main/docs/export.md), [the model in other tools](https://github.com/plip-jax/plip_jax/blob/main/docs/adapters.md), and the notebook [search_and_zero_shot](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/search_and_zero_shot.ipynb), which asks a model questions.
