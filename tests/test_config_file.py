"""The config command line: types, unknown names, variants, and many calls in one process."""

import argparse
from pathlib import Path

import pytest

from plip_jax.config_file import ConfigError, flatten_config, load_config, parse_config_args

CONFIG = """
from ml_collections import config_dict

def get_config(variant: str = ""):
    if variant not in ("", "smoke"):
        raise ValueError(f"expected no variant or smoke, got {variant}")
    config = config_dict.ConfigDict()
    config.name = "run"
    config.seed = 0
    config.flag = False
    config.note = None
    config.limit = config_dict.placeholder(int)
    config.optim = config_dict.ConfigDict()
    config.optim.learning_rate = 1e-5
    config.optim.betas = (0.9, 0.999)
    config.optim.names = ["a"]
    config.optim.mixed = (1, "b")
    config.steps = 2 if variant == "smoke" else 100
    config.tasks = config_dict.ConfigDict({"kather": config_dict.ConfigDict({"data": "", "split": "test"})})
    return config
"""


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("name=1", "name", "1"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("seed=7", "seed", 7),
        ("flag=true", "flag", True),
        ("flag=0", "flag", False),
        ("note=word", "note", "word"),
        ("note=(1, 2)", "note", (1, 2)),
        ("limit=3", "limit", 3),
        ("limit=None", "limit", None),
        ("optim.learning_rate=2e-5", "optim.learning_rate", 2e-5),
        ("optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("optim.betas=(0, 0.5)", "optim.betas", (0.0, 0.5)),
        ("optim.betas=[0.1]", "optim.betas", (0.1,)),
        ("optim.names=['x', 'y']", "optim.names", ["x", "y"]),
        ("optim.mixed=(2, 'c', 3.0)", "optim.mixed", (2, "c", 3.0)),
        ("tasks.kather.data=/some where", "tasks.kather.data", "/some where"),
    ],
)
def test_an_override_takes_the_type_of_its_default(config_path, override, field, expected):
    value = flatten_config(load_config(config_path, [override]))[field]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "override",
    ["seed=1.5", "seed=x", "seed=True", "flag=2", "optim.learning_rate=fast", "limit=1.5", "optim.betas=0.9",
     "optim.betas=('a', 'b')", "optim.names=[1]", "optim.betas=(0.9"],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_the_expected_type(config_path, override):
    with pytest.raises(ConfigError, match=r"--config\.\S+: expected (int|float|bool|tuple|list)"):
        load_config(config_path, [override])


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("sed=1", "--config.seed "),
        ("learning_rate=1", "--config.optim.learning_rate "),
        ("optim.learning_rates=1", "--config.optim.learning_rate "),
        ("optimizer.lerning_rate=1", "--config.optim.learning_rate "),
        ("tasks.kathre.data=x", "--config.tasks.kather.data "),
        ("seed.x=1", "--config.seed "),
    ],
)
def test_an_unknown_field_names_the_nearest_known_one(config_path, override, near):
    with pytest.raises(ConfigError, match="unknown field") as error:
        load_config(config_path, [override])
    assert near in str(error.value)


def test_a_block_is_not_a_field(config_path):
    with pytest.raises(ConfigError, match=r"is a block.*--config\.tasks\.kather\.data"):
        load_config(config_path, ["tasks=1"])


def test_later_overrides_win_and_calls_do_not_see_each_other(config_path):
    assert load_config(config_path, ["seed=1", "seed=2"]).seed == 2
    assert load_config(config_path).seed == 0


def test_variants(config_path):
    assert load_config(f"{config_path}:smoke").steps == 2
    with pytest.raises(ConfigError, match="expected no variant or smoke"):
        load_config(f"{config_path}:smok")
    plain = Path(config_path).with_name("plain.py")
    plain.write_text("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'a': 1})\n")
    assert load_config(str(plain)).a == 1
    with pytest.raises(ConfigError, match="has no variants"):
        load_config(f"{plain}:smoke")


def test_a_missing_file_lists_those_that_exist(config_path):
    missing = str(Path(config_path).with_name("recip.py"))
    with pytest.raises(ConfigError, match="does not exist") as error:
        load_config(missing)
    assert f"did you mean {config_path!r}" in str(error.value)


def test_the_configs_beside_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(flatten_config(load_config("configs/eval_plip.py"))) > 4


@pytest.mark.parametrize(
    ("text", "message"),
    [("1/0", "ZeroDivisionError"), ("x = 1", "get_config"), ("def get_config():\n    return 3", "got int")],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(path))
    assert str(path) in str(error.value)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="program")
    parser.add_argument("--workdir", required=True)
    return parser


def test_a_program_mixes_its_flags_and_overrides(config_path):
    argv = ["--config", config_path, "--config.seed", "5", "--workdir", "w", "--config.optim.learning_rate=1e-3"]
    flags, config = parse_config_args(make_parser(), argv)
    assert (flags.workdir, flags.config, flags.overrides) == ("w", config_path, ["seed=5", "optim.learning_rate=1e-3"])
    assert (config.seed, config.optim.learning_rate) == (5, 1e-3)
    flags, config = parse_config_args(make_parser(), ["--workdir", "w"], default=config_path)
    assert config.seed == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir", "w"], "--config"),
        (["--config", "FILE", "--workdir", "w", "--config.sed=1"], "nearest known one is --config.seed"),
        (["--config", "FILE", "--workdir", "w", "--config.seed"], "expected a value"),
        (["--config", "FILE", "--workdir", "w", "--confg.seed=1"], "unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_exits_with_2(config_path, argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_config_args(make_parser(), [config_path if a == "FILE" else a for a in argv])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_fields_of_the_config(config_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_config_args(make_parser(), ["--config", config_path, "--help"])
    assert exit_info.value.code == 0
    assert "--config.optim.learning_rate=1e-05" in capsys.readouterr().out
