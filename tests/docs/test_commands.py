"""Every command of ours in README.md and docs/ is understood by its program: all flags, all fields of a configuration.

Each program is run in an empty folder and must end where it misses its files: a wrong value is refused before. The
names that training reads behind its records are looked up here. Programs that need no files (a benchmark, the doctor,
the simulation) are stopped behind their command line.
"""

import argparse
import collections
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from pages import ROOT, blocks, commands, pages, prose

from plip_jax.__main__ import VERBS
from plip_jax.data.augment import get_augmentation
from plip_jax.model.presets import get_preset

_PROGRAM = re.compile(
    r"(?:^|[\s/])python[\d.]* +-m +(?P<module>(?:plip_jax|data_prep|benchmarks)(?:\.\w+)*)"
    r"|(?:^|(?<=[\s/]))plip-jax +(?P<verb>[\w-]+)"
)
# They would begin to work, each for more than a test may take.
_NEED_NO_FILES = ("benchmarks.", "plip_jax.doctor", "data_prep.simulate")
# Ids of the hub: here one that no cache holds, so that no model is loaded where one is at hand.
_HUB_ID = re.compile(r"(?<![\w./-])(vinid|openai|google|wisdomik|jamessyx|laion(?=/CLIP))/[\w.-]+")
# How programs say that a file or a folder is not there (or a model on the hub, or the hub's token).
_MISSES = re.compile(
    r"no such folder|does not exist|is not a folder|is no folder here|nothing at that path|nothing is there"
    r"|No such file or directory|expected a folder with|found nothing there|found none|has no folder"
    r"|nothing was fetched there|no rows in|no prompt file '[^']+\.json'|expected a token of the hub"
    r"|which='best' chooses a checkpoint of a training workdir"  # what is not there is taken for a model's id
)
# Of the machine that a page speaks of; here it becomes one of the empty folder, so that nothing is written elsewhere.
_ABSOLUTE = re.compile(r"(?<![\w./:])/(?=\w)")
# So many commands were there when this was written; a page that loses its blocks is seen by them.
LEAST = {
    "plip_jax.train": 6,
    "plip_jax.evaluate": 2,
    "plip_jax.export": 2,
    "plip_jax.embed": 1,
    "plip_jax.doctor": 1,
    "data_prep.build": 1,
    "data_prep.curate": 6,
    "data_prep.gate": 4,
    "data_prep.hydrate": 3,
    "data_prep.review": 4,
    "data_prep.takedown": 3,
    "data_prep.tfds.build": 1,
    "data_prep.verify": 3,
    "benchmarks": 5,
}


class Command:
    """A program with its arguments, and where it stands."""

    def __init__(self, place: str, match: re.Match[str]):
        verb = match["verb"]
        self.place = place
        self.module = match["module"] or ("plip_jax.__main__" if verb.startswith("-") else f"plip_jax.{verb}")
        self.arguments = _words(match.string[match.end() :])

    def __repr__(self) -> str:
        return f"{self.place} {self.module}"


def _words(line: str) -> list[str]:
    """The arguments of the first command of a line of a shell: up to the next pipe, redirection or command."""
    line = re.sub(r"\$\{?\w+\}?", "0", line)  # a variable of the shell: every number and every path is as good
    lexer = shlex.shlex(re.sub(r"(?<=\s)\d(?=>)", "", line), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in lexer:  # read word by word: behind the command there may be a quote that was opened before it
        if set(word) <= set(lexer.punctuation_chars):
            break
        words.append(word)
    return words


def our_commands() -> list[Command]:
    lines = [(place, line) for page in pages() for place, line in commands(page)]
    lines = [(place, line) for place, line in lines if not re.match(r"(\S*python\S* -m )?pip ", line)]
    return [Command(place, match) for place, line in lines for match in _PROGRAM.finditer(line)]


def make_commands() -> list[tuple[str, str]]:
    found = [(place, re.search(r"(?:^|[;&] *)make +(.*)", line)) for page in pages() for place, line in commands(page)]
    return [(place, match[1]) for place, match in found if match]


def test_no_block_hides():
    """Blocks of another language, or of none, are in no test; ``bash``, ``console`` and ``py`` are not used here."""
    found = [block for page in pages() for block in blocks(page)]
    known = {"sh", "python", "text", "yaml", "toml", "json", ""}
    assert [f"{block.place}: {block.language}" for block in found if block.language not in known] == []
    untested = [block for block in found if block.language not in ("sh", "python", "yaml")]
    ours = re.compile(rf"(?:{_PROGRAM.pattern})(?![:\w])|(?:import|from) plip_jax")  # "plip-jax train: …" is a message
    assert [block.place for block in untested if ours.search(block.text)] == []


class Understood(Exception):
    """The command line was read to its end."""


def _stop_behind_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_args: Callable[..., Any] = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, arguments: Sequence[str] | None = None, *rest: Any) -> None:
        parse_args(self, arguments, *rest)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


