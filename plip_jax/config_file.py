"""The command line of a program that takes a config file: ``--config FILE.py[:variant] --config.a.b=value``.

Owns finding and running the file, the overrides and their types, and the messages when one is wrong. A program
adds its own flags to an ``argparse`` parser and calls `parse_config_args`; nothing is kept between calls, so a
``main`` can run many times in one process (``ml_collections.config_flags`` cannot: it defines absl's global flags).
"""

import argparse
import ast
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_dict

# The folders that may hold configs/: the checkout, and the package as a wheel installs it.
_HOMES = (Path(__file__).resolve().parents[1], Path(__file__).resolve().parent)


class ConfigError(ValueError):
    """A config file or an override is wrong; the message says which, and what was expected."""


def parse_config_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, *, default: str | None = None
) -> tuple[argparse.Namespace, config_dict.ConfigDict]:
    """Parse a program's arguments, its config file and its overrides.

    Args:
        parser: holds the program's own flags; ``--config`` is added here.
        argv: the arguments, without the program's name; None reads ``sys.argv``.
        default: the config used when none is named; None makes ``--config`` required.

    Returns:
        The program's flags (``.config`` is the file as it was named, ``.overrides`` the list of ``a.b=value``), and
        the config with its overrides applied, locked against new fields.

    Raises:
        SystemExit: 2 on any error, with the message and the usage on stderr; 0 after ``--help``, which also
            prints the fields of the config when one was named.
    """
    parser.add_argument(
        "--config",
        metavar="FILE.py[:variant]",
        default=default,
        required=default is None,
        help="config file; change a field with --config.name=value" + (f" (default: {default})" if default else ""),
    )
    try:
        rest, overrides = _take_overrides(list(sys.argv[1:] if argv is None else argv))
        if {"-h", "--help"} & set(rest):
            _describe_fields(parser, rest, default)
        flags = parser.parse_args(rest)
        flags.overrides = overrides
        return flags, load_config(flags.config, overrides)
    except ConfigError as error:
        parser.error(str(error))


def load_config(name: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
    """Run a config file's ``get_config`` and apply overrides.

    Args:
        name: path of a Python file, with ``:variant`` after it when its ``get_config`` takes one. A relative path is
            looked for in the working directory, then beside the package.
        overrides: ``field.name=value`` each, later ones win. A value is read as the type of the field's default
            (an int is taken for a float; tuples, lists and fields whose default is None are Python literals).

    Raises:
        ConfigError: file not found (existing ones are listed), a file that fails, an unknown field (the nearest
            known one is named), a value of another type.
    """
    path_text, variant = _split_variant(name)
    config = _run_get_config(_find_file(path_text), variant)
    config.lock()
    for override in overrides:
        field, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r}: expected field=value")
        _apply(config, field, text)
    return config


