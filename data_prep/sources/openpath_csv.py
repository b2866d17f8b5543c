"""OpenPath as PLIP's authors released it: a table of ids and addresses, in some copies with captions.

Columns `source, hashtag, weblink, id, media ID` and maybe `caption`, one row an image and a text, with `source` one of
"Twitter", "Twitter reply" and "PathLAION" (PathologyFoundation/plip, reproducibility/scripts/extract_embedding.py).
A row says where an image is only for LAION; the posts themselves have to be had from X by their ids. The rows of LAION
are taken only if the table is said to be cleaned: it has no score by which unsafe ones could be told (see `laion`).
"""

import dataclasses
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.sources import x_post
from data_prep.sources.delimited import TableError, read_header, read_lines
from data_prep.sources.fields import hashed_id, unique_keys
from data_prep.sources.post import Drop, Media, Post

_ROLES = {"twitter": "tweet", "twitterreply": "reply", "pathlaion": "laion"}
_NEEDED, _OPTIONAL = ("source", "weblink", "id"), ("hashtag", "mediaid", "caption")
_NOTHING = ("", "nan", "none", "----")  # what pandas writes, and the authors where there is no hashtag
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_IMAGE_HOST = "pbs.twimg.com"
_STATUS = re.compile(r"/status(?:es)?/(\d{1,20})(?:\D|$)")
_PART_OF_A_NAME = re.compile(r"[\w-]+")


@dataclasses.dataclass(frozen=True)
class OpenPathSettings:
    """Where the images are that the table only names, and whether its LAION rows are taken.

    Paths and addresses may hold `{hashtag}` and `{media_id}`; the first of both counts.

    Attributes:
        image_path: File below the source's images folder, e.g. "{hashtag}/{media_id}.jpg", as the authors kept them;
            empty where there are none. Ours.
        image_url: Address where the weblink is none of an image; empty to have none. Ours.
        cleaned_release: Take the rows of PathLAION, which have no score of being unsafe: someone has compared them
            with a release of LAION that was cleaned (Re-LAION-5B research-safe).
    """

    image_path: str = ""
    image_url: str = ""
    cleaned_release: bool = False


@dataclasses.dataclass
class _Row:
    """What the rows of one post have in common; its images gather as the rows come."""

    role: str
    post_id: str
    stated_id: str
    caption: str
    where: str
    hashtags: dict[str, None] = dataclasses.field(default_factory=dict)
    media: dict[str, Media] = dataclasses.field(default_factory=dict)


def read_posts(path: Path, settings: OpenPathSettings | None = None, *, source: str) -> Iterator[Post | Drop]:
    """Read the table; rows of one post (one id, role and caption) become one `Post` with several images.

    The table is held in memory, some 100 MB for all of OpenPath. A post without a caption has no `captions`. Where a
    further post has an id that is taken (a reply by the id of what it answers), "#2" is put behind its id; both are
    in one conversation.

    Args:
        path: UTF-8 text with a header; case, spaces and underscores in the names of columns do not matter.
        settings: The defaults where None.
        source: Name of the source, for the posts.

    Yields:
        The drops ("unknown_source", "malformed", "no_safety_score", and those of `delimited.read_lines`), then the
        posts in the order of the table.

    Raises:
        TableError: No such file, a column that is missing or ambiguous, or a setting that names an unknown field.
    """
    settings = settings or OpenPathSettings()
    _address(settings, "tag", "media", "")
    groups: dict[tuple[str, str, str], _Row] = {}
    names = [_plain(name) for name in read_header(path)]
    _check_columns(path, names)
    for found in read_lines(path):
        row = (
            found if isinstance(found, Drop) else _read_row(dict(zip(names, found[1], strict=True)), settings, found[0])
        )
        if isinstance(row, Drop):
            yield row
            continue
        group = groups.setdefault((row.role, row.post_id, row.caption), row)
        group.hashtags.update(row.hashtags)
        for key, media in row.media.items():
            group.media.setdefault(key, media)
    taken: dict[str, int] = {}
    for group in groups.values():
        taken[group.post_id] = count = taken.get(group.post_id, 0) + 1
        yield _post(group, source, group.post_id if count == 1 else f"{group.post_id}#{count}")


