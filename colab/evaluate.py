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
# # Evaluate a pathology CLIP
#
# <a href="https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/evaluate.ipynb" target="_parent"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open In Colab"/></a>
#
# Checkpoints side by side: zero-shot classification, a linear probe, and retrieval between text and image. Every score has
# an interval, and stands beside the constant class and beside a model that was never trained. Run all cells: by default
# the model is trained here on simulated tissue, and nothing is asked for.
#
# **Time.** Three and a half minutes on two CPU cores, without the installation; most of it is training.
#
# **Tested on** CPU, with the newest jax and with jax 0.7.2 and flax 0.11.2 (the versions of Colab's TPU runtime). A T4 and a
# TPU v5e-1 were not at hand.
#
# Research software, **not for clinical use**. The tissue is simulated and the model tiny: the scores show what the program
# does, and nothing about pathology.

# %% [markdown]
# ## Your own checkpoints and data
#
# The next cell is the only one to change. Where its values are empty, the notebook makes its own model and data. Paths below
# `/content/drive` are on your Drive, which Colab then mounts with your permission.
#
# - **Checkpoints** are work directories of a training run, Hugging Face or open_clip folders, single files of weights, or hub
#   ids, each with a name: `["mine=/content/drive/MyDrive/runs/plip", "plip=vinid/plip", "clip=openai/clip-vit-base-patch32"]`.
# - **Data** are a records folder (`python -m data_prep.build`), a TFDS folder that `python -m data_prep.tfds.build` wrote, or
#   folders `SPLIT/CLASS/IMAGE`, with the splits `train` and `test`.
# - **Tasks** need what the data hold. Records with labels and captions: all three. Class folders and TFDS folders have labels
#   alone: `"tissue,tissue_probe"`. Records with captions alone: `"captions"`.
# - **Prompts** are the name of a shipped set (`kather`, `pannuke`, …) or a JSON file with exactly these four keys, and a class
#   for every label of the data: `{"name": "gut", "source": "ours", "classes": {"TUM": ["adenocarcinoma"], "NORM": ["normal
#   mucosa"]}, "templates": ["An H&E image of {}."]}`.

# %% tags=["parameters"]
SMOKE = False  # True: everything in its smallest form, to see that it runs
SOURCE = "git+https://github.com/plip-jax/plip_jax"  # where pip finds plip_jax, if it is not installed
EXTRAS = ""  # what of it is needed besides its core: "data" to build a set from its archive (KATHER, below)
CHECKPOINTS = []  # "NAME=SOURCE" each
DATA = ""  # folder of labelled images
PROMPTS = "simulated"  # how the classes are called in words
TASKS = "tissue,tissue_probe,captions"  # zero-shot, linear probe, retrieval: those that the data can answer
KATHER = ""  # folder of the unpacked NCT-CRC-HE archives, to evaluate on them too
REPORT = ""  # folder of the report; empty: "evaluation" for the simulated tissue, "my_evaluation" for data of yours

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
# ## The models and the data
#
# A TPU belongs to one process at a time, and a GPU's memory to the first that takes it. So the commands come first, each in
# a process of its own, and this notebook's own Python never starts jax.
#
# The second model is a control: the same network with the same vocabulary after one step at a learning rate of zero. Its
# weights are random. What it scores is what the network and the data give without any learning.

# %%
from shlex import quote

if "/content/drive/" in " ".join([*CHECKPOINTS, DATA, PROMPTS, KATHER, REPORT]):
    from google.colab import drive

    drive.mount("/content/drive")

# %%
TILES = "--train 200 --test 90" if SMOKE else "--train 4000 --test 800"
RECIPE = "configs/demo.py:smoke" if SMOKE else "configs/demo.py"  # both read demo_out/records
REPORT = REPORT or ("my_evaluation" if DATA else "evaluation")
if not (CHECKPOINTS and DATA) and not Path("demo_out/records").exists():
    print("simulating", TILES)
    # !python -m data_prep.simulate --out demo_out/records {TILES}