def test_no_command_is_overlooked():
    """What looks like a program of ours in a block is one of the commands, and there are as many as there were."""
    found = collections.Counter(
        command.module.partition(".")[0] if command.module.startswith("benchmarks") else command.module
        for command in our_commands()
    )
    assert {module: found[module] for module in LEAST if found[module] < LEAST[module]} == {}
    lines = [line for page in pages() for _, line in commands(page)]
    named = sum(len(re.findall(r"-m (?:plip_jax|data_prep|benchmarks)\b", line)) for line in lines)
    verbs = sum(len(re.findall(rf"(?<![\w/-])plip-jax (?:{'|'.join(VERBS)})\b", line)) for line in lines)
    assert sum(found.values()) >= named + verbs
    assert make_commands()


@pytest.mark.parametrize("command", our_commands(), ids=repr)
def test_a_command_is_understood(command: Command, monkeypatch, tmp_path: Path, capsys):
    assert importlib.util.find_spec(command.module) is not None, f"{command.place}: there is no {command.module}"
    if command.module.startswith("data_prep."):
        pytest.importorskip("apache_beam", reason="it comes with the extra for data")
    if "--config.engine.runner=dask" in command.arguments:
        pytest.importorskip("dask", reason="the runner's extra is not installed")
    program = importlib.import_module(command.module)
    monkeypatch.setattr("plip_jax.distributed.start_from_flags", lambda flags: None)  # there is no cluster here
    monkeypatch.chdir(tmp_path)
    configs = _keep_configs(program, monkeypatch)
    arguments = [_ABSOLUTE.sub("", _HUB_ID.sub("none/none", word)) for word in command.arguments]
    if "--make-author-key" not in arguments:
        _make_author_key(tmp_path, arguments)
    if command.module == "data_prep.curate":
        arguments.append("--acknowledge-missing")  # else it ends at its datasheet, before the rest is looked at
    page = ROOT / command.place.partition(":")[0]
    for block in blocks(page):  # a configuration that the page shows
        if block.title.endswith(".py"):
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
    stops = command.module.startswith(_NEED_NO_FILES)
    if stops:
        _stop_behind_the_command_line(monkeypatch)
    status = _status(program.main, arguments)
    printed = capsys.readouterr()
    said = printed.err
    if stops or {"--help", "--version"} & set(command.arguments):
        assert status == 0, f"{command.place}: {said}"
        return
    assert status == 1, f"{command.place}: {said}"  # argparse ends with 2 where it does not know something
    assert _MISSES.search(printed.out + said), f"{command.place}: {said}"
    if command.module == "plip_jax.train":
        assert "data_prep.build" in said  # what a records folder that is not there is answered with
        (config,) = configs
        get_preset(config.model.preset)
        get_augmentation(config.data.augmentation)
        assert hasattr(jnp, config.model.compute_dtype), command.place


def _keep_configs(program: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that a program is going to read, as its command line leaves them."""
    found: list[Any] = []
    if read := getattr(program, "parse_config_args", None):

        def read_and_keep(*arguments: Any, **options: Any) -> Any:
            flags, config = read(*arguments, **options)
            found.append(config)
            return flags, config

        monkeypatch.setattr(program, "parse_config_args", read_and_keep)
    return found


def _status(program: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return program(arguments)
    except Understood:
        return 0
    except SystemExit as end:
        return int(end.code or 0)


def _make_author_key(folder: Path, arguments: Sequence[str]) -> None:
    """So that a configuration is read before something is missing."""
    if "--author-key" in arguments:
        from data_prep.curation.authors import make_author_key

        make_author_key(folder / arguments[arguments.index("--author-key") + 1])


@pytest.mark.parametrize(("place", "rest"), make_commands(), ids=str)
def test_a_target_of_make_exists(place: str, rest: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in _words(rest):
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{re.escape(name)} *\??=" if is_variable else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"{place}: the Makefile has no {name}"


def _read_flags_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsers then need nothing, take any value, and refuse a flag that they do not know."""
    parse_args: Callable[..., Any] = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, arguments: Sequence[str] | None = None, *rest: Any) -> None:
        for action in self._actions:
            action.required = False
        parse_args(self, arguments, *rest)
        raise Understood

    def error(self: argparse.ArgumentParser, message: str) -> None:
        if re.match("unrecognized arguments:.* --", message):
            raise ValueError(message)
        raise Understood  # a placeholder, such as N for a number

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(argparse.ArgumentParser, "error", error)


