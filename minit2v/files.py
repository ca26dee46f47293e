"""Files are written whole or not at all."""

import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path):
    """Gives a temporary name beside `path`; renames it to `path` when all went well, removes it otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