DATA = DATA or "demo_out/records"
if not CHECKPOINTS:
    CHECKPOINTS = ["trained=demo_out/run", "untrained=demo_out/untrained"]
    # !python -m plip_jax.train --config {RECIPE} --workdir demo_out/run --config.train.log_interval_steps=31
    # !python -m plip_jax.train --config {RECIPE} --workdir demo_out/untrained --config.train.steps=1 --config.train.eval_interval_steps=0 --config.optim.warmup_steps=0 --config.optim.learning_rate=0.0

# %% [markdown]
# ## Evaluate
#
# One command measures every model on every task and writes the folder `REPORT`: `report.html` (one page that needs nothing
# beside it), `evaluation.json`, a table of all answers and the pictures. A second run embeds nothing again. The prompts are
# locked with the first report: for other prompts choose another `REPORT`. `configs/eval_demo.py` names the tasks; any field of
# it can be changed on the command line.

# %%
MODELS = " ".join(f"--checkpoint {quote(one)}" for one in CHECKPOINTS)
DATASETS = f"--config.tasks.tissue.data={quote(DATA)} --config.tasks.captions.data={quote(DATA)}"
WORDS, OUT = quote(PROMPTS), quote(REPORT)
RESAMPLES = 100 if SMOKE else 2000  # of the bootstrap
# !plip-jax evaluate {MODELS} --config configs/eval_demo.py --out {OUT} --tasks {TASKS} {DATASETS} --config.tasks.tissue.prompts={WORDS} --config.bootstrap.resamples={RESAMPLES} > evaluate.log

# %% [markdown]
# ## Public sets
#
# The program builds the field's sets from the archives that their authors publish, with the published splits and corrected
# ones; `configs/eval_plip.py` holds PLIP's tasks on them. For Kather's set unpack `NCT-CRC-HE-100K.zip` and
# `CRC-VAL-HE-7K.zip` (https://zenodo.org/records/1214456) into one folder, name it in `KATHER`, and set `EXTRAS = "data"`.
# `python -m data_prep.tfds.build --help` lists the other sets. A TFDS folder that was built before is opened as it is: give
# it as `DATA`, or as `--config.sets.NAME.data=FOLDER`.

# %%
if KATHER:
    ARCHIVES, OUT_KATHER = quote(KATHER), quote(f"{REPORT}_kather")
    if not Path("sets/kather").exists():
        print("building sets/kather")
        # !python -m data_prep.tfds.build --set kather --manual-dir {ARCHIVES} --out sets
    # !plip-jax evaluate {MODELS} --config configs/eval_plip.py --out {OUT_KATHER} --tasks kather_zero_shot,kather_probe --config.sets.kather.data=sets/kather
    print(f"wrote {REPORT}_kather/report.html")
else:
    print("skipped: KATHER is empty")

# %% [markdown]
# ## How to read the scores
#
# - **Brackets are 95 % bootstrap intervals.** They say how far a score moves with other test images of the same kind, and
#   nothing about other hospitals, scanners or stains. They are made over the highest unit known (patient, slide, group);
#   where the report says *patch-level: too narrow*, the true interval is wider.
# - **The constant class** always answers the largest class. On unbalanced data its accuracy looks good; balanced accuracy
#   and MCC show it for what it is. Among classes of one size it is the first in the task's order (that of the prompt file,
#   or of the alphabet for the probe), so its name may differ between the tables, and its scores do not.
# - **Zero-shot** depends on the wording. A number belongs to a model and its prompts.
# - **The linear probe** learns from the labels of the training split. It asks another question: whether the classes can be
#   told apart linearly in the features. The features of random weights do part of that already, so the gain over the
#   untrained model counts.
# - **Recall at K** is the share of queries with a right answer among the first K. It falls as the corpus grows, so it is
#   compared on one corpus only. In round brackets: how many times that of a random order.
#
# The report's own text, without its pictures:

# %%
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display
from PIL import Image as Pillow

