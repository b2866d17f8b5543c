# ---
# jupyter:
#   accelerator: TPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a pathology CLIP
#
# <a href="https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/fine_tune_tpu.ipynb" target="_parent"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open In Colab"/></a>
#
# Records of images and captions → training on every device of the machine → a disconnect, and the run goes on → curves →
# checkpoints on Drive or in a bucket → the model used.
#
# - **Data.** Simulated tissue and a small CLIP from scratch by default: no account, no secret, no download but the package.
#   The cell *Your own data* turns to real images and to OpenAI's or PLIP's weights.
# - **Time.** Five and a half minutes on two CPU cores that other programs shared, without the installation.
# - **Tested on** CPU, with the newest jax and with jax 0.7.2 and flax 0.11.2, which Colab's TPU runtime holds. Colab itself, a T4 and
#   a TPU v5e-1 were not at hand.
# - Research software, **not for clinical use**. What is simulated here shows that the machinery learns, and nothing about pathology.

# %% tags=["parameters"]
SMOKE = False  # True: everything in its smallest form, to see that it runs
SOURCE = "git+https://github.com/plip-jax/plip_jax"  # where pip finds plip_jax, if it is not installed
EXTRAS = ""  # what of it is needed besides its core
STORE = ""  # where checkpoints outlive the runtime: "drive", or "gs://BUCKET/FOLDER"; empty: on its disk alone
DRIVE = "/content/drive"  # where Drive is mounted
DISCONNECT = True  # kill the run on simulated tissue in the middle, to see that it goes on

# %% [markdown]
# ## Your own data
#
# Set `MINE = True` and change the lines below it. Files may lie on your Drive: write their whole path, `/content/drive/MyDrive/…`, and Colab
# asks for your permission. Without `GROUP`, images of one patient may fall on both sides of the split, and the held-out figures are then
# too good. Look at the licence of the weights that you start from.

# %% tags=["parameters"]
MINE = False  # True: train on your own data, which the lines below describe
TABLE = "captions.csv"  # a table with the columns `image` (a file) and `caption`; empty: MY_RECORDS is there already
IMAGES = "images"  # the folder that holds these files
GROUP = ""  # the column that names patient or slide, whose images stay in one split; empty: each image is split alone
MY_RECORDS = "my_records"  # the records folder: made from the table, if it is not there
MY_RUN = "my_run"  # the work directory, and the name of the run's folder on Drive or in the bucket: one for each run
INIT = "openai/clip-vit-base-patch32"  # weights to start from: as PLIP did, or "vinid/plip", or a folder
MY_LABELS = ["tumor", "normal tissue"]  # what to tell apart at the end

# %%
if MINE:
    RECORDS, RUN, LABELS = MY_RECORDS, MY_RUN, MY_LABELS
    CONFIG = "configs/plip_vit_b32.py"  # PLIP's recipe: batch 128, 12 epochs
    OVERRIDES = f"--config.data.sources.openpath.path={RECORDS} --config.eval.tasks.heldout.data={RECORDS} "
    OVERRIDES += f"--config.model.init_from={INIT}"
else:
    RECORDS, RUN, CONFIG = "records", "run", "configs/demo.py"
    OVERRIDES = f"--config.data.sources.tissue.path={RECORDS} "
    OVERRIDES += f"--config.eval.tasks.tissue.data={RECORDS} --config.eval.tasks.captions.data={RECORDS}"
    LABELS = ["adipose tissue", "lymphocytes", "mucus", "smooth muscle", "fibrous stroma", "necrosis"]
    LABELS += ["normal colonic mucosa", "adenocarcinoma", "a blood vessel"]  # the tissues that are simulated
if SMOKE:
    CONFIG += ":smoke"
if STORE == "drive" or any(MINE and place.startswith(f"{DRIVE}/") for place in (TABLE, IMAGES, MY_RECORDS, INIT)):
    from google.colab import drive

    drive.mount(DRIVE)

# %% [markdown]
# ## Setup
#
# Installs `plip_jax` beside what the runtime came with. jax stays as it is, and the cell fails if it did not; the runtime need not be
# restarted.

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
# Which device is there, and does it compute what it should? Notes and warnings may stand; a problem says what to do.
#
# A TPU belongs to one process, and a GPU's memory to the first that takes it. So in this notebook every command that computes comes
# first, and the notebook's own process touches jax in the last cells only.

# %%
if not SMOKE:
    system('plip-jax doctor || echo "Look at the problems above first, if something below fails."')

# %% [markdown]
# ## Records
#
# The training data: one folder, which Grain and TFDS open too. What is there already is used as it is.

# %%
import shlex

if Path(RECORDS).exists():
    MAKE = f"echo {RECORDS} is there"