def commands_in_prose(page: Path) -> list[Command]:
    """Commands between backticks in a sentence or a table, which may leave out what a program needs."""
    place = str(page.relative_to(ROOT))
    spans = [span for _, span in re.findall(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", prose(page), re.DOTALL)]
    found = [_PROGRAM.match(" ".join(span.split()).replace("…", "")) for span in spans]
    return [Command(place, match) for match in found if match]


def test_there_are_commands_in_prose():
    assert len(commands_in_prose(ROOT / "README.md")) >= 15


def test_an_unknown_flag_in_prose_is_found(monkeypatch):
    _read_flags_alone(monkeypatch)
    program = importlib.import_module("plip_jax.embed").main
    assert _status(program, ["--images", "DIR", "--batch-size", "N"]) == 0
    with pytest.raises(ValueError, match="unrecognized arguments: --image-folder"):
        _status(program, ["--batch-size", "8", "--image-folder", "DIR"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_in_the_prose_of_a_page_are_known(page: Path, monkeypatch):
    _read_flags_alone(monkeypatch)
    for command in commands_in_prose(page):
        if command.module.startswith("data_prep."):
            pytest.importorskip("apache_beam", reason="it comes with the extra for data")
        assert importlib.util.find_spec(command.module) is not None, command
        program = getattr(importlib.import_module(command.module), "main", None)
        if program is not None and any(word.startswith("--") for word in command.arguments):
            try:
                _status(program, command.arguments)
            except ValueError as error:
                pytest.fail(f"{command}: {error}")


def test_what_is_no_command_of_ours_is_left_out():
    """The reading of a line, on the forms that the pages use."""
    forms = {
        "python -m plip_jax.train --a b > log 2>&1 &'": ("plip_jax.train", ["--a", "b"]),
        "cd x && nohup .venv/bin/python -m plip_jax.embed --texts 'a b' | tee log": (
            "plip_jax.embed",
            ["--texts", "a b"],
        ),
        'JAX_PLATFORMS=cpu plip-jax evaluate --out "$HOME/x" 2>errors': ("plip_jax.evaluate", ["--out", "0/x"]),
        ".venv/bin/plip-jax doctor; true": ("plip_jax.doctor", []),
        "plip-jax --version": ("plip_jax.__main__", []),
    }
    for line, (module, arguments) in forms.items():
        command = Command("here", next(_PROGRAM.finditer(line)))
        assert (command.module, command.arguments) == (module, arguments)
    places = ["/shared/x", "--a=/mnt/x", "('/x/y',)", "gs://b/x", "b/x", "dask://HOST:1/x"]
    assert [_ABSOLUTE.sub("", place) for place in places] == ["shared/x", "--a=mnt/x", "('x/y',)", *places[3:]]
    assert not _PROGRAM.search("git clone https://github.com/plip-jax/plip_jax")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --workdir x --config configs/demo.py --no", "unrecognized arguments: --no"),
        (
            "train --workdir x --config configs/demo.py --config.model.preset=nonsense",
            "unknown model preset 'nonsense'",
        ),
        ("train --workdir x --config configs/demo.py --config.data.augmentation=nonsense", "nonsense"),
        ("train --workdir x --config configs/demo.py --config.loss.name=nonsense", "unknown loss 'nonsense'"),
        ("evaluate --out x --checkpoint y --config configs/eval_demo.py --tasks tissue,nonsense", "no task nonsense"),
        (
            "evaluate --out x --checkpoint y --config configs/eval_demo.py --config.tasks.tissue.prompts=nonsense",
            "no prompt file 'nonsense'",
        ),
        ("export --checkpoint x/y --out z --dtype nonsense", "no dtype 'nonsense'"),
        ("embed --checkpoint x/y --images z --out o --dtype nonsense", "invalid choice: 'nonsense'"),
    ],
)
def test_a_wrong_flag_or_value_is_found(line: str, message: str, monkeypatch, tmp_path, capsys):
    command = Command("README.md:1", next(_PROGRAM.finditer(f"plip-jax {line}")))
    with pytest.raises((AssertionError, ValueError), match=re.escape(message)):
        test_a_command_is_understood(command, monkeypatch, tmp_path, capsys)


def test_a_wrong_value_of_curation_is_found(monkeypatch, tmp_path, capsys):
    line = "python -m data_prep.curate --config configs/data/openpath.py --author-key a --work w --out o"
    line += " --config.sources.twitter.path=x --config.engine.runner=nonsense"
    command = Command("README.md:1", next(_PROGRAM.finditer(line)))
    with pytest.raises(AssertionError, match="runner 'nonsense'"):
        test_a_command_is_understood(command, monkeypatch, tmp_path, capsys)
