# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From posts to records, as OpenPath was made
#
# <a href="https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/curate_openpath.ipynb" target="_parent"><img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open In Colab"/></a>
#
# PLIP learned from posts of pathologists (Huang et al., *Nature Medicine* 2023). How they were cleaned was not published. This notebook takes dumps of posts to a dataset that training reads: every post that is kept or dropped can be accounted for, identifiers are masked, copies are found and never lie in two splits, and somebody who asks is removed.
#
# - **Data**: two small dumps, made here of simulated tissue: one as the API v2 of X gives it, one as Instaloader writes it. Among the posts are a dozen that must not come through. No post of a person, no scraper, no network beyond the installation. One cell points at your own dumps.
# - **Time**: 40 seconds on two CPU cores; the installation comes on top.
# - **Tested on**: two CPU cores, with the newest jax and with jax 0.7.2 and flax 0.11.2, which Colab's TPU runtime holds. Colab itself, a T4 and a TPU v5e-1 were not at hand. Curation needs no accelerator; only the last step uses one, if it is there.
#
# For research only, not for clinical use. Reference: [the guide](https://github.com/plip-jax/plip_jax/blob/main/docs/curate.md).

# %% tags=["parameters"]
SMOKE = False  # True: everything in its smallest form, to see that it runs
SOURCE = "git+https://github.com/plip-jax/plip_jax"  # where pip finds plip_jax, if it is not installed
EXTRAS = "data"  # what of it is needed besides its core
X_DUMP = "simulated/x"  # a file or a folder of API v2; this one is made below, another is taken as it is
INSTAGRAM_DUMP = "simulated/instagram"  # a folder that Instaloader wrote; the same; "" leaves it out
ANSWERS = {}  # what only people can say, for the datasheet; the fields are named below. Without them no own dump is built
AUTHOR_KEY = "keys/authors.key"  # outside of the work folder and of the dataset; made if it is not there
PRIVACY_WORDS = ()  # more regular expressions to take out of texts, e.g. (r"St\. Elsewhere Hospital",)

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
# ## Your own dumps
#
# Run this cell with your values in place of the comments, or leave it as it is. Bring only what you may lawfully hold. The work folder stays private: it holds what people wrote. On Colab, keep the key of the authors apart from the dataset, on your Drive for instance: who has both can look an author up, and without the key nobody can be removed by name.

# %%
# X_DUMP = "/content/drive/MyDrive/dumps/x"  # on your Drive; Colab asks for your permission
# INSTAGRAM_DUMP = ""
# AUTHOR_KEY = "/content/drive/MyDrive/keys/authors.key"
# PRIVACY_WORDS = (r"St\. Elsewhere Hospital",)
# ANSWERS = {
#     "lawful_basis": "",  # on which personal data is processed, e.g. GDPR Art. 6(1)(e) and 9(2)(j)
#     "source_terms": "",  # under which the raw data was obtained and may be used
#     "source_terms_date": "",  # the day of the version of these terms
#     "ethics_reference": "",  # the number of the approval, or of the waiver
#     "contact": "",  # where people ask, and ask to be removed: an address that is read
# }

# %%
import shlex

SIMULATED, SIMULATED_GRAM = X_DUMP == "simulated/x", INSTAGRAM_DUMP == "simulated/instagram"
WORK = "work/simulated_x" if SIMULATED else "work/x"
WORK_GRAM = "work/simulated_instagram" if SIMULATED_GRAM else "work/instagram"
MADE_UP = {  # true of the simulated dumps alone
    "lawful_basis": "none is needed: the posts are made up, the images are drawn",
    "source_terms": "none: simulated tissue",
    "source_terms_date": "2025-01-01",
    "ethics_reference": "none is needed",
    "contact": "whoever runs this notebook",
}


def datasheet(simulated: bool) -> str:
    """Settings of the datasheet; a build is refused where an answer is empty."""
    answers = MADE_UP if simulated else {name: ANSWERS.get(name, "") for name in MADE_UP}
    return " ".join(f"--config.datasheet.{name}={shlex.quote(answer)}" for name, answer in answers.items())