elif not MINE:
    MAKE = f"python -m data_prep.simulate --out {RECORDS} --train {96 if SMOKE else 4000} --test {64 if SMOKE else 800}"
elif TABLE:
    MAKE = f"python -m data_prep.build --source csv --out {RECORDS} --holdout test=0.1 --table {shlex.quote(TABLE)} "
    MAKE += f"--images {shlex.quote(IMAGES)}" + (f" --group-column {shlex.quote(GROUP)}" if GROUP else "")
else:
    raise FileNotFoundError(f"no records at {RECORDS}: correct MY_RECORDS, or give a TABLE to make them from")
# !{MAKE}
# !python -m data_prep.verify {RECORDS}

# %% [markdown]
# ## The sharded step, on 8 simulated devices
#
# Training uses all devices there are: each takes its part of the batch, and the loss is that of the whole batch. What happens on
# eight chips can be seen on any machine, because XLA can show one CPU as eight devices. Four steps of a tiny network on a few
# simulated tiles, on one device and on eight:

# %%
FEW = "echo few_records is there" if Path("few_records").exists() else ""
FEW = FEW or "python -m data_prep.simulate --out few_records --train 64 --test 16"
# !{FEW}
TINY = "--config configs/demo.py:smoke --config.train.steps=4 --config.checkpoint.best_metric="
TINY += " --config.data.sources.tissue.path=few_records"
TINY += " --config.eval.tasks.tissue.data= --config.eval.tasks.captions.data="
# !JAX_PLATFORMS=cpu python -m plip_jax.train {TINY} --workdir one_device
EIGHT = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# !JAX_PLATFORMS=cpu XLA_FLAGS="{EIGHT}" python -m plip_jax.train {TINY} --workdir eight_devices

# %%
import json


def read_metrics(workdir):
    file = Path(workdir, "metrics.jsonl")
    whole_lines = file.read_text().split("\n")[:-1] if file.exists() else []  # the last may be half written
    lines = [json.loads(line) for line in whole_lines]
    return [line for line in lines if "loss" in line]  # the others are evaluations


print("step   1 device   8 devices")
for one, eight in zip(read_metrics("one_device"), read_metrics("eight_devices"), strict=True):
    print(f"{one['step']:4}  {one['loss']:.7f}  {eight['loss']:.7f}")
    assert abs(one["loss"] - eight["loss"]) < 1e-4 * one["loss"]  # the same sums, in another order

# %% [markdown]
# ## Where checkpoints go
#
# A runtime's disk ends with it. With `STORE = "drive"` checkpoints are written to your Drive, with `"gs://BUCKET/FOLDER"` to a bucket of yours;
# Colab asks for your permission. One checkpoint of ViT-B/32 with its optimiser is 1.8 GB, and three are kept. Drive moves the older ones
# to its bin, where they count until you empty it: with few checkpoints (`--config.train.eval_interval_steps`) that is less.

# %%
PLACE = f"{DRIVE}/MyDrive/plip_jax" if STORE == "drive" else STORE.rstrip("/")
FOLDER = f"{PLACE}/{RUN}" if PLACE else ""
CHECKPOINTS = f"{FOLDER}/checkpoints" if FOLDER else ""
if FOLDER.startswith("gs://"):
    from google.colab import auth

    auth.authenticate_user()
    system(f'"{sys.executable}" -m pip install {options} gcsfs')

# %% [markdown]
# ## Fine-tuning
#
# One command. It writes `metrics.jsonl`, `curves.png` and the checkpoints, and **the same command goes on** where the newest
# checkpoint stands.

# %%
TRAIN = f"python -m plip_jax.train --config {CONFIG} --workdir {RUN} {OVERRIDES}"
TRAIN += f" --config.checkpoint.directory={CHECKPOINTS}"
print(TRAIN)

# %% [markdown]
# First a start that does not end well: soon after the first checkpoint the process is killed (signal 9: it can save nothing more), as when a
# runtime disconnects. With `STORE` its folder on the runtime's disk is lost too. Where a checkpoint is there already,
# nothing is killed, nor is a run on your own data.

# %%
import shutil
import subprocess
import time

from etils import epath


def newest_checkpoint():
    folder = epath.Path(CHECKPOINTS or f"{RUN}/checkpoints")
    steps = [one for one in folder.iterdir() if one.name.isdigit()] if folder.exists() else []
    if FOLDER.startswith("gs://"):  # a bucket cannot rename: a step is whole when its mark is written
        steps = [one for one in steps if (one / "commit_success.txt").exists()]
    return max((int(one.name) for one in steps), default=None)


def newest_step():
    return max((line["step"] for line in read_metrics(RUN)), default=0)


