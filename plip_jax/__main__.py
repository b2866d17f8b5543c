"""The command ``plip-jax VERB …``, the same as ``python -m plip_jax.VERB …``.

Owns the list of verbs and nothing else: no program, and no jax, is imported until its verb is called.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

import plip_jax

# Verb = module of this package with ``main(argv) -> int``; the text is its line in the help.
VERBS: dict[str, str] = {
    "train": "train a model from records of images and captions",
    "evaluate": "zero-shot and retrieval of any checkpoint -> evaluation.json",
    "embed": "images and texts -> embeddings on disk, resumable, on all devices of all hosts",
    "export": "write any checkpoint in the format that other libraries load, and check that they do",
    "doctor": "what this machine can do, what is wrong, and what to do about it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb's program with the arguments behind it; the exit status (2: wrong usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        print(plip_jax.__version__)
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        print(f"plip-jax: unknown verb {verb!r}{hint}; known: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return importlib.import_module(f"plip_jax.{verb}").main(rest)


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["usage: plip-jax VERB [arguments]", "", *lines, "", "`plip-jax VERB --help` lists a verb's arguments."]
    )


if __name__ == "__main__":
    sys.exit(main())
