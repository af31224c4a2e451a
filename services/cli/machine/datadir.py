"""The folder that holds everything the platform keeps on one machine.

pg/       the database          models/   weights and checkpoints
logs/     a file a process      data/     files that POST /datasets may read
lock      held while it runs    stack.json  where the running platform listens
run       link to its sockets
key       an API key of it, for this user's commands
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import CliError

DEFAULT = Path(".forethought")


@dataclass(frozen=True)
class DataDir:
    root: Path

    @property
    def postgres(self) -> Path:
        return self.root / "pg"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def files(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def last_run(self) -> Path:
        """A link to the folder with the sockets of the platform that ran last."""
        return self.root / "run"

    @property
    def key(self) -> Path:
        return self.root / "key"

    def read_key(self) -> str | None:
        """The API key for commands on this machine; None before the platform has run here."""
        try:
            return self.key.read_text().strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"the key in the data folder cannot be read: {error}") from None

    def keep_key(self, key: str) -> None:
        """For this user's eyes only."""
        new = self.key.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(key + "\n")
        new.replace(self.key)

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    @property
    def _state(self) -> Path:
        return self.root / "stack.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one platform; the kernel lets go of it however we end.

        Raises:
            CliError: another platform runs on it, or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self._lock.open("a+")
        except OSError as error:
            raise CliError(f"the data folder cannot be used: {error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                url = self.running_url()
                where = f" and listens on {url}" if url else ""
                raise CliError(
                    f"the platform already runs on {self.root}{where}. Stop it first, or give "
                    "this one a folder of its own with --data-dir."
                ) from None
            self._state.unlink(missing_ok=True)
            try:
                yield
            finally:
                self._state.unlink(missing_ok=True)

    def announce(self, url: str) -> None:
        """Tell other terminals where the platform of this folder listens."""
        new = self._state.with_suffix(".new")
        new.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        new.replace(self._state)

    def running_url(self) -> str | None:
        """The address of the platform on this folder; None while it does not run."""
        if not self._is_locked():
            return None  # a stack.json without the lock is what a crash left behind
        try:
            url: str = json.loads(self._state.read_text())["url"]
        except FileNotFoundError:
            return None
        return url

    def _is_locked(self) -> bool:
        try:
            with self._lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


@contextmanager
def run_dir(link: Path | None = None) -> Iterator[Path]:
    """A private folder for sockets, with a short path: a socket's ends at 107 bytes.

    `link` will point to it. The folder to which it points now was left by a platform that was
    killed, and is removed.
    """
    parent = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = parent and len(os.fsencode(parent)) < 60 and os.access(parent, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="forethought-", dir=parent if usable else "/tmp"))
    if link is not None:
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()
        link.symlink_to(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
