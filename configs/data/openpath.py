"""OpenPath's curation (Huang et al., Nature Medicine 2023): posts of X, their replies and LAION, to records.

Sources: [paper] the text and figures; [release] the released table; [ours] a choice of this project, where nothing was
published: the duplicate rule, the cleaning expressions, the classifier and its threshold, the number of neighbours and
the least length. Every setting is in the result's datasheet. A block `sources.NAME` without a path is left out.
"""

from ml_collections import ConfigDict

# [paper] the 32 hashtags of pathology by which posts were found.
HASHTAGS = (
    "Autopsy",
    "BloodBank",
    "blooducation",
    "BreastPath",
    "BSTpath",
    "CardiacPath",
    "ClinPath",
    "Cytopath",
    "dermpath",
    "EndoPath",
    "ENTPath",
    "EyePath",
    "FNApath",
    "ForensicPath",
    "GIPath",
    "GUPath",
    "Gynpath",
    "HemePath",
    "HPBpath",
    "IDpath",
    "MolDx",
    "nephpath",
    "NeuroPath",
    "OralPath",
    "pancpath",
    "PathGME",
    "pathInformatics",
    "patientbloodmanagement",
    "PediPath",
    "PulmPath",
    "RenalPath",
    "SurgPath",
)

# [ours] what the readers do by themselves; their settings are explained in data_prep/sources.
_CSV = {"image": "image", "captions": ("caption",), "id": "", "group": "", "label": ""}  # names of columns
_FOLDER = {"caption": "sidecar", "label": "none", "licence": ""}
_FIGURES = {
    "id": ("uuid", "id", "image_id"),
    "article": ("article_id", "pmcid", "pmid", "article", "book", "doi"),
    "figure": ("figure_id", "figure", "fig_id", "figure_number"),
    "letter": ("letter", "subfigure", "panel", "label"),
    "caption": ("caption", "text"),
    "image": ("image", "file_name", "image_path", "file", "path", "uuid"),
    "url": ("url", "image_url", "link"),
    "licence": ("licence", "license"),
    "image_suffix": "",
}
_LAION = {
    "url": ("URL",),
    "text": ("TEXT", "caption"),
    "safety": ("punsafe",),
    "language": ("LANGUAGE", "lang"),
    "id": (),
    "max_unsafe": 0.5,
    "cleaned_release": False,
    "rows_file": "",
    "root": "",  # the source's folder
}
_REDDIT = {"caption": "title_and_text", "preview": True}


def _source(kind: str, **blocks: dict) -> ConfigDict:
    """A dump: its file or folder, the folder of its images where it has them, and what it does otherwise."""
    overrides = {name: ConfigDict(blocks.get(name, {})) for name in ("settings", "threads", "text")}
    return ConfigDict({"kind": kind, "path": "", "images": "", **overrides})


def _sources() -> ConfigDict:
    # [paper] LAION has no threads, no hashtags and no dates, and its questions are kept.
    unlimited = {"start_date": "", "end_date": "", "hashtags": ()}
    no_threads = {**unlimited, "replies": "none"}
    return ConfigDict(
        {
            "twitter": _source("x_v2"),  # pages of API v2, or one post a line
            # API v1.1: lists, searches, streams
            "twitter_v1": _source("x_v1", settings={"strip_reply_mentions": True}),  # [ours]
            "openpath": _source(  # of its rows "PathLAION" questions are kept as of `laion`
                "openpath_csv",
                # [ours] cleaned_release=True takes the rows of LAION, which have no score
                settings={"image_path": "", "image_url": "", "cleaned_release": False},
                threads=unlimited,
            ),
            "laion": _source("laion", settings=_LAION, threads=no_threads, text={"questions": "keep"}),
            # [ours] none of these is part of OpenPath
            "reddit": _source("reddit", settings=_REDDIT, threads=no_threads),
            "figures": _source("figures", settings=_FIGURES, threads=no_threads),
            "csv": _source("csv", settings=_CSV, threads=no_threads),
            "folder": _source("folder", settings=_FOLDER, threads=no_threads),
        }
    )


def _threads() -> ConfigDict:
    return ConfigDict(
        {
            "start_date": "2006-03-21",  # [paper]
            "end_date": "2022-11-15",  # [paper]; 2023-01-15 with the held-out tweets
            "hashtags": HASHTAGS,
            "drop_sensitive": True,  # [paper]
            "drop_withheld": True,  # [ours]
            "drop_reposts": True,  # [paper]
            "quotes": "keep",  # [ours]
            "replies": "most_liked",  # [paper]
            "reply_scope": "direct",  # [ours]
            "replies_need_hashtag": False,  # [ours]
            "self_replies": True,  # [ours]
            "min_reply_likes": 0,  # [ours]
            "media_kinds": ("photo",),  # [ours]
        }
    )