PRIVACY = f"--config.text.boilerplate={shlex.quote(repr(tuple(PRIVACY_WORDS)))}"
KEY, DUMP, DUMP_GRAM = (shlex.quote(place) for place in (AUTHOR_KEY, X_DUMP, INSTAGRAM_DUMP))

if any(place.startswith("/content/drive/") for place in (X_DUMP, INSTAGRAM_DUMP, AUTHOR_KEY)):
    from google.colab import drive

    drive.mount("/content/drive")

# %% [markdown]
# ## A dump of X
#
# Pages of the API v2: posts, their media and their authors apart. Most posts are cases. The others are `PLANTED`: what must become of each is written beside it, and compared with what became of it further down.

# %%
import datetime
import json
import shutil

from PIL import Image

from data_prep.simulate import simulate

CASES = 30 if SMOKE else 80
FOLDER, HOST = Path("simulated/x"), Path("simulated/images_of_x")
START, DAYS = datetime.datetime(2022, 7, 15), 180  # to 2023-01-10; the test split of OpenPath begins on 2022-11-16
posts, media, PLANTED = [], [], {}


def picture(tile: int, name: str = "", size: int = 256, **save) -> str:
    """Put a simulated tile on the host of images; returns its media key."""
    key = f"3_{len(media) + 1:03d}"
    name = name or f"{key}.jpg"
    if not (HOST / name).exists():
        simulate(0, tile, size=size).image.save(HOST / name, **{"quality": 90, **save})
    media.append({"media_key": key, "type": "photo", "url": f"IMAGES/{name}"})
    return key


def post(text: str, *keys: str, author: int, day: float, planted: str = "", **more) -> None:
    number = str(1_500_000_000_000_000_000 + len(posts))
    usual = {"id": number, "text": text, "author_id": str(author), "conversation_id": number, "lang": "en"}
    usual["created_at"] = (START + datetime.timedelta(day)).isoformat() + ".000Z"
    usual["public_metrics"] = {"like_count": 3}
    usual["attachments"] = {"media_keys": list(keys)}
    usual["entities"] = {"hashtags": [{"tag": word[1:]} for word in text.split() if word.startswith("#")]}
    posts.append(usual | more)
    if planted:
        PLANTED[number] = planted


hidden = Image.Exif()
hidden[0x010E] = "Jane Doe, MRN 12345678"  # the description: what a camera or a viewer wrote into the file
ODD = [  # what must become of it, its text, its image, and what else is odd
    (
        "kept",
        "Seen on 3/4/2021, patient Jane Doe, MRN 12345678: chronic inflammation of the colon &amp; its wall. #dermpath",
        {"exif": hidden},
        {},
    ),
    ("question", "What is your diagnosis? A tumor of the colon with glands. #GIPath", {}, {}),
    ("language", "Gewebe mit chronischer Entzündung und vielen Lymphozyten #GIPath", {}, {"lang": "de"}),
    ("repost", "RT @x: glands in stroma", {}, {"referenced_tweets": [{"type": "retweeted", "id": "17"}]}),
    ("sensitive", "Findings that not everybody wants to see. #Autopsy", {}, {"possibly_sensitive": True}),
    ("no_hashtag", "A lovely sunset behind the institute, seen from the roof.", {}, {}),
    ("too_short", "A biopsy. #GIPath", {}, {}),
    ("outside_dates", "Mucin with floating tumour cells. #GIPath", {}, {"created_at": "2006-02-11T00:00:00.000Z"}),
    ("http_404", "Dense stroma with a few small vessels, the picture is gone. #GIPath", {"name": "gone.jpg"}, {}),
    ("too_small", "Adipose tissue as a thumbnail of a thumbnail. #GIPath", {"size": 64}, {}),
    ("same_bytes", "Somebody posts the very same picture again. #GIPath", {"tile": 4, "name": "3_005.jpg"}, {}),
    ("near_duplicate", "And once more, saved anew by some program. #GIPath", {"tile": 4, "quality": 60}, {}),
]
if SIMULATED:
    for folder in (FOLDER, HOST, WORK):  # begun anew, if this cell is run again
        shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    HOST.mkdir(parents=True, exist_ok=True)
    for tile in range(CASES):
        text = f"{simulate(0, tile).captions[0]} #pathology #GIPath https://t.co/{tile}"
        post(text, picture(tile), author=9_000_100 + tile % 11, day=tile * DAYS / CASES)
    # Two people answer the first case; the better liked answer is a second text for its picture.
    answer = {"conversation_id": posts[0]["id"], "referenced_tweets": [{"type": "replied_to", "id": posts[0]["id"]}]}
    few, many = ({"public_metrics": {"like_count": likes}, **answer} for likes in (2, 9))
    post("Nice one, thank you for sharing.", author=9_000_201, day=1, planted="not_most_liked", **few)
    post(
        "Note the fibrous band through the fat, and how few vessels it has.",
        author=9_000_202,
        day=1,
        planted="kept",
        **many,
    )
    for number, (planted, text, image, more) in enumerate(ODD):
        key = picture(**{"tile": 900 + number, **image})
        post(text, key, author=9_000_300 + number, day=40 + number, planted=planted, **more)
    (HOST / "gone.jpg").unlink()
