# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Search images and label them
#
# <a href="https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/search_and_zero_shot.ipynb" target="_parent"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open In Colab"/></a>
#
# A sentence or an image finds the most similar images of a collection, and any image is labelled with words that you choose.
# Run all cells: by default a small model is trained here on simulated tissue, and nothing is asked for.
#
# **Time.** Two minutes and 40 seconds on two CPU cores, without the installation; most of it is training.
#
# **Tested on** CPU, with the newest jax and with jax 0.7.2 and flax 0.11.2 (the versions of Colab's TPU runtime). A T4 and a
# TPU v5e-1 were not at hand.
#
# Research software, **not for clinical use**. What the small model finds says nothing about pathology.

# %% [markdown]
# ## Your own model and images
#
# The next cell is the only one to change. Where its values are empty, the notebook makes its own model and images. Paths below
# `/content/drive` are on your Drive, which Colab then mounts with your permission.
#
# `MODEL = "vinid/plip"` takes the published weights of PLIP from the hub; a work directory, a Hugging Face or open_clip folder
# and a single file of weights do as well. `IMAGES` is searched with all folders below it, on Drive for example
# `"/content/drive/MyDrive/tiles"`.

# %% tags=["parameters"]
SMOKE = False  # True: everything in its smallest form, to see that it runs
SOURCE = "git+https://github.com/plip-jax/plip_jax"  # where pip finds plip_jax, if it is not installed
EXTRAS = ""  # what of it is needed besides its core
MODEL = ""  # a hub id, a folder or file of weights, a work directory
IMAGES = ""  # folder of the images to search
QUESTIONS = []  # sentences to search with
QUERY_IMAGE = ""  # file of an image to search with
LABELS = []  # what images are labelled with, two or more
UPLOAD = False  # True: ask for a file and take it as the query image (Colab only)

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
# ## The model and the collection
#
# A TPU belongs to one process at a time, and a GPU's memory to the first that takes it. So the commands come first, each in
# a process of its own; this notebook's own Python starts jax below them.
#
# `plip-jax embed` encodes each image once and keeps the features in a folder. Stopped, the same command goes on. `--damaged
# skip` leaves out files that cannot be decoded, and lists them in the folder's `damaged.csv`. The folder belongs to one model
# and one collection; its name holds both.

# %%
from shlex import quote

if "/content/drive/" in f"{MODEL} {IMAGES} {QUERY_IMAGE}":
    from google.colab import drive

    drive.mount("/content/drive")

# %%
TILES = "--train 200 --test 90" if SMOKE else "--train 4000 --test 800"
RECIPE = "configs/demo.py:smoke" if SMOKE else "configs/demo.py"  # both read demo_out/records
FOLDER = IMAGES or "demo_out/records"
SPLIT = "" if IMAGES else "--split test"  # held-out tiles: the model does not learn from them
if not (MODEL and IMAGES) and not Path("demo_out/records").exists():
    print("simulating", TILES)
    # !python -m data_prep.simulate --out demo_out/records {TILES}
if not MODEL:
    MODEL = "demo_out/run"
    # !python -m plip_jax.train --config {RECIPE} --workdir {MODEL} --config.train.log_interval_steps=31

# %%
EMBEDDINGS = "embeddings/" + re.sub(r"\W+", "_", f"{MODEL} of {FOLDER}").strip("_")
WEIGHTS, COLLECTION = quote(MODEL), quote(FOLDER)
# !plip-jax embed --checkpoint {WEIGHTS} --images {COLLECTION} {SPLIT} --out {EMBEDDINGS} --damaged skip

# %% [markdown]
# ## Open both
#
# From here on this notebook's Python computes, on every device that it finds. The features stay on disk and are mapped. They
# are refused for any other model than the one that made them.

# %%
import io
import textwrap
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image

from plip_jax import PLIP, ImageError, open_embeddings, open_examples

set_matplotlib_formats("jpeg", pil_kwargs={"quality": 75})  # a notebook full of pictures stays small
plt.rcParams["figure.dpi"] = 64
model = PLIP.from_pretrained(MODEL)
embeddings = open_embeddings(EMBEDDINGS, model=model)
# Where the images of the collection are: files below a folder, or held-out records with a label each.
records = {} if IMAGES else {one.id: one for one in open_examples("demo_out/records", "test")}


