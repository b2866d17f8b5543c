import dataclasses

from data_prep.curation.deletions import Deletions, find_deletions, judge_gone
from data_prep.sources.post import Post

PLATFORMS = {"v1": "x", "v2": "x", "reddit": "reddit", "table": "table"}


def test_a_deletion_counts_for_all_sources_of_its_platform_and_for_no_other():
    posts = [
        Post("1", source="v2"),
        Post("1", source="v1", kind="deletion"),
        Post("1", source="reddit"),
        Post("3", source="reddit", kind="deletion"),
        Post("3", source="v2"),
    ]
    found = find_deletions(posts, PLATFORMS)
    assert found == {"x": Deletions(frozenset("1")), "reddit": Deletions(frozenset("3"))}
    gone = judge_gone(posts[0], found["x"])
    assert (gone.id, gone.stage, gone.reason) == ("v2:1", "thread", "deleted")
    assert judge_gone(posts[1], found["x"]) is posts[1]  # the notice, which the threads count
    assert judge_gone(posts[4], found["x"]) is posts[4]


def test_a_deletion_of_any_version_ends_all_of_another_source():
    versions = [Post("4", source="v2")] + [Post(n, source="v2", first_version="4", version=int(n)) for n in "56"]
    for gone in "456":
        found = find_deletions([Post(gone, source="v1", kind="deletion"), *versions], PLATFORMS)["x"]
        assert {judge_gone(post, found).reason for post in versions} == {"deleted"}


def test_posts_of_those_who_left_go_and_of_those_who_hide_are_withheld():
    left, hides, stays = (Post(n, source="v2", author=n * 32) for n in "abc")
    notices = [
        Post("s line 1", source="v1", kind="departure", author=left.author),
        Post("s line 2", source="v1", kind="departure", author=hides.author, withheld=True),
        Post("s line 3", source="reddit", kind="departure", author=stays.author),
    ]
    found = find_deletions([left, hides, stays, *notices], PLATFORMS)["x"]
    assert judge_gone(left, found).reason == "deleted"
    assert judge_gone(hides, found) == dataclasses.replace(hides, withheld=True)
    assert [judge_gone(one, found) for one in (stays, *notices)] == [stays, *notices]
    assert judge_gone(Post("9", source="v2"), found) == Post("9", source="v2")  # nobody is named
    assert find_deletions([left, hides], PLATFORMS) == {}
