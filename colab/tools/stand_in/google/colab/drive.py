"""``drive.mount`` makes a folder where Colab would show the user's Drive."""

from pathlib import Path


def mount(mountpoint: str, force_remount: bool = False) -> None:
    """Make ``mountpoint/MyDrive``; Colab asks its user first."""
    (Path(mountpoint) / "MyDrive").mkdir(parents=True, exist_ok=True)