def picture(name):
    """An image of the collection by its id."""
    return Image.open(io.BytesIO(records[name].image) if records else Path(IMAGES, name)).convert("RGB")


def title(name):
    """Its label where there is one, or the end of its name."""
    return records[name].label.replace("_", " ") if records else name[-24:]


print(f"{len(embeddings.ids):,} images, {embeddings.features.shape[1]} numbers each")

# %% [markdown]
# ## A sentence finds images
#
# `retrieve` compares the sentence with every image and returns the nearest ones, exactly. A score is a cosine, from -1 to
# 1. It orders the images of one question; its level differs from question to question and from model to model. There are always
# hits, even for what the collection does not hold.

# %%
QUESTIONS = QUESTIONS or [
    "An H&E image of a blood vessel.",
    "An H&E image of adipose tissue.",
    "Biopsy with normal colonic mucosa.",
    "A photomicrograph of adenocarcinoma.",
]
COLUMNS = 6


def grid(queries, found, names=()):
    """A row for each query, with its images and their scores."""
    figure, axes = plt.subplots(len(queries), COLUMNS + 1, figsize=(11, 1.95 * len(queries)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, (query, hits) in enumerate(zip(queries, found, strict=True)):
        if isinstance(query, str):
            axes[row, 0].text(0, 0.5, textwrap.fill(query, 16), fontsize=11, va="center")
        else:
            axes[row, 0].imshow(query)
            axes[row, 0].set_title(f"query\n{names[row]}", fontsize=10)
        for column, hit in enumerate(hits, start=1):
            axes[row, column].imshow(picture(hit.name))
            axes[row, column].set_title(f"{hit.score:.2f}\n{title(hit.name)}", fontsize=10)
    figure.tight_layout()
    plt.show()


grid(QUESTIONS, model.retrieve(QUESTIONS, embeddings, k=COLUMNS))

# %% [markdown]
# ## An image finds images
#
# A `Path`, a PIL image, an array or the bytes of a file ask with an image; a string is a text, always. By default three tiles
# of the training split ask, which the collection does not hold.

# %%
if UPLOAD:
    from google.colab import files

    QUERY_IMAGE = next(iter(files.upload()))
if QUERY_IMAGE:
    asking = {Path(QUERY_IMAGE).name: Image.open(QUERY_IMAGE).convert("RGB")}
elif records:
    first = {one.label: one.image for one in reversed(open_examples("demo_out/records", "train")[:60])}
    chosen = ("lymphocytes", "normal_mucosa", "smooth_muscle")
    asking = {label.replace("_", " "): Image.open(io.BytesIO(first[label])) for label in chosen}
else:
    asking = {title(embeddings.ids[0]): picture(embeddings.ids[0])}  # of the collection: it finds itself first

grid(list(asking.values()), model.retrieve(list(asking.values()), embeddings, k=COLUMNS), list(asking))

# %% [markdown]
# An image and a sentence together: the sum of their features is a question, too, but it is no "and". It finds what lies between
# the two, and that may be neither. With the small model it is so, in the second row: the image alone finds its tissue, the
# sentence alone found its own above, and their sum finds mostly others. Do not trust such a question before you have measured
# it on your model.
# More weight on one side moves the answers to it.

# %%
name, image = list(asking.items())[-1]
sentence = QUESTIONS[0]
seen, read = model.encode_images(image)[0], model.encode_text(sentence)[0]
print("the image and:", sentence)
grid([image, image], model.retrieve(np.stack([seen, seen + read]), embeddings, k=COLUMNS), [name, "image + text"])

# %% [markdown]
# ## How good is it?
#
# Where the images have labels, count. Each tile asks with itself; the share of right labels among its five nearest others
# stands beside chance. The notebook `evaluate` measures retrieval with intervals.

# %%
if records:
    labels = np.array([records[one].label for one in embeddings.ids])
    found = model.retrieve(np.asarray(embeddings.features), embeddings, k=6)
    others = [[hit.index for hit in hits if hit.index != row][:5] for row, hits in enumerate(found)]
    right = labels[np.array(others)] == labels[:, None]
    chance = np.mean([(labels == one).sum() - 1 for one in labels]) / (len(labels) - 1)
    print(f"same label among the five nearest: {right.mean():.0%}; by chance {chance:.0%}")

# %% [markdown]
# ## Label any image
#
# `zero_shot` compares an image with a text for each label. A template makes the label a sentence; of several, the features are
# averaged, which depends less on one wording. Without one, `zero_shot` takes `"An H&E image of {}."`.

# %%
LABELS = LABELS or [
    "adipose tissue",
    "lymphoid tissue",
    "mucus",
    "smooth muscle",
    "fibrous stroma",
    "necrosis",
    "normal colonic mucosa",
    "adenocarcinoma",
    "a blood vessel",
]
TEMPLATES = ["An H&E image of {}.", "A photomicrograph of {}.", "Biopsy with {}."]


def bars(images, labels, template=TEMPLATES):
    """Each image with the probabilities of its five best labels."""
    figure, axes = plt.subplots(2, len(images), figsize=(3.6 * len(images), 4.6), height_ratios=[3, 2], squeeze=False)
    predictions = model.zero_shot(list(images.values()), labels, template=template)
    for (name, image), prediction, (above, below) in zip(images.items(), predictions, axes.T, strict=True):
        above.imshow(image)
        above.axis("off")
        above.set_title(name, fontsize=10)
        best = list(prediction.probabilities.items())[:5]
        below.barh([label for label, _ in best], [value for _, value in best], color="#0072b2")
        below.invert_yaxis()
        below.set_xlim(0, 1)
        below.set_xlabel("probability among these labels", fontsize=9)
        below.tick_params(labelsize=9)
        below.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    plt.show()


bars(asking, LABELS)

# %% [markdown]
# The same image under each template alone: how far the wording moves the answer.

# %%
for template in [*TEMPLATES, "{}"]:
    prediction = model.zero_shot(image, LABELS, template=template)
    print(f"{template:28} {prediction.label} ({prediction.probability:.0%})")

# %% [markdown]
# ### What this probability is not
#
# It is a softmax over *your* labels: they share 100 % among them, whether one of them is right or none. It is not the
# probability of a diagnosis, it is not calibrated, and it changes when a label is added. Below, the best label is left out,
# and then the image is no tissue at all: the model still answers, and may well be sure of it.

# %%
noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
stripes = Image.fromarray(np.tile(np.uint8([255, 40] * 6).repeat(8)[:, None, None], (1, 96, 3)))
best = model.zero_shot(image, LABELS, template=TEMPLATES).label
others = [one for one in LABELS if one != best]
pictures = {"noise": noise, "stripes": stripes}
if len(others) > 1:
    bars({f"without '{best}'": image, **pictures}, others)
else:  # of two labels none can be left out
    bars(pictures, LABELS)

# %% [markdown]
# ## A damaged file
#
# Nothing is skipped silently. An image that cannot be read is an error that names it, or, where you say so, a row of NaN with a
# warning; a search never finds such a row.

# %%
image.save("whole.png")
Path("damaged.png").write_bytes(Path("whole.png").read_bytes()[:1000])
try:
    model.encode_images(["whole.png", "damaged.png"])
except ImageError as error:
    print("error:", error)

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    features = model.encode_images(["whole.png", "damaged.png"], damaged="nan")
print("warning:", caught[-1].message)
print("rows that are NaN:", np.isnan(features).all(axis=1).tolist())

# %% [markdown]
# ## What is there, and what next
#
# - `embeddings/` holds a folder for each model and collection, with `images.npy`, `image_ids.txt` and `manifest.json`.
#   `open_embeddings(FOLDER, model=model)` opens it in another program, and `plip-jax evaluate --checkpoint NAME=files:FOLDER`
#   takes it as a model.
# - To search your own images with the published weights, set `MODEL = "vinid/plip"` and `IMAGES` above and run all cells again.
# - Next: `fine_tune_tpu` trains a model of a useful size on your records, `evaluate` measures it, `export_and_share` writes it
#   for other libraries.