def _text() -> ConfigDict:
    return ConfigDict(
        {
            "hashtags": "trailing",  # [ours] labels of the community at the end go, diagnoses stay
            "strip_all_hashtags": False,  # [ours]
            "topic_tags": (),  # [ours] more labels of the community than the built-in ones
            "questions": "drop",  # [paper] for tweets and replies
            "min_words": 3,  # [ours]
            "max_words": 400,  # [ours]
            "min_letters": 3,  # [ours]
            "language": "en",  # [paper]
            "language_threshold": 0.9,  # [ours] at which a detector is believed against silence of the platform
            "max_characters": 20_000,  # [ours] of the raw text
            "min_language_letters": 30,  # [ours] below it no language is judged
            "boilerplate": (),  # [ours] more regular expressions to take out
            "mask": True,  # [ours] dates, ages over 89, names, record numbers
            "mask_with": "token",  # [ours]
        }
    )


def _hydration() -> ConfigDict:
    # [ours] all of it: nothing is published about how images were fetched.
    return ConfigDict(
        {
            "agent": "plip-jax-data-prep",
            "contact": "",  # page or mail address, for those who run the servers: set it
            "threads": 32,
            "requests_per_second": 10.0,  # at one host
            "host_concurrency": 4,
            "max_attempts": 4,
            "backoff_seconds": 2.0,
            "max_backoff_seconds": 120.0,
            "max_retry_after_seconds": 600.0,
            "seed": 0,  # of the jitter
            "connect_seconds": 10.0,
            "read_seconds": 20.0,
            "total_seconds": 60.0,
            "max_bytes": 30_000_000,
            "max_redirects": 5,
            "ports": (80, 443),
            "private_networks": (),  # a lab's own servers, e.g. ("10.1.0.0/16",)
            "refused_robots_tags": ("noai", "noimageai", "noindex", "noimageindex", "none"),
        }
    )


def _image() -> ConfigDict:
    # [ours] all of it; what each was measured on is in data_prep/images.
    return ConfigDict(
        {
            "formats": ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"),
            "min_short_side": 112,  # half of what the network sees
            "max_pixels": 2**26,
            "max_aspect": 5.0,
            "animation": "drop",
            "min_grey_deviation": 5.0,  # of 255
            "max_level_share": 0.98,
            "jpeg_above_pixels": 2**20,
            "jpeg_quality": 95,
        }
    )


def _gate() -> ConfigDict:
    return ConfigDict(
        {
            # [paper] a classifier of pathology: a file of `python -m data_prep.gate`
            "require": (),
            "hold": (),  # screenshots, labels, faces ...: held for review
            "checkpoint": "",  # that the gates were trained on
            "batch_size": 32,
            "acknowledge_no_gate": False,  # [ours] True takes images of LAION without any gate
        }
    )


def _datasheet() -> ConfigDict:
    # What only people can say. The first five are required; --acknowledge-missing goes on without them.
    return ConfigDict(
        {
            "lawful_basis": "",
            "source_terms": "",
            "source_terms_date": "",
            "ethics_reference": "",
            "contact": "",
            "title": "OpenPath",
            "motivation": "",
            "creators": "",
            "funding": "",
            "licence": "",
            "intended_use": "Research on image-text models of pathology.",
            "prohibited_use": (
                "Diagnosis, treatment or any other clinical use; finding out who the people behind posts or images are."
            ),
            "retention": "",
            "distribution": "",
            "limitations": "",
        }
    )


def _splits() -> ConfigDict:
    return ConfigDict(
        {
            "train_until": "2022-11-15",  # [paper]
            "test_from": "2022-11-16",  # [paper] Twitter's held-out posts
            "test_until": "2023-01-15",  # [paper]
            "undated": "train",  # [ours] LAION
            "straddling": "train",  # [ours]
            "holdouts": (),  # e.g. (("val", 2000),)
            "seed": 0,
            # [ours] Authors are not among them: a few busy ones connect most of the pairs.
            "keep_together": ("duplicates", "conversations", "urls", "given_groups"),
        }
    )


def get_config() -> ConfigDict:
    """The configuration; see the module's text."""
    return ConfigDict(
        {
            "sources": _sources(),
            "threads": _threads(),
            "text": _text(),
            "hydration": _hydration(),
            "image": _image(),
            "gate": _gate(),
            "verdicts": ConfigDict({"files": (), "require_verdict": False}),
            "duplicates": ConfigDict(
                {
                    "hash": "phash",
                    "radius": 3,
                    "policy": "drop",
                    "keep": "earliest",
                    "embedding_threshold": 1.0,
                }  # [ours]
            ),
            "split": _splits(),
            "shards": ConfigDict({"shards": 64, "key": "plip_jax"}),
            "datasheet": _datasheet(),
            "engine": ConfigDict({"runner": "local", "workers": 1, "partitions": 64, "options": ()}),
        }
    )