print(f"{len(posts)} posts, {len(media)} images; {len(PLANTED)} of the posts are planted")

# %% [markdown]
# The images of posts lie behind addresses. Here a server in this notebook plays the host of the images; the pages name it. Pages are written one a line, and the last line breaks off.

# %%
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Host(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


OFFLINE = ""
if SIMULATED:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Host, directory=HOST))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    with (FOLDER / "pages.jsonl").open("w") as file:
        for start in range(0, len(posts), 25):
            page = {"data": posts[start : start + 25], "includes": {"media": media}, "meta": {"result_count": 25}}
            file.write(json.dumps(page).replace("IMAGES/", f"http://127.0.0.1:{port}/") + "\n")
        file.write('{"data": [{"id": "15000000000000')
    # Addresses of this machine are refused otherwise, and hosts are asked slowly.
    OFFLINE = f"--config.hydration.private_networks=\"('127.0.0.1/32',)\" --config.hydration.ports='({port},)' --config.hydration.requests_per_second=100.0"

# %% [markdown]
# ## Curate
#
# Nine stages: source, thread, text, hydrate, image, gate, verdict, duplicate, split. The recipe is OpenPath's: 32 hashtags, English, no question, no repost, nothing sensitive, and the reply with the most likes as a second text; each setting of `configs/data/openpath.py` says whether it is the paper's or ours. The paper tests on the posts after 2022-11-15, so the end of the collection is moved behind them. Kill it at any time: the same command goes on.

# %%
DATASHEET = datasheet(SIMULATED)
# !python -m data_prep.curate --config configs/data/openpath.py --work {WORK} --out openpath --overwrite --author-key {KEY} --make-author-key --config.sources.twitter.path={DUMP} --config.threads.end_date=2023-01-15 --config.shards.shards=2 --config.engine.partitions=4 {DATASHEET} {PRIVACY} {OFFLINE}

# %% [markdown]
# ## The funnel
#
# At every stage, in = kept + dropped. `openpath/funnel.html` has it by source, with thumbnails, lengths of captions and hashtags; `funnel.json` the numbers.

# %%
import matplotlib.pyplot as plt