text = Path(REPORT, "report.md").read_text().partition("\n## Leakage")[0]
text = re.sub(r"!\[.*?\]\(.*?\)\n*", "", text)  # the pictures follow below
display(Markdown(re.sub(r"(?m)^### .*\n+(?=#|\Z)", "", text)))  # and headings that had nothing else

# %%
evaluation = json.loads(Path(REPORT, "evaluation.json").read_text())
names = list(evaluation["models"])
FOLDER = Path(REPORT, names[0] if len(names) > 1 else "")  # the first checkpoint's own pictures


def show(file):
    """A picture of the report, in a size for notebooks."""
    if file.exists():  # a task that was left out has none
        picture = Pillow.open(file).convert("RGB")
        picture.thumbnail((760, 1200))
        buffer = io.BytesIO()
        picture.save(buffer, "jpeg", quality=75)
        display(Image(buffer.getvalue(), format="jpeg"))


show(Path(REPORT, "scores.png"))

# %% [markdown]
# ### Which classes are mistaken for which

# %%
show(FOLDER / "tissue_confusion.png")

# %% [markdown]
# ### What a caption finds
#
# A framed image has the very caption that asks. The others are wrong by that strict rule, though most show the same tissues in
# another layout: look at the images, and not at the recall alone.

# %%
show(FOLDER / "captions_retrieval.png")

# %% [markdown]
# ## The numbers themselves
#
# `evaluation.json` holds every number of the report. Two plots of it: how far zero-shot moves with the wording of the prompts,
# and which classes a probe finds that zero-shot misses.

# %%
COLOURS = ["#0072b2", "#d55e00", "#007a5a", "#a0417a"]  # told apart by the colour-blind
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), dpi=72)
tasks = evaluation["tasks"]
models = tasks.get("tissue", {}).get("models", {})
for (name, report), colour in zip(models.items(), COLOURS, strict=False):
    variants = report["prompt_sensitivity"]["variants"]
    left.plot(
        [one["metrics"]["weighted_f1"] for one in variants],
        [one["name"] for one in variants],
        "o",
        color=colour,
        label=name,
    )
    constant = report["constant_class"]["metrics"]["weighted_f1"]
    left.axvline(constant, color="grey", linestyle=":", label="constant class" if name == names[0] else None)
left.set(xlim=(0, 1), xlabel="weighted F1", title="Zero-shot by prompts")
left.invert_yaxis()
left.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
for task, marker in (("tissue", "o"), ("tissue_probe", "s")):
    for (name, report), colour in zip(tasks.get(task, {}).get("models", {}).items(), COLOURS, strict=False):
        classes = report["per_class"]
        kind = report["type"].replace("_", " ")
        right.plot(
            [one["f1"] for one in classes.values()],
            [one.replace("_", " ") for one in classes],
            marker,
            color=colour,
            label=f"{name}, {kind}",
            markerfacecolor="none" if marker == "s" else colour,
        )
right.set(xlim=(-0.03, 1.03), xlabel="F1 of the class", title="Class by class")
right.invert_yaxis()
right.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
for axis in (left, right):
    axis.grid(axis="x", color="#eaeef2")
    axis.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
plt.show()

# %%
for task, content in tasks.items():
    metric = content["first_metric"]
    for name, report in content["models"].items():
        low, high = report["bootstrap"]["intervals"][metric]
        print(f"{task:14} {name:12} {metric} {report['metrics'][metric]:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# ## What is there, and what next
#
# - `report.html`, in `evaluation/` or in your `REPORT`, is the whole report in one file: open the folder at the left and
#   download it, or call `google.colab.files.download("evaluation/report.html")`. Beside it are `evaluation.json`, a CSV of every answer, and the
#   pictures.
# - A score on images that the model was trained on is worth nothing. `--config.leakage.data=RECORDS` (in
#   `configs/eval_plip.py`) looks for the training images in every set and gives every score without them, too.
# - Next: `search_and_zero_shot` uses a model, `export_and_share` puts the scores into its model card, `fine_tune_tpu` trains one.
#   The guide is `docs/evaluate.md`.