def store_metrics():
    if FOLDER and Path(RUN, "metrics.jsonl").exists():
        epath.Path(FOLDER).mkdir(parents=True, exist_ok=True)
        epath.Path(FOLDER, "metrics.jsonl").write_bytes(Path(RUN, "metrics.jsonl").read_bytes())


if DISCONNECT and not MINE and newest_checkpoint() is None:
    with open("killed.log", "w") as log:
        process = subprocess.Popen(shlex.split(TRAIN), stdout=log, stderr=log)
        while process.poll() is None and (newest_checkpoint() is None or newest_step() <= newest_checkpoint()):
            time.sleep(0.1)
        ended = process.poll()
        process.kill()
        process.wait()
    if ended:
        print(*Path("killed.log").read_text().splitlines()[-30:], sep="\n")
        raise RuntimeError(f"the run ended by itself, with status {ended}")
    print(f"killed: checkpoint of step {newest_checkpoint()}, metrics up to step {newest_step()}")
    if STORE:
        store_metrics()  # as below, each minute
        shutil.rmtree(RUN)

# %% [markdown]
# The same command again. In a new runtime it is the same: run the cells from the top. What it needs to go on is in the checkpoint:
# weights, optimiser, step, position in the data, tokenizer and configuration. The records must be the same. With `STORE` the metrics
# are copied to it each minute and come back from there, so that the curves are whole.

# %%
import threading

stored, own = epath.Path(FOLDER, "metrics.jsonl"), Path(RUN, "metrics.jsonl")
if FOLDER and newest_checkpoint() is not None and stored.exists() and not own.exists():
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(stored.read_bytes())
finished = threading.Event()


def store_each_minute():
    while not finished.wait(60):
        store_metrics()


threading.Thread(target=store_each_minute, daemon=True).start()
try:
    system(TRAIN)
finally:
    finished.set()
    store_metrics()

# %%
steps = [line["step"] for line in read_metrics(RUN)]
assert steps == sorted(set(steps))
if steps:
    print(f"{len(steps)} lines, steps {steps[0]} to {steps[-1]}; no step is there twice")

# %% [markdown]
# ## Curves

# %%
from IPython.display import display
from PIL import Image

if Path(RUN, "curves.png").exists():
    with Image.open(Path(RUN, "curves.png")) as curves:
        small = curves.convert("RGB").resize((1080, 504), Image.Resampling.LANCZOS)
    display(small.quantize(64))  # few colours: a small notebook
    if FOLDER:  # beside the checkpoints and the metrics
        epath.Path(FOLDER, "curves.png").write_bytes(Path(RUN, "curves.png").read_bytes())
        print(*sorted(one.name for one in epath.Path(FOLDER).iterdir()))

# %% [markdown]
# ## The model
#
# Held-out images and what the model sees in them. `from_pretrained` takes the work directory; in another runtime, give it the folder or the bucket
# that holds `checkpoints`. From here on this process holds the device.

# %%
import matplotlib.pyplot as plt
import tensorflow_datasets as tfds

from plip_jax import PLIP

model = PLIP.from_pretrained(RUN)
held_out = tfds.builder_from_directory(RECORDS).as_data_source("test")
tiles = [held_out[len(held_out) * part // 4] for part in range(4)]
figure, axes = plt.subplots(1, 4, figsize=(12, 4.2), dpi=50, layout="constrained")
for axis, tile in zip(axes, tiles, strict=True):
    prediction = model.zero_shot(tile["image"], LABELS)
    axis.imshow(tile["image"])
    axis.set_title(tile["label"].decode() or "no label")
    best = list(prediction.probabilities.items())[:3]
    axis.set_xlabel("\n".join(f"{label} {probability:.0%}" for label, probability in best))
    axis.set_xticks([]), axis.set_yticks([])
plt.show()

# %% [markdown]
# ## What next
#
# The model is in the folder `checkpoints` of the work directory, or where `STORE` says: `drive.flush_and_unmount()` before you leave a runtime makes sure that Drive has
# all of it. Other notebooks start from the simulated data again, or take a checkpoint of yours:
#
# - [evaluate](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/evaluate.ipynb): zero-shot, linear probe, retrieval, beside other models.
# - [search_and_zero_shot](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/search_and_zero_shot.ipynb): find similar cases, label images.
# - [export_and_share](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/export_and_share.ipynb): Hugging Face, open_clip, ONNX.
# - [curate_openpath](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/curate_openpath.ipynb): records from raw posts.
#
# The guide is [docs/fine_tune.md](https://github.com/plip-jax/plip_jax/blob/main/docs/fine_tune.md); several hosts, Slurm and buckets are in
# [docs/scale.md](https://github.com/plip-jax/plip_jax/blob/main/docs/scale.md).
