"""A week of posts with a known truth: planted faults, and what must become of each post.

A test makes the dumps (`week_dumps`) and the images' server from it, runs the curation and compares every decision with
`truth`. What is planted in tables and folders of images is in `week_tables`.
"""

import dataclasses
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from image_server import ImageServer, Response, redirect
from PIL import Image
from week_images import DistinctImages, caption_texts, jpeg
from week_tables import plant_tables

from data_prep.reports.decisions import DecisionRow
from data_prep.sources.post import Media, Post

KEPT = ("kept", "")
X, X1, WEB, LOADER, MOBILE, REDDIT = "twitter", "twitter_v1", "instagram", "instaloader", "instagram_mobile", "reddit"


@dataclasses.dataclass
class Week:
    """What was planted; `plan_week` fills it and `write` makes the dumps.

    Attributes:
        folder: Gets a folder of dumps for each source.
        server: Serves the images.
        images: Where they come from.
        truth: Id of a decision -> its stage and reason.
        captions: Id of a kept pair -> its caption.
        more: A second decision about the same id.
        unreadable: Source -> decisions about lines that are no posts.
        together: By what connects them, posts that go with the first of them: copies of its images, versions of it, the
            reply that describes them.
        served: By address, the images that are answered at once.
        posts: By source, in the order of the dumps.
        unsafe: Posts that must not be fetched.
        broken: By source, rows of a table that are no posts.
        files: By path in `folder`, images and what lies beside them.
    """

    folder: Path
    server: ImageServer
    images: DistinctImages
    truth: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    captions: dict[str, str] = dataclasses.field(default_factory=dict)
    more: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    unreadable: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    together: dict[str, list[list[Post]]] = dataclasses.field(default_factory=dict)
    served: dict[str, bytes] = dataclasses.field(default_factory=dict)
    posts: dict[str, list[Post]] = dataclasses.field(default_factory=dict)
    unsafe: list[Post] = dataclasses.field(default_factory=list)
    broken: dict[str, list[list[str]]] = dataclasses.field(default_factory=dict)
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    _numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))
    _texts: Iterator[str] = dataclasses.field(default_factory=caption_texts)

    def serve(self, *responses: Response) -> str:
        """Plant answers and return where."""
        return self.server.add(f"/{next(self._numbers)}.jpg", *responses)

    def image(self, data: bytes | None = None) -> str:
        """Serve an image, a new one where none is given."""
        data = data or jpeg(next(self.images))
        url = self.serve(Response(data))
        self.served[url] = data
        return url

    def number(self) -> int:
        """A number that nothing else has."""
        return next(self._numbers)

    def file(self, path: str, data: bytes | None = None) -> str:
        """Lay a file, a new image where no bytes are given, below the folder of a source; return its name there."""
        self.files[path] = data or jpeg(next(self.images))
        return path.partition("/")[2]

    def refuse(self, source: str, reason: str, *row: str) -> None:
        """Add a row that is no post."""
        self.broken.setdefault(source, []).append(list(row))
        self.unreadable[source, reason] += 1

    def post(self, source: str, *urls: str, **fields: object) -> Post:
        """Add a post with a new caption, a hashtag and images at these places."""
        number = next(self._numbers)
        caption = next(self._texts)
        post_id, author = str(14 * 10**17 + number), str(5 * 10**8 + number)
        values: dict = {
            "id": post_id,
            "source": source,
            "captions": (f"{caption} #GIPath",),
            "hashtags": ("GIPath",),
            "conversation_id": post_id,
            "author": author,
            "created_at": f"2021-03-{1 + number % 7:02d}T{number // 60 % 24:02d}:{number % 60:02d}:00Z",
            "language": "en",
            "likes": number % 50,
            # Only X has ids of its own for images.
            "media": tuple(
                Media(str(10**12 + number * 10 + place if source in (X, X1) else place), url)
                for place, url in enumerate(urls)
            ),
        }
        post = Post(**{**values, **fields})
        self.posts.setdefault(source, []).append(post)
        return post

    def connect(self, what: str, *posts: Post) -> None:
        """Say which posts go with the first one when it is taken down."""
        self.together.setdefault(what, []).append(list(posts))

    def keep(self, post: Post, image: Post | None = None, *, caption: str | None = None) -> list[str]:
        """Say that a post is kept with each of its images, or with those of the post that it answers."""
        ids = [f"{post.source}:{post.id}:{media.key}" for media in (image or post).media]
        for pair_id in ids:
            self.truth[pair_id] = KEPT
            self.captions[pair_id] = post.captions[0].removesuffix(" #GIPath") if caption is None else caption
        return ids

    def end(self, post: Post, stage: str, reason: str) -> None:
        """Say where a post ends; behind the threads it is its pairs that end."""
        if stage in ("source", "thread"):
            self.truth[f"{post.source}:{post.id}"] = (stage, reason)
        else:
            for media in post.media:
                self.truth[f"{post.source}:{post.id}:{media.key}"] = (stage, reason)

    def ended(self, source: str, stage: str, reason: str = "") -> Iterator[Post]:
        """The posts of a source of which every image ended so."""
        for post in self.posts[source]:
            ends = {self.truth.get(f"{source}:{post.id}:{media.key}") for media in post.media}
            if ends == {(stage, reason)}:
                yield post

    def differences(self, decisions: Iterable[DecisionRow]) -> dict[str, object]:
        """Compare decisions with the truth: what is planted and was found otherwise, by id; empty where all agree."""
        unreadable: Counter[tuple[str, str]] = Counter()
        found: dict[str, list[tuple[str, str]]] = {}
        for row in decisions:
            if row.stage == "source":
                unreadable[row.source, row.reason] += 1
            else:
                found.setdefault(row.id, []).append((row.stage, row.reason))
        planted = {
            one: sorted([truth, *([self.more[one]] if one in self.more else [])]) for one, truth in self.truth.items()
        }
        wrong: dict[str, object] = {
            one: {"planted": planted.get(one), "found": sorted(found.get(one, []))}
            for one in planted.keys() | found.keys()
            if planted.get(one) != sorted(found.get(one, []))
        }
        return wrong | ({"unreadable": unreadable} if unreadable != self.unreadable else {})


