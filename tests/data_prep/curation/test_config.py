"""The recipes of curation: every setting is in the file, with its origin, and a wrong one is named."""

import dataclasses

import pytest

from data_prep.curation.config import BLOCKS, CurationConfig, CurationError
from data_prep.sources.table import SOURCES
from plip_jax.config_file import load_config

RECIPES = ("configs/data/openpath.py", "configs/data/ipath.py")


def load(name: str, *overrides: str):
    config = load_config(name)
    first = next(one for one in config.sources if one != "laion")
    return load_config(name, [f"sources.{first}.path=dumps", *overrides])


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_can_be_seen_and_changed(name):
    config = load(name)
    for block, kind in BLOCKS.items():
        fields = {field.name for field in dataclasses.fields(kind)} - {"languages"}  # the detector's own list
        assert set(config[block].keys()) == fields, block
    for source in config.sources.values():
        kind = SOURCES[source.kind].settings
        assert kind(**source.settings.to_dict()) == kind(), source.kind
        assert set(source.settings.keys()) == {field.name for field in dataclasses.fields(kind)}, source.kind


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_the_code_would_do_by_itself_where_nothing_is_published(name):
    read = CurationConfig.read(load(name))
    assert read.hydration == type(read.hydration)()
    assert read.image == type(read.image)()
    assert read.duplicates == type(read.duplicates)()


def test_what_openpath_says_of_laion():
    known = "gate.acknowledge_no_gate=True"
    config = load_config(RECIPES[0], ["sources.laion.path=tables", "sources.twitter.path=dumps", known])
    sources = CurationConfig.read(config).by_source()
    assert (sources["twitter"].text.questions, sources["laion"].text.questions) == ("drop", "keep")
    assert sources["laion"].threads.hashtags == ()
    assert len(sources["twitter"].threads.hashtags) == 32
    assert sources["laion"].threads.end_date == ""
    assert sources["twitter"].threads.end_date == "2022-11-15"


@pytest.mark.parametrize(
    "overrides",
    [["sources.laion.path=tables"], ["sources.openpath.path=table", "sources.openpath.settings.cleaned_release=True"]],
    ids=["laion", "openpath"],
)
def test_images_that_nobody_chose_need_a_gate(overrides):
    with pytest.raises(CurationError, match=r"no gate judges them: .*acknowledge_no_gate=True"):
        CurationConfig.read(load_config(RECIPES[0], overrides))
    for enough in ("gate.require=('pathology.json',)", "gate.hold=('face.json',)", "gate.acknowledge_no_gate=True"):
        assert len(CurationConfig.read(load_config(RECIPES[0], [*overrides, enough])).sources) == 1
    assert CurationConfig.read(load_config(RECIPES[0], ["sources.openpath.path=table"])).gate.require == ()


def test_questions_are_kept_of_laion_in_openpaths_own_table_too():
    source = CurationConfig.read(load_config(RECIPES[0], ["sources.openpath.path=t.csv"])).by_source()["openpath"]
    questions = {name: source.text_of(name).questions for name in ("openpath", "openpath_reply", "laion")}
    assert questions == {"openpath": "drop", "openpath_reply": "drop", "laion": "keep"}


def test_rows_of_neighbours_run_over_the_folder_of_the_source(tmp_path):
    rows = "sources.laion.settings.rows_file=rows.csv"
    folder, other = f"sources.laion.path={tmp_path}", "sources.laion.settings.root=elsewhere"

    def root(*overrides):
        config = load_config(RECIPES[0], [*overrides, "gate.acknowledge_no_gate=True"])
        return CurationConfig.read(config).by_source()["laion"].settings.root

    assert root(folder, rows) == str(tmp_path)
    assert root(folder) == root(f"sources.laion.path={tmp_path / 'one.parquet'}", rows) == ""
    assert root(folder, rows, other) == "elsewhere"


def test_paths_are_shown_without_their_folders():
    read = CurationConfig.read(load(RECIPES[0], "gate.require=('/home/someone/gates/pathology.json',)"))
    assert read.flat()["gate.require"] == ("pathology.json",)
    assert "/home" not in str(read.flat())


def test_mistakes_are_named():
    with pytest.raises(
        CurationError,
        match=r"no source has a path .*csv, figures, folder, laion, openpath, reddit, twitter, twitter_v1",
    ):
        CurationConfig.read(load_config(RECIPES[0]))
    config = load(RECIPES[0])
    with config.unlocked():
        config.text.minimum_words = 3
    with pytest.raises(CurationError, match=r"sources.csv.text: unknown field minimum_words; .* is min_words"):
        CurationConfig.read(config)
    with pytest.raises(CurationError, match=r"config.image: .*expected drop or first"):
        CurationConfig.read(load(RECIPES[0], "image.animation=keep"))
    with config.unlocked():
        del config.text["minimum_words"]
        config.sources["a b"] = config.sources.laion
    with pytest.raises(CurationError, match=r"sources.a b: expected a name"):
        CurationConfig.read(config)


SOURCE = {"kind": "csv", "path": "t.csv"}


def whole(source=SOURCE, **blocks):
    return {"sources": {"a": source}, "threads": {}, "text": {}} | blocks


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (whole(hydraton={"threads": 3}), "config: unknown field hydraton; the nearest known one is hydration"),
        ({"sources": {"a": SOURCE}, "text": {}}, "config: expected threads"),
        (whole({"kind": "csv"}), "config.sources.a: expected path"),
        (whole({"path": "t.csv"}), "config.sources.a: expected kind"),
        (whole(SOURCE | {"setings": {}}), "config.sources.a: unknown field setings; .* is settings"),
        (whole(SOURCE | {"path": 7}), "config.sources.a.path: expected str, got 7"),
        (whole(text="en"), "config.*: expected a block of fields, got 'en'"),
        (whole(threads={"hashtags": "GIPath"}), r"threads.hashtags: expected tuple\[str, \.\.\.\], got 'GIPath'"),
        (whole(SOURCE | {"settings": {"captions": "caption"}}), "sources.a.settings.captions: expected tuple"),
        (whole(threads={"drop_sensitive": 1}), "threads.drop_sensitive: expected bool, got 1"),
        (whole(threads={"min_reply_likes": True}), "threads.min_reply_likes: expected int, got True"),
        (whole(split={"holdouts": (("val", "7"),)}), "config.split.holdouts: expected tuple"),
        (whole({"kind": "laion", "path": "t", "settings": {"max_unsafe": "x"}}), "max_unsafe: expected float, got 'x'"),
        (whole({"kind": "reddit", "path": "t", "settings": {"caption": "titel"}}), "titel.*expected one of title"),
        (whole({"kind": "folder", "path": "t", "settings": {"label": "foldr"}}), "foldr.*expected one of none, folder"),
    ],
)
def test_what_is_no_configuration_is_refused(config, message):
    with pytest.raises(CurationError, match=message):
        CurationConfig.read(config)


def test_a_whole_number_is_taken_for_a_share_and_nothing_for_what_may_be_missing():
    read = CurationConfig.read(whole(SOURCE | {"settings": {"id": None}}, image={"max_aspect": 5}))
    assert (read.image.max_aspect, read.sources[0].settings.id) == (5, None)
