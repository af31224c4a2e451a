"""Running a Postgres as root: its server refuses to, so it has to be somebody else.

Nothing here adds a user or opens a folder for others.
"""

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import StackError

NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
"""Inside it the process is user 1000; outside it stays root, so files keep their owner."""


@dataclass(frozen=True)
class Identity:
    """Starts a process that must not be root: by a prefix of its command, or as another uid."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None

    def own(self, *folders: Path) -> None:
        """Give the folders and what is in them to the uid that will use them."""
        if os.geteuid() != 0:
            return
        uid = self.uid or 0
        for folder in folders:
            if folder.stat().st_uid != uid:
                for path in (folder, *folder.rglob("*")):
                    os.chown(path, uid, uid, follow_symlinks=False)


def has_user_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def server_identity(binary: Path, *folders: Path) -> Identity:
    """Find an identity under which a server can execute `binary` and write in `folders`.

    Raises:
        StackError: we are root and there is no way that leaves the machine as it is.
    """
    if os.geteuid() != 0:
        return Identity()
    if sys.platform == "linux" and has_user_namespaces():
        return Identity(prefix=NAMESPACE)
    identity = Identity(uid=_another_uid(folders[0]))
    identity.own(*folders)
    test = ["sh", "-c", 'for f in "$@"; do test -w "$f" || exit 1; done; exec "$0" --version']
    command = [*test, str(binary), *map(str, folders)]
    reached = subprocess.run(
        command,
        capture_output=True,
        user=identity.uid,
        group=identity.uid,
        extra_groups=[],
        cwd="/",
    )
    if reached.returncode != 0:
        identity_of_root = Identity(uid=0)
        identity_of_root.own(*folders)
        raise StackError(
            "Postgres does not run as root, and here it can neither get a user namespace nor "
            f"reach {folders[0]} as user {identity.uid}. Run this as an ordinary user, choose a "
            "--data-dir that other users can reach, or set FORETHOUGHT_DATABASE_URL to a Postgres "
            "of your own."
        )
    return identity


def _another_uid(folder: Path) -> int:
    """The owner of the nearest parent folder that is not root's, else `nobody`."""
    for parent in folder.absolute().parents:
        if uid := parent.stat().st_uid:
            return uid
    return pwd.getpwnam("nobody").pw_uid
