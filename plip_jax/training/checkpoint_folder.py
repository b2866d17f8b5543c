"""Where a run's checkpoints are: ``checkpoints/`` in its work directory, or a folder or bucket of their own.

The work directory is a folder of the machine (it holds the lock, metrics and curves too); its checkpoints may go to any
place that `etils.epath` and tensorstore write to; ``checkpoints.txt`` in the work directory then says where. What is
only read, a finished run, may lie in a bucket as a whole. Knows paths only; what a checkpoint holds is
`plip_jax.training.checkpoint`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from etils import epath

_INSIDE = "checkpoints"
_ELSEWHERE_FILE = "checkpoints.txt"


class CheckpointError(ValueError):
    """A work directory or checkpoint that cannot be used as asked; the message says what to do."""


def is_workdir(path: str | Path) -> bool:
    """Whether ``path``, a folder or a ``gs://`` URL, is a run's work directory; it may hold no whole checkpoint yet.

    Raises:
        CheckpointError: the storage of a URL cannot be reached.
    """
    return _find(path) is not None


def checkpoints_folder(workdir: str | Path) -> epath.Path:
    """The folder of a work directory's checkpoints, absolute; it need not exist.

    Raises:
        CheckpointError: the storage of a URL cannot be reached.
    """
    return _find(workdir) or _absolute(workdir) / _INSIDE


def claim_folder(workdir: str | Path, directory: str) -> epath.Path:
    """The folder that a run writes its checkpoints to, made where missing and noted in the work directory.

    Args:
        workdir: of the run.
        directory: a folder or a URL; empty for the work directory's own.

    Raises:
        CheckpointError: the run has checkpoints in another place, or this one cannot be used.
    """
    inside = _absolute(workdir) / _INSIDE
    wanted = _absolute(directory) if directory else inside
    found = _find(workdir)
    with _named_storage(wanted):
        # Otherwise the run would begin anew beside the checkpoints it has, and cut its metrics to nothing.
        if found is not None and found != wanted and found.is_dir() and any(found.iterdir()):
            raise CheckpointError(
                f"{workdir}: this run's checkpoints are at {found}, and checkpoint.directory says {wanted}. Set "
                f"--config.checkpoint.directory={'' if found == inside else found}, or use another --workdir"
            )
        wanted.mkdir(parents=True, exist_ok=True)
        if found != wanted and jax.process_index() == 0:
            note = _absolute(workdir) / _ELSEWHERE_FILE
            if wanted == inside:
                note.unlink(missing_ok=True)
            else:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{wanted}\n")
    return wanted


def _absolute(path: str | Path) -> epath.Path:
    """The form orbax wants: it takes no relative path, and ``resolve`` would make a local path of a URL."""
    text = str(path)
    return epath.Path(text.rstrip("/")) if "://" in text else epath.Path(text).expanduser().resolve()


def _find(workdir: str | Path) -> epath.Path | None:
    """Where a work directory's checkpoints are; None where it has no place for them."""
    root = _absolute(workdir)
    with _named_storage(root):
        elsewhere = root / _ELSEWHERE_FILE
        if elsewhere.exists():
            return _absolute(elsewhere.read_text().strip())
        inside = root / _INSIDE
        return inside if inside.is_dir() else None


@contextmanager
def _named_storage(path: epath.Path) -> Iterator[None]:
    """Turn what a bucket's client raises (network, rights, no client installed) into one error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a dozen unrelated types
        hint = "; gs:// needs a client: pip install gcsfs" if isinstance(error, ImportError) else ""
        raise CheckpointError(f"{path} cannot be used ({type(error).__name__}: {error}){hint}") from error