def draw_funnel(folder: str) -> None:
    totals = json.loads(Path(folder, "funnel.json").read_text())["totals"]
    steps = [(unit, step) for unit in ("post", "pair") for step in totals[unit]]
    figure, axes = plt.subplots(figsize=(10, 0.42 * len(steps) + 0.8), dpi=70)
    for row, (_, step) in enumerate(steps):
        gone = step["in"] - step["kept"]
        axes.barh(row, step["kept"], color="#3b6ea5", label="goes on" if row == 0 else None)
        axes.barh(row, gone, left=step["kept"], color="#d97b29", label="ends here" if row == 0 else None)
        why = ", ".join(f"{reason} {count}" for reason, count in step["dropped"].items())
        axes.text(
            step["in"] + 0.5,
            row,
            f"{step['kept']} of {step['in']}{'   ' + why if why else ''}",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(steps)), [f"{unit}s: {step['stage']}" for unit, step in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, 2.3 * max(step["in"] for _, step in steps))
    axes.set_xlabel("posts, then pairs of image and text")
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    plt.show()


draw_funnel("openpath")

# %% [markdown]
# ## Where everything ended
#
# `decisions.parquet` has a row for each post and pair: the stage, the reason, hashes and scores; no text, no address, no name. Of the planted posts, beside what had to become of them:

# %%
import html

import pyarrow.parquet as parquet
from IPython.display import HTML, display


def show_table(head: tuple, rows: list) -> None:
    def line(cells: tuple, tag: str) -> str:
        return (
            "<tr>"
            + "".join(f"<{tag} style='text-align: left'>{html.escape(str(cell))}</{tag}>" for cell in cells)
            + "</tr>"
        )

    display(HTML(f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"))


decisions = parquet.read_table("openpath/decisions.parquet").to_pylist()
if SIMULATED:
    said = {one["id"]: one["text"] for one in posts}
    ended = {row["post_id"]: row["reason"] or row["stage"] for row in decisions}
    show_table(("post", "planted", "ended"), [(said[number], why, ended[number]) for number, why in PLANTED.items()])
    assert all(ended[number] == why for number, why in PLANTED.items())
else:
    show_table(
        ("unit", "stage", "reason", "detail"),
        [(row["unit"], row["stage"], row["reason"], row["detail"]) for row in decisions[:20]],
    )

# %% [markdown]
# Captions before and after: encodings repaired, links, mentions and the community's labels at the end taken out, dates, names and record numbers masked. Masking is a net and no proof: a name with nothing beside it that tells it is one is not found.

# %%
import tensorflow_datasets as tfds  # without TensorFlow; Grain opens the folder as well

SPLITS = sorted(json.loads(Path("openpath/records.json").read_text())["splits"])
as_stored = {"image": tfds.decode.SkipDecoding()}
opened = tfds.builder_from_directory("openpath")
records = {
    record["id"].decode(): (split, record)
    for split in SPLITS
    for record in opened.as_data_source(split, decoders=as_stored)
}
if SIMULATED:
    reply, masked = [number for number, why in PLANTED.items() if why == "kept"]
    chosen = [posts[0]["id"], reply, masked]
    after = {name.split(":")[1]: record["captions"][0].decode() for name, (_, record) in records.items()}
    show_table(("as posted", "in the dataset"), [(said[number], after[number]) for number in chosen])
    [stored] = [record for name, (_, record) in records.items() if name.split(":")[1] == masked]
    fetched = (HOST / f"{stored['id'].decode().split(':')[2]}.jpg").read_bytes()
    print(
        "'Jane Doe' in the file as fetched:", b"Jane Doe" in fetched, "· in the record:", b"Jane Doe" in stored["image"]
    )

# %% [markdown]
# ## Copies
#
# Equal bytes first, then perceptual hashes within 3 of 64 bits. The earliest of a group stays.

# %%
import io

from IPython.display import Image as JPEG


def draw_tiles(images: list, titles: list, columns: int = 6) -> None:
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    lines = 1 + max(title.count("\n") for title in titles)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.9 * columns, (2 + 0.17 * lines) * rows), dpi=70, squeeze=False
    )
    for place in axes.flat:
        place.axis("off")
    for place, image, title in zip(axes.flat, images, titles, strict=False):
        place.imshow(image)
        place.set_title(title, fontsize=7.5)
    figure.tight_layout()
    picture = io.BytesIO()
    # Without the blank around; a notebook of such tiles as PNG has a megabyte.
    figure.savefig(picture, format="jpeg", bbox_inches="tight", pad_inches=0.05, pil_kwargs={"quality": 80})
    plt.close(figure)
    display(JPEG(picture.getvalue(), format="jpeg"))


