"""Errors that a user can act on. The command line prints them without a traceback.

CliError
├── StackError      a part of the platform did not start or has stopped
├── PlatformAway    no platform answers, or not in time (`api/client.py`)
└── RequestFailed   the platform answered with an error (`api/client.py`)
"""


class CliError(Exception):
    """Message for the person at the terminal: what is wrong and what to do next."""


class StackError(CliError):
    """A part of the platform did not start, or a part that the others need has stopped."""