def flatten_config(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Every field by its dotted name, sorted within a block; an empty block appears as itself."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict) and len(value):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten_config(value).items()})
        else:
            flat[str(key)] = value
    return flat


def _take_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split ``--config.a=1`` and ``--config.a 1`` from a program's own arguments."""
    rest: list[str] = []
    overrides: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        override = argument.removeprefix("--config.")
        if "=" not in override:
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise ConfigError(f"{argument}: expected a value, as in {argument}=VALUE")
            override = f"{override}={value}"
        overrides.append(override)
    return rest, overrides


def _describe_fields(parser: argparse.ArgumentParser, rest: list[str], default: str | None) -> None:
    """Put the fields of the named config under the help text."""
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--config", default=default)
    name = finder.parse_known_args(rest)[0].config
    if name is None:
        parser.epilog = "Name a config to see its fields: --config FILE.py --help"
        return
    fields = flatten_config(load_config(name))
    lines = [f"  --config.{field}={value!r}" for field, value in fields.items()]
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join([f"fields of {name}:", *lines])


def _split_variant(name: str) -> tuple[str, str]:
    """Cut after ``.py:`` only, so that a drive letter or a colon in a folder's name stays in the path."""
    path, marker, variant = name.rpartition(".py:")
    return (f"{path}.py", variant) if marker else (name, "")


def _find_file(path_text: str) -> Path:
    path = Path(path_text).expanduser()
    for candidate in (path, *(home / path for home in _HOMES)):
        if candidate.is_file():
            return candidate
    folders = dict.fromkeys([path.parent, Path("configs"), *(home / "configs" for home in _HOMES)])
    known = sorted({str(file) for folder in folders if folder.is_dir() for file in folder.glob("*.py")})
    known = [name for name in known if not name.endswith("__init__.py")]
    raise ConfigError(
        f"config file {path_text!r} does not exist{_did_you_mean(path_text, known)}; "
        + (f"existing: {', '.join(known)}" if known else "no config file was found in configs/ either")
    )


def _run_get_config(path: Path, variant: str) -> config_dict.ConfigDict:
    # A module of its own each time, never in sys.modules: two runs cannot see each other's values.
    spec = importlib.util.spec_from_file_location("plip_jax_config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {str(path)!r}: expected a Python file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does wrong is the user's to see, named by the file
        raise ConfigError(f"config file {str(path)!r} fails: {type(error).__name__}: {error}") from error
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"config file {str(path)!r}: expected a function get_config() that returns a ConfigDict")
    if variant and not inspect.signature(get_config).parameters:
        raise ConfigError(f"config file {str(path)!r} has no variants, got {variant!r}; leave out ':{variant}'")
    try:
        config = get_config(variant) if variant else get_config()
    except Exception as error:  # the same
        raise ConfigError(f"config file {str(path)!r}, variant {variant!r}: {type(error).__name__}: {error}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise ConfigError(f"config file {str(path)!r}: expected a ConfigDict, got {type(config).__name__}")
    return config


def _apply(config: config_dict.ConfigDict, field: str, text: str) -> None:
    block = config
    *parents, last = field.split(".")
    for parent in parents:
        if not isinstance(block, config_dict.ConfigDict) or parent not in block:
            raise _unknown_field(config, field)
        block = block[parent]
    if not isinstance(block, config_dict.ConfigDict) or last not in block:
        raise _unknown_field(config, field)
    default = block[last]
    if isinstance(default, config_dict.ConfigDict):
        inner = ", ".join(f"--config.{field}.{key}" for key in flatten_config(default)) or "none"
        raise ConfigError(f"--config.{field} is a block, not a field; its fields: {inner}")
    # A placeholder(int) holds None and knows its type; a plain None is of no type.
    block[last] = _read_value(f"--config.{field}", text, default, block.get_type(last))


def _read_value(flag: str, text: str, default: Any, kind: type) -> Any:
    """Read ``text`` as ``kind``; the default's elements say what a tuple or list holds."""
    if kind is type(None):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text  # a field of no type takes a bare word as a string
    if default is None and text == "None":
        return None
    try:
        value = _READERS[kind](text) if kind in _READERS else ast.literal_eval(text)
    except (ValueError, SyntaxError, KeyError):
        raise _wrong_type(flag, text, default, kind) from None
    if kind in (tuple, list) and isinstance(value, tuple | list):
        value = kind(_as_floats_where(value, default or ()))
        element_kinds = {type(element) for element in default or ()}
        if len(element_kinds) == 1 and element_kinds != {type(element) for element in value} and value:
            raise _wrong_type(flag, text, default, kind)
    if not isinstance(value, kind):
        raise _wrong_type(flag, text, default, kind)
    return value


def _as_floats_where(value: Sequence[Any], default: Sequence[Any]) -> list[Any]:
    """An int among floats is meant as a float."""
    if not default or any(type(element) is not float for element in default):
        return list(value)
    return [float(element) if type(element) is int else element for element in value]


_BOOLS = {"true": True, "false": False, "1": True, "0": False}
# How a bare word on the command line becomes a value of the default's type; other types are Python literals.
_READERS: dict[type, Callable[[str], Any]] = {
    str: str,
    bool: lambda text: _BOOLS[text.lower()],
    int: int,
    float: float,
}


def _wrong_type(flag: str, text: str, default: Any, kind: type) -> ConfigError:
    example = f", as in its default {default!r}" if default is not None else ""
    return ConfigError(f"{flag}: expected {kind.__name__}{example}, got {text!r}")


def _unknown_field(config: config_dict.ConfigDict, field: str) -> ConfigError:
    known = list(flatten_config(config))
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.75)
    if not near:  # right name, wrong block
        last_names = {name.rpartition(".")[2]: name for name in reversed(known)}
        near = [last_names[n] for n in difflib.get_close_matches(field.rpartition(".")[2], last_names, n=1)]
    near = near or difflib.get_close_matches(field, known, n=1, cutoff=0)
    hint = f"; the nearest known one is --config.{near[0]}" if near else "; the config has no fields"
    return ConfigError(f"unknown field --config.{field}{hint} (--help lists all)")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
