"""Python imports this first in every process whose PYTHONPATH has this folder."""

import os

if "CHAOS_FOLDER" in os.environ:
    from tools.chaos import points

    points.install()
