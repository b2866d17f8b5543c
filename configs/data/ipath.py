"""A curation in the manner of IPATH (Zenodo record 14278846): Instagram posts, or the release itself, to records.

Sources: [paper] "rigorously filtered using classifiers, LLMs and manual filtering", 45,609 pairs, 5,000 of them held
out for retrieval; [ours] all else: neither the order of the stages nor a threshold nor a prompt was published. What a
language model or a person says comes in as files of verdicts (`verdicts.files`). Every setting is in the result's
datasheet. A block `sources.NAME` without a path is left out.
"""

from ml_collections import ConfigDict

# [ours] what the readers do by themselves; their settings are explained in data_prep/sources.
_CSV = {"image": "image", "captions": ("caption",), "id": "", "group": "", "label": ""}  # names of columns
_FOLDER = {"caption": "sidecar", "label": "none", "licence": ""}
_IPATH = {
    "image": ("image", "image_path", "filename", "file", "image_name", "img", "path", "image_url", "url"),
    "caption": ("caption", "captions", "text", "description", "title"),
    "id": ("id", "image_id", "index"),
    "group": ("post_id", "shortcode", "post", "post_url", "permalink"),
    "licence": "",
}


def _source(kind: str, **blocks: dict) -> ConfigDict:
    """A dump: its file or folder, the folder of its images where it has them, and what it does otherwise."""
    overrides = {name: ConfigDict(blocks.get(name, {})) for name in ("settings", "threads", "text")}
    return ConfigDict({"kind": kind, "path": "", "images": "", **overrides})


def _sources() -> ConfigDict:
    return ConfigDict(
        {
            "instagram": _source("instagram"),  # pages of the web's GraphQL
            "instaloader": _source("instaloader", settings={"local_images": True}),  # JSON of Instaloader, also .xz
            "instagram_mobile": _source("instagram_mobile"),  # the mobile API
            "ipath": _source("ipath", settings=_IPATH),  # the release: images and captions
            "csv": _source("csv", settings=_CSV),  # [ours] no part of IPATH, nor is the next
            "folder": _source("folder", settings=_FOLDER),
        }
    )


def _threads() -> ConfigDict:
    return ConfigDict(
        {
            "start_date": "",  # [ours]
            "end_date": "",  # [ours]
            "hashtags": (),  # [ours] the dump was collected by hashtag; name them here to be strict
            "drop_sensitive": True,  # [ours]
            "drop_withheld": True,  # [ours]
            "drop_reposts": True,  # [ours]
            "quotes": "keep",  # no such thing on Instagram, nor are the next four
            "replies": "none",  # these dumps hold no comments
            "reply_scope": "direct",
            "replies_need_hashtag": False,
            "self_replies": True,
            "min_reply_likes": 0,
            "media_kinds": ("photo",),  # [ours]
        }
    )


def _text() -> ConfigDict:
    return ConfigDict(
        {
            "hashtags": "trailing",  # [ours] labels of the community at the end go, diagnoses stay
            "strip_all_hashtags": False,  # [ours]
            "topic_tags": (),  # [ours] more labels of the community than the built-in ones
            "questions": "drop",  # [ours] as OpenPath does
            "min_words": 3,  # [ours]
            "max_words": 400,  # [ours]
            "min_letters": 3,  # [ours]
            "language": "en",  # [ours]
            "language_threshold": 0.9,  # [ours]; Instagram names no language
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
            # [paper] "classifiers": files of `python -m data_prep.gate`
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
            "title": "IPATH",
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
            "verdicts": ConfigDict({"files": (), "require_verdict": False}),  # [paper] "LLMs and manual filtering"
            "duplicates": ConfigDict(
                {
                    "hash": "phash",
                    "radius": 3,
                    "policy": "drop",
                    "keep": "earliest",
                    "embedding_threshold": 1.0,
                }  # [ours]
            ),
            "split": ConfigDict(
                {
                    "train_until": "",  # no split by date
                    "test_from": "",
                    "test_until": "",
                    "undated": "train",
                    "straddling": "train",
                    "holdouts": (("retrieval", 5000),),  # [paper]
                    "seed": 0,
                    "keep_together": ("duplicates", "conversations", "authors", "urls", "given_groups"),  # [ours]
                }
            ),
            "shards": ConfigDict({"shards": 64, "key": "plip_jax"}),
            "datasheet": _datasheet(),
            "engine": ConfigDict({"runner": "local", "workers": 1, "partitions": 64, "options": ()}),
        }
    )
