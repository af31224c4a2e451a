"""A supervisor in a process of its own, to be signalled and killed by `test_supervisor`.

`python supervised.py FOLDER JSON`: JSON lists services as `{"name", "code", …}`, `code` being
Python. Prints `up` once all have started.
"""

import json
import sys
from pathlib import Path
from typing import Any

from services.cli.errors import StackError
from services.cli.machine.supervisor import Service, Stopped, Supervisor, stoppable


def never() -> None:
    raise ConnectionError("nobody answers")


def service(name: str, code: str, ready: bool = True, **options: Any) -> Service:
    command = [sys.executable, "-c", code]
    return Service(name, command, ready=None if ready else never, **options)


def main(folder: Path, services: list[dict[str, Any]]) -> int:
    with stoppable():
        try:
            with Supervisor(folder / "logs", lambda line: print(line, flush=True)) as all_:
                all_.start(*(service(**described) for described in services))
                print("up", flush=True)
                all_.supervise()
        except Stopped as stop:
            print(f"stopped by {stop}", flush=True)
            return 0
        except StackError as error:
            print(error, flush=True)
            return 1
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
