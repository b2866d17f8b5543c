"""What the extra `data` installs, asked for before the programs import it."""

import importlib.util
import sys

CURATION = ("apache_beam", "emoji", "ftfy", "py3langid", "pyarrow", "urllib3")
"""What the pipeline of curation imports of it when it starts."""


def need_data(program: str, *modules: str) -> None:
    """End the program with one line, and status 1, if a module of the extra `data` is not installed.

    Args:
        program: which one asks, such as ``data_prep.curate``.
        modules: what it imports of the extra.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f'{program}: needs the extra "data" ({", ".join(missing)} not installed): '
            'pip install "plip_jax[data]", or in a clone pip install -e ".[data]"'
        )
