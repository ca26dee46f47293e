"""Files are written whole or not at all; and where none can be written is told before the work, not after it."""

import glob
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path):
    """Gives a temporary name beside `path`; renames it to `path` when all went well, removes it otherwise."""
    temporary = part_of(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: str | os.PathLike) -> Path:
    """Raises OSError, with what to do, unless `write_whole` can write here: it makes the temporary file and removes it.

    Returns the path. Nothing but a trial is sure: where the rights allow it, a file system can still refuse.
    """
    path = Path(path)
    if not os.path.isdir(path.parent):
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no plain file"
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is {kind}; give the name of a file")
    _try(path, path)
    return path


def check_folder(path: str | os.PathLike) -> Path:
    """Raises OSError, with what to do, unless files can be written in this folder, or it can be made. Returns the path.

    Nothing of it is made yet.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    here = missing[-1].parent if missing else path
    if not os.path.isdir(here):
        raise NotADirectoryError(f"cannot write into {str(path)!r}: {str(here)!r} is no folder; choose another one")
    _try(missing[-1] if missing else path / "trial", path)
    return path


def _try(path: Path, asked: Path) -> None:
    temporary = part_of(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write {str(asked)!r}: the folder {str(path.parent)!r} takes no file of this "
                              f"name (the system says: {error.strerror}); choose another one") from error


def part_of(path: Path) -> Path:
    """The name beside `path` under which this process writes it, file or folder, until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def sweep(path: Path) -> None:
    """Removes what processes that were killed while they wrote `path` have left. Nobody may be writing it now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        left.unlink()
