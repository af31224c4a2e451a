"""Choose the platform that a command talks to, and the key for it."""

import os

from services.cli.api.client import Client
from services.cli.machine.datadir import DataDir
from services.cli.machine.ports import LOOPBACK
from services.cli.machine.stack import DEFAULT_PORT


def connect(data: DataDir) -> Client:
    """Connect to the platform that the environment names, or else to the one that runs on `data`.

    The key of the data folder is sent only to the platform of that folder. The service key is used
    when there is no other: in a container, to make the first key.
    """
    running = data.running_url()
    url = os.environ.get("FORETHOUGHT_COORDINATOR_URL") or running
    key = os.environ.get("FORETHOUGHT_API_KEY")
    if not key and running is not None and url == running:
        key = data.read_key()
    if not key:
        key = os.environ.get("FORETHOUGHT_SERVICE_KEY")
    return Client(url or f"http://{LOOPBACK}:{DEFAULT_PORT}", key)