SOCIAL = (X, X, X, X1, WEB, LOADER, MOBILE, REDDIT)


def plan_week(week: Week, plain: int) -> None:
    """Plant `plain` posts that are kept, and among them one of each fault for about forty of them."""
    faults = [
        *_post_faults(week),
        *_text_faults(week),
        *_hydration_faults(week),
        *_image_faults(week),
        *_duplicates(week),
        *_threads(week),
        *plant_tables(week),
    ]
    for number in range(plain):
        source = SOCIAL[number % len(SOCIAL)]
        several = 1 + 2 * (number % 11 == 0)
        week.keep(week.post(source, *(week.image() for _ in range(several))))
        if number % 3 == 0 and faults:
            faults.pop(0)()
        elif number % 40 == 39:
            faults += [*_post_faults(week), *_text_faults(week), *_duplicates(week), *_threads(week)]
            faults += plant_tables(week)
    for fault in faults:
        fault()


Plant = Callable[[], object]


def _post_faults(week: Week) -> list[Plant]:
    """What the platform itself says against a post."""

    def plant(reason: str, source: str = X, **fields: object) -> Plant:
        return lambda: week.end(week.post(source, week.image(), **fields), "thread", reason)

    def deleted() -> None:
        post = week.post(X, week.image())
        week.posts[X].append(Post(post.id, source=X, kind="deletion"))
        week.end(post, "thread", "deleted")
        week.more[f"{X}:{post.id}"] = ("thread", "deletion_notice")

    def edited() -> None:
        old = week.post(X, week.image())
        new = dataclasses.replace(
            old, id=str(int(old.id) + 5 * 10**12), captions=(f"Corrected: {old.captions[0]}",), version=1
        )
        new = dataclasses.replace(new, first_version=old.id)
        week.posts[X].append(new)
        week.end(old, "thread", "superseded")
        week.keep(new)
        week.connect("versions", new, old)

    def repeated() -> None:
        post = week.post(X, week.image())
        week.posts[X].append(post)
        week.keep(post)
        week.end(post, "thread", "repeated")

    def beside_the_file() -> None:
        post = week.post(LOADER, "https://cdn.example/expired.jpg")
        week.file(f"{LOADER}/{post.id}.jpg")
        week.keep(post)

    def video() -> None:
        post = week.post(X, week.image())
        week.posts[X][-1] = dataclasses.replace(post, media=(dataclasses.replace(post.media[0], kind="video"),))
        week.end(post, "thread", "no_image")

    return [
        plant("repost", kind="repost"),
        plant("sensitive", sensitive=True),
        plant("sensitive", WEB, sensitive=True),
        plant("withheld", withheld=True),
        plant("outside_dates", created_at="2023-06-01T10:00:00Z"),
        plant("no_hashtag", hashtags=("cats",), captions=("A photograph of my cat in the sun #cats",)),
        deleted,
        edited,
        repeated,
        beside_the_file,
        video,
    ]


