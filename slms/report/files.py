"""Writing files so that a crash or a full disk never costs an earlier result."""

import os
import tempfile
from pathlib import Path


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write `content` to a temporary file beside `path`, sync it, then rename it onto `path`.

    Whoever reads `path` sees the old content or the new one, never a part. On any error (a full disk, Ctrl-C) the
    temporary file is removed, the earlier file is intact and the error is raised. Text is written as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private; a result is as readable as any other file
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