def fetched_image(digest: str) -> Image.Image:
    """As it was fetched: the work folder has it under its sha256."""
    [path] = [one for one in Path(WORK, "store/originals").rglob(f"*{digest[8:]}*") if one.is_file()]
    return Image.open(path).convert("RGB")


groups = {}
for row in decisions:
    if row["duplicate_group"]:
        groups.setdefault(row["duplicate_group"], {})[row["id"]] = row
copies = [row for group in groups.values() if any(row["reason"] for row in group.values()) for row in group.values()]
copies = copies[:12]
if copies:
    draw_tiles(
        [fetched_image(row["digest"]) for row in copies],
        [f"post {row['post_id'][-4:]}\n{row['reason'] or 'kept'}" for row in copies],
    )

# %% [markdown]
# ## The splits share nothing
#
# By date, as the paper's. What must stay together (copies, a thread, an address) never lies on both sides; the build counts that before it publishes, and fails otherwise. Counted again from the decisions. Authors are not kept apart in OpenPath's recipe, where a few busy ones would tie most pairs together; `--config.split.keep_together` can add them.

# %%
kept = [row for row in decisions if row["stage"] == "kept"]


def shared(field: str) -> int:
    """Values of a field that two splits have in common."""
    splits = {}
    for row in kept:
        if row[field]:
            splits.setdefault(row[field], set()).add(row["split"])
    return sum(len(both) > 1 for both in splits.values())


show_table(("split", "pairs"), [(split, sum(row["split"] == split for row in kept)) for split in SPLITS])
show_table(
    ("in two splits", ""),
    [(field, shared(field)) for field in ("group_id", "digest", "duplicate_group", "phash", "author")],
)
assert not any(shared(field) for field in ("group_id", "digest", "duplicate_group"))

# %% [markdown]
# ## The records
#
# What was kept, with its split and caption:

# %%
import textwrap

