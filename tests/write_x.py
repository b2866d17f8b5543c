"""The inverse of the readers of X: posts as the platform's own JSON, shared by the tests that need dumps."""

from datetime import datetime

from data_prep.sources.post import Media, Post

_NATIVE_KINDS = {"photo": "photo", "video": "video", "animation": "animated_gif"}
_ELSEWHERE = "17"  # the post that a repost repeats or a quote quotes; `Post` does not say which


def v2_page(posts: list[Post], *, included: list[Post] | None = None) -> dict:
    """A page of API v2; deletions become its errors, ``included`` posts are only referred to."""
    page: dict = {"data": [_v2_tweet(post) for post in posts if post.kind != "deletion"]}
    media = {one.key: _v2_media(one) for post in [*posts, *(included or ())] for one in post.media}
    authors = sorted({post.author for post in [*posts, *(included or ())] if post.author})
    page["includes"] = {
        "media": list(media.values()),
        "users": [{"id": author, "name": f"name of {author}", "username": f"user{author}"} for author in authors],
        "tweets": [_v2_tweet(post) for post in included or ()],
    }
    page["errors"] = [
        {
            "resource_id": post.id,
            "value": post.id,
            "resource_type": "tweet",
            "parameter": "referenced_tweets.id",
            "title": "Not Found Error",
            "detail": f"Could not find tweet with referenced_tweets.id: [{post.id}].",
            "type": "https://api.twitter.com/2/problems/resource-not-found",
        }
        for post in posts
        if post.kind == "deletion"
    ]
    page["meta"] = {"result_count": len(page["data"]), "newest_id": "1", "oldest_id": "1"}
    return page


def flat_v2(post: Post) -> dict:
    """One line of twarc's `flatten`: author and media inside; a deletion is the line of a compliance job."""
    if post.kind == "deletion":
        times = {"created_at": "2019-10-29T17:02:47.000Z", "redacted_at": "2020-07-29T17:02:47.000Z"}
        return {"id": post.id, "action": "delete", "reason": "deleted", **times}
    tweet = _v2_tweet(post)
    tweet["author"] = {"id": post.author, "name": f"name of {post.author}", "username": f"user{post.author}"}
    if post.media:
        tweet["attachments"]["media"] = [_v2_media(one) for one in post.media]
    tweet["__twarc"] = {"url": "https://api.twitter.com/2/tweets/search/all", "version": "2.13.0"}
    return tweet


def v1_status(post: Post) -> dict:
    """A post of API v1.1; a deletion is the line of a stream. Versions and conversations have no place in it."""
    if post.kind == "deletion":
        return {"delete": {"status": {"id": int(post.id), "id_str": post.id, "user_id": 3, "user_id_str": "3"}}}
    written = post.captions[0]
    status = {
        "id": int(post.id),
        "id_str": post.id,
        "created_at": datetime.fromisoformat(post.created_at).strftime("%a %b %d %H:%M:%S +0000 %Y"),
        "full_text": written,
        "truncated": False,
        "display_text_range": [0, len(written)],
        "entities": {"hashtags": [{"text": tag, "indices": [0, 1]} for tag in post.hashtags], "urls": []},
        "user": {"id": int(post.author), "id_str": post.author, "screen_name": f"user{post.author}"},
        "in_reply_to_status_id": int(post.reply_to) if post.reply_to else None,
        "in_reply_to_status_id_str": post.reply_to or None,
        "is_quote_status": post.kind == "quote",
        "favorite_count": post.likes,
        "lang": post.language,
        "possibly_sensitive": post.sensitive,
    }
    if post.media:
        status["extended_entities"] = {"media": [_v1_media(one) for one in post.media]}
        status["entities"]["media"] = [{**_v1_media(post.media[0]), "type": "photo"}]
    if post.withheld:
        status["withheld_in_countries"] = ["DE"]
    if post.kind == "repost":
        status["retweeted_status"] = {
            "id_str": post.reply_to or _ELSEWHERE,
            "full_text": "repeated",
            "user": {"id_str": "5"},
        }
    if post.kind == "quote":
        status["quoted_status_id_str"] = _ELSEWHERE
    return status


def _v2_tweet(post: Post) -> dict:
    tweet: dict = {
        "id": post.id,
        "text": post.captions[0],
        "author_id": post.author,
        "conversation_id": post.conversation_id,
        "lang": post.language,
        "possibly_sensitive": post.sensitive,
        "edit_history_tweet_ids": [post.id],
    }
    if post.created_at:
        tweet["created_at"] = post.created_at.replace("Z", ".000Z")
    if post.likes is not None:
        tweet["public_metrics"] = {"retweet_count": 2, "reply_count": 1, "like_count": post.likes, "quote_count": 0}
    if post.first_version:
        between = [str(int(post.first_version) + number) for number in range(1, post.version)]
        tweet["edit_history_tweet_ids"] = [*[post.first_version, *between][: post.version], post.id]
    if post.media:
        tweet["attachments"] = {"media_keys": [one.key for one in post.media]}
    if post.hashtags:
        tweet["entities"] = {"hashtags": [{"start": 0, "end": 1, "tag": tag} for tag in post.hashtags]}
    if post.withheld:
        tweet["withheld"] = {"copyright": False, "country_codes": ["DE"]}
    references = {"reply": "replied_to", "quote": "quoted", "repost": "retweeted"}
    if post.kind in references:
        tweet["referenced_tweets"] = [{"type": references[post.kind], "id": post.reply_to or _ELSEWHERE}]
    if len(post.captions[0]) > 280:
        tweet["text"] = post.captions[0][:279] + "…"
        tweet["note_tweet"] = {"text": post.captions[0], "entities": tweet.get("entities", {})}
    return tweet


def _v2_media(media: Media) -> dict:
    address = {"url": media.url} if media.kind == "photo" else {"preview_image_url": media.url}
    alt_text = {"alt_text": media.alt_text} if media.alt_text else {}
    return {"media_key": media.key, "type": _NATIVE_KINDS[media.kind], **address, **alt_text}


def _v1_media(media: Media) -> dict:
    return {
        "id": int(media.key),
        "id_str": media.key,
        "type": _NATIVE_KINDS[media.kind],
        "media_url": media.url.replace("https://", "http://"),
        "media_url_https": media.url,
        "ext_alt_text": media.alt_text or None,
    }
