"""Where a model's files are: a folder here, or a hub id, of which only the files that are needed are fetched."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class SourceError(ValueError):
    """A source that is no model we know, or cannot be reached. The message says what was looked for and found."""


def hub_folder(source: str | Path, files: Sequence[str], weights: Sequence[Sequence[str]]) -> Path:
    """Find a model's folder; an existing folder wins over a hub id of the same name.

    Args:
        source: a folder, or a hub id (owner/name).
        files: the small files, patterns allowed.
        weights: for each weights format, in order of preference, the patterns of its files.

    Raises:
        SourceError: neither a folder nor a hub id, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(str(source)):
        got = "a file" if folder.exists() else "nothing at that path"
        raise SourceError(f"{source}: expected a model folder or a hub id (owner/name), got {got}")

    def has_weights(folder: Path) -> bool:
        return any(True for patterns in weights for pattern in patterns for _ in folder.glob(pattern))

    wanted = f"{', '.join(files)} and one of {', '.join(patterns[0] for patterns in weights)}"
    return download(str(source), files, weights, is_whole=has_weights, wanted=wanted)


def download(
    repo_id: str,
    files: Sequence[str],
    weights: Sequence[Sequence[str]],
    *,
    is_whole: Callable[[Path], bool],
    wanted: str,
) -> Path:
    """Fetch a hub id into the Hugging Face cache, or find it there: the small files and one format of weights.

    Args:
        repo_id: owner/name.
        files: the small files, patterns allowed.
        weights: for each weights format, in order of preference, the patterns of its files.
        is_whole: whether a folder has weights.
        wanted: the files, as a person without the network is told to fetch them.

    Raises:
        SourceError: the hub cannot be reached, or does not know the id.
    """
    import huggingface_hub  # not at the top: half a second that reading a folder does not need

    try:
        folder = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(files)))
        for patterns in weights:
            if is_whole(folder):
                break
            folder = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns)))
    except Exception as error:  # network, authentication, unknown id: a dozen types of three libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise SourceError(
            f"{repo_id!r} is no folder here, and the Hugging Face hub did not give it ({type(error).__name__}: "
            f"{reason}). Without the network: fetch {wanted} of https://huggingface.co/{repo_id}/tree/main on another "
            "machine (`hf download` makes such a folder) and pass that folder instead of the id"
        ) from error
    return folder
