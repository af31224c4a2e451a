"""Failures that a user can do something about; `main` prints them without a traceback.

CliError
├── StackError      a part of the platform did not start or has stopped
├── PlatformAway    none answers (`client`)
└── RequestFailed   the platform refused a request (`client`)
"""


class CliError(Exception):
    """A message for the person at the terminal, with what to do next."""


class StackError(CliError):
    """A part of the platform did not start, or one that all others need has stopped."""