some = list(records.values())[:: max(1, len(records) // 12)][:12]
draw_tiles(
    [Image.open(io.BytesIO(record["image"])) for _, record in some],
    [f"{split}\n" + textwrap.fill(record["captions"][0].decode(), 30, max_lines=4) for split, record in some],
)

# %% [markdown]
# ## Somebody asks to be removed
#
# All posts of an author go, and every copy of their images that somebody else posted. First a look, then the removal, which ends with a byte scan of its own.

# %%
ASKS = "9000104" if SIMULATED else ""  # the author's id at the platform; "" leaves this out
if ASKS:
    Path("requests.jsonl").write_text(json.dumps({"kind": "author", "platform": "x", "value": ASKS}) + "\n")
    # !python -m data_prep.takedown --work {WORK} --out openpath --requests requests.jsonl --author-key {KEY} --dry-run
    # !python -m data_prep.takedown --work {WORK} --out openpath --requests requests.jsonl --author-key {KEY}
    # !python -m data_prep.verify openpath

# %% [markdown]
# Looked for again, in every file of both folders and every decoded form of it: what the author wrote, and the images as they were posted.

# %%
if ASKS and SIMULATED:
    theirs = [one for one in posts if one["author_id"] == ASKS]
    images = [str((HOST / f"{key}.jpg").absolute()) for one in theirs for key in one["attachments"]["media_keys"]]
    Path("needles.txt").write_text(
        "\n".join([*(one["text"] for one in theirs), *(one["id"] for one in theirs), *images])
    )
    # !python -m data_prep.takedown scan --needles needles.txt {WORK} openpath

# %% [markdown]
# The dump still holds the posts, and is yours to deal with; a later run from this work folder leaves them out. `takedown-report.json` in the work folder names the datasets that held them, and with `--runs` the checkpoints that were trained on them.
#
# ## Release
#
# Where terms allow ids and nothing else, as those of X did: OpenPath's own columns, with split and group.

# %%
shutil.rmtree("openpath-ids", ignore_errors=True)
# !python -m data_prep.release --records openpath --work {WORK} --out openpath-ids
print(*Path("openpath-ids/release.csv").read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## Instagram, as Instaloader writes it
#
# IPATH's recipe reads other sources: here a folder of JSON files with their images beside them. A post may have several images; each becomes a pair. Nothing is fetched.

# %%
if SIMULATED_GRAM:
    GRAM = Path(INSTAGRAM_DUMP)
    for folder in (GRAM, WORK_GRAM):  # begun anew, if this cell is run again
        shutil.rmtree(folder, ignore_errors=True)
    GRAM.mkdir(parents=True, exist_ok=True)
    for number in range(12 if SMOKE else 40):
        name, tiles = f"case{number}", [2000 + number] if number else [1998, 1999]
        nodes = []
        for place, tile in enumerate(tiles, 1):
            file = f"{name}_{place}.jpg" if len(tiles) > 1 else f"{name}.jpg"
            simulate(0, tile, size=256).image.save(GRAM / file, quality=90)
            nodes.append({"__typename": "GraphImage", "display_url": f"https://example.org/{file}"})
        node = {
            "shortcode": name,
            "owner": {"id": str(500 + number % 9)},
            "taken_at_timestamp": 1_614_816_000 + 86_400 * number,
            "edge_media_to_caption": {
                "edges": [{"node": {"text": f"{simulate(0, tiles[0]).captions[1]} #pathologist"}}]
            },
            **nodes[0],
        }
        if len(nodes) > 1:
            node |= {
                "__typename": "GraphSidecar",
                "edge_sidecar_to_children": {"edges": [{"node": one} for one in nodes]},
            }
        (GRAM / f"{name}.json").write_text(json.dumps({"node": node, "instaloader": {"node_type": "Post"}}))
    (GRAM / "broken.json").write_text('{"node": {')

# %%
if INSTAGRAM_DUMP:
    DATASHEET = datasheet(SIMULATED_GRAM)
    # !python -m data_prep.curate --config configs/data/ipath.py --work {WORK_GRAM} --out ipath --overwrite --author-key {KEY} --make-author-key --config.sources.instaloader.path={DUMP_GRAM} --config.split.holdouts='()' --config.shards.shards=2 --config.engine.partitions=4 {DATASHEET} {PRIVACY}
    draw_funnel("ipath")

# %% [markdown]
# ## Training reads both
#
# A few steps of the smallest network, to see that the records are what training takes (the recall of so few pairs says nothing); [fine_tune_tpu](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/fine_tune_tpu.ipynb) trains. On real data: `--config configs/plip_vit_b32.py --config.data.sources.openpath.path=openpath`.

# %%
STEPS = 4 if SMOKE else 20
MORE = "ipath" if INSTAGRAM_DUMP else ""
shutil.rmtree("trial", ignore_errors=True)
# !python -m plip_jax.train --config configs/demo.py:smoke --workdir trial --config.train.steps={STEPS} --config.train.eval_interval_steps={STEPS} --config.data.sources.tissue.path=openpath --config.data.sources.more.path={MORE} --config.eval.tasks.tissue.data= --config.eval.tasks.captions.data=openpath

# %% [markdown]
# ## What is where
#
# | | |
# |---|---|
# | `openpath/`, `ipath/` | the datasets: records, `funnel.html`, `decisions.parquet`, `datasheet.md` |
# | `openpath-ids/` | what may be released: ids and addresses |
# | `work/` | private: raw texts, fetched images, the state of the stages |
# | the author key | private, apart from both |
#
# On Colab the folders go with the runtime: copy the datasets to your Drive. Next: gates against screenshots, faces and labels, and review by eye ([the guide](https://github.com/plip-jax/plip_jax/blob/main/docs/curate.md)); then [fine_tune_tpu](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/fine_tune_tpu.ipynb) and [evaluate](https://colab.research.google.com/github/plip-jax/plip_jax/blob/main/colab/evaluate.ipynb).
