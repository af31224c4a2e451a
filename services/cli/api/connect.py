"""Which platform a command talks to, and with which key."""

import os

from services.cli.api.client import Client
from services.cli.machine.datadir import DataDir
from services.cli.machine.ports import LOOPBACK
from services.cli.machine.stack import DEFAULT_PORT


def connect(data: DataDir) -> Client:
    """The platform that the environment names, else the one that runs on `data`.

    The data folder's key is for that one only, and is sent to no other. The service key is taken
    where there is nothing else: in a container, to make the first key.
    """
    running = data.running_url()
    url = os.environ.get("FORETHOUGHT_COORDINATOR_URL") or running
    key = os.environ.get("FORETHOUGHT_API_KEY")
    if not key and running is not None and url == running:
        key = data.read_key()
    if not key:
        key = os.environ.get("FORETHOUGHT_SERVICE_KEY")
    return Client(url or f"http://{LOOPBACK}:{DEFAULT_PORT}", key)