def _post(row: _Row, source: str, post_id: str) -> Post:
    is_laion = row.role == "laion"
    keys = unique_keys([one.key for one in row.media.values()])
    return Post(
        id=post_id,
        media=tuple(dataclasses.replace(one, key=key) for one, key in zip(row.media.values(), keys, strict=True)),
        captions=(row.caption,) if row.caption else (),
        source=source,
        where=row.where,
        conversation_id=row.stated_id or row.post_id,
        created_at="" if is_laion else x_post.utc("", row.post_id),
        hashtags=tuple(row.hashtags),
        permalink="" if is_laion else x_post.permalink(row.post_id),
        licence="unknown" if is_laion else "",
        role=row.role,
    )


def _read_row(fields: dict[str, str], settings: OpenPathSettings, where: str) -> _Row | Drop:
    if not (role := _ROLES.get(_plain(fields["source"]))):
        return Drop("unknown_source", where, detail="expected Twitter, Twitter reply or PathLAION")
    if role == "laion" and not settings.cleaned_release:
        # before anything else of the row is looked at, see `laion`
        return Drop("no_safety_score", where)
    weblink, media_id = _something(fields["weblink"]), _something(fields.get("mediaid", ""))
    hashtag = _something(fields.get("hashtag", "")).removeprefix("#")
    stated_id = _something(fields["id"]).removesuffix(".0")  # pandas makes numbers of a column with gaps
    if role == "laion":
        post_id = stated_id or media_id or weblink
        if _is_web(post_id):
            post_id = stated_id = hashed_id(post_id)
    else:
        stated_id = x_post.identity(stated_id)
        in_link = _STATUS.search(weblink)
        post_id = in_link[1] if in_link else stated_id
    if not post_id:
        return Drop("malformed", where, detail="no id of a post, neither in the column nor in the weblink")
    url = weblink if _is_web(weblink) and (role == "laion" or _is_image(weblink)) else ""
    path, url = _address(settings, hashtag, media_id, url)
    return _Row(
        role=role,
        post_id=post_id,
        stated_id=stated_id,
        caption=_something(fields.get("caption", "")),
        where=where,
        hashtags={hashtag: None} if hashtag else {},
        media={media_id or url: Media(media_id, url, path)},
    )


def _address(settings: OpenPathSettings, hashtag: str, media_id: str, url: str) -> tuple[str, str]:
    """Return the file of an image, or else its address; a name that could leave the folder gives none."""
    parts = {"hashtag": hashtag, "media_id": media_id}
    is_named = all(_PART_OF_A_NAME.fullmatch(part) for part in parts.values())
    try:
        path, made_url = settings.image_path.format(**parts), settings.image_url.format(**parts)
    except (KeyError, IndexError, ValueError) as error:
        raise TableError(f"image_path and image_url may hold {{hashtag}} and {{media_id}} only: {error}") from error
    if path and is_named:
        return path, ""
    return "", url or (made_url if _PART_OF_A_NAME.fullmatch(media_id) else "")


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in _NEEDED if name not in names]
    twice = [name for name in (*_NEEDED, *_OPTIONAL) if names.count(name) > 1]
    if missing or twice:
        raise TableError(
            f"{path}: expected OpenPath's columns source, hashtag, weblink, id, media ID and maybe caption; missing: "
            f"{', '.join(missing) or 'none'}; more than once: {', '.join(twice) or 'none'}"
        )


def _plain(name: str) -> str:
    """Return a name without what copies of the table write differently."""
    return re.sub(r"[\s_]", "", name).casefold()


def _something(field: str) -> str:
    field = field.strip()
    return "" if field.lower() in _NOTHING else field


def _is_web(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _is_image(address: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:
        return False
    return parts.hostname == _IMAGE_HOST or parts.path.lower().endswith(_IMAGE_SUFFIXES)