def _text_faults(week: Week) -> list[Plant]:
    def plant(reason: str, text: str, **fields: object) -> Plant:
        return lambda: week.end(week.post(X, week.image(), captions=(text,), **fields), "text", reason)

    spanish = "Corte de colon con infiltrado inflamatorio y células atípicas en la lámina propia #GIPath"
    return [
        plant("question", "What is your diagnosis of this lesion of the colon? #GIPath"),
        plant("language", spanish, language="es"),
        plant("empty", "https://t.co/abcdefghij #GIPath"),
        plant("too_short", "Thyroid section #GIPath"),
    ]


def _hydration_faults(week: Week) -> list[Plant]:
    def plant(reason: str, *responses: Response, source: str = X) -> Plant:
        return lambda: week.end(week.post(source, week.serve(*responses)), "hydrate", reason)

    def later(*first: Response) -> Plant:
        return lambda: week.keep(week.post(X, week.serve(*first, Response(jpeg(next(week.images))))))

    def moved() -> None:
        week.keep(week.post(WEB, week.serve(redirect(week.image()))))

    return [
        plant("http_404", Response(b"gone", 404)),
        plant("http_410", Response(b"gone", 410), source=WEB),
        plant("not_an_image", Response(b"<html>please log in</html>", headers={"Content-Type": "text/html"})),
        plant("robots_tag", Response(jpeg(next(week.images)), headers={"X-Robots-Tag": "noai"})),
        plant("too_large", Response(b"\xff\xd8\xff" + bytes(60_000), repeat=20)),
        plant("private_address", redirect("http://10.0.0.1/secret.jpg")),
        plant("timeout", Response(b"\xff\xd8\xff" + bytes(2000), drip_seconds=0.05)),
        plant("http_503", Response(b"busy", 503)),
        later(Response(b"slow down", 429, {"Retry-After": "0"})),
        later(Response(b"busy", 503)),
        later(Response(reset=True)),
        moved,
    ]


def _image_faults(week: Week) -> list[Plant]:
    def plant(reason: str, make: Callable[[], bytes], source: str = X) -> Plant:
        return lambda: week.end(week.post(source, week.image(make())), "image", reason)

    def cut_off() -> bytes:
        return jpeg(next(week.images))[:2500]

    def small() -> bytes:
        return jpeg(next(week.images).resize((60, 60)))

    def strip() -> bytes:
        return jpeg(next(week.images).resize((900, 120)))

    def animation() -> bytes:
        buffer, frames = io.BytesIO(), [next(week.images), next(week.images)]
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
        return buffer.getvalue()

    def turned_with_places() -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x010E] = "Jane Doe, record 778899"
        week.keep(week.post(LOADER, week.image(jpeg(next(week.images), exif=exif))))

    return [
        plant("bad_image", cut_off),
        plant("too_small", small, WEB),
        plant("extreme_aspect", strip),
        plant("animated", animation, REDDIT),
        plant("low_information", lambda: jpeg(Image.new("RGB", (200, 200), (240, 240, 242)))),
        turned_with_places,
    ]


def _duplicates(week: Week) -> list[Plant]:
    def plant(reason: str, make: Callable[[], tuple[bytes, bytes]], source: str) -> Plant:
        def both() -> None:
            image, copy = make()
            first = week.post(X, week.image(image), created_at="2021-03-01T00:00:00Z")
            later = week.post(source, week.image(copy), created_at="2021-03-08T00:00:00Z")
            week.keep(first)
            week.end(later, "duplicate", reason)
            week.connect("copies", first, later)

        return both

    def same_bytes() -> tuple[bytes, bytes]:
        data = jpeg(next(week.images))
        return data, data

    return [
        plant("same_bytes", same_bytes, WEB),
        plant("near_duplicate", week.images.near_copies, REDDIT),
        plant("near_duplicate", week.images.near_copies, X1),
    ]


def _threads(week: Week) -> list[Plant]:
    def thread() -> None:
        first = week.post(X, week.image(), week.image(), created_at="2021-03-02T08:00:00Z")
        answer: dict = {"kind": "reply", "reply_to": first.id, "conversation_id": first.id, "hashtags": ()}
        replies = [week.post(X, likes=likes, created_at="2021-03-06T20:00:00Z", **answer) for likes in (5, 90, 2)]
        week.keep(first)
        week.keep(replies[1], first)
        week.connect("threads", first, replies[1])
        for reply in (replies[0], replies[2]):
            week.end(reply, "thread", "not_most_liked")

    def v1_thread() -> None:
        first = week.post(X1, week.image())
        reply = week.post(X1, kind="reply", reply_to=first.id, hashtags=())
        week.keep(first)
        week.keep(reply, first)

    def lonely() -> None:
        week.end(week.post(X, kind="reply", reply_to="999", hashtags=()), "thread", "no_image_in_thread")

    return [thread, v1_thread, lonely]
