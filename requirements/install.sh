#!/bin/sh
# Make .venv with everything one machine needs. Safe to repeat: it returns at once when nothing
# changed. Run from the project's folder; every path is relative, so the folder may hold spaces.
set -eu

LOCK=requirements/embedded.lock
TORCH=2.13.0
STAMP=.venv/.installed
# A venv names its own folder, so a moved checkout is installed again.
KEY="$(cat "$LOCK" pyproject.toml requirements/install.sh | cksum) $(pwd -P)"

if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$KEY" ] && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

# Lock, so that two makes in one checkout do not install over each other.
if command -v flock >/dev/null 2>&1 && [ -z "${FORETHOUGHT_INSTALLING:-}" ]; then
    FORETHOUGHT_INSTALLING=1 exec flock requirements/install.sh sh requirements/install.sh
fi

is_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.11 python3 python
    fi
    for candidate in "$@"; do
        if is_311 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: needs Python 3.11, for which the packages are locked; tried: $*" >&2
    echo "setup: to name yours: make PYTHON=/path/to/python3.11" >&2
    return 1
}

pip() {
    .venv/bin/python -m pip --disable-pip-version-check "$@"
}

if ! is_311 .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python="$(find_python)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "setup: $python has no venv module; on Debian and Ubuntu: apt install python3.11-venv" >&2
        exit 1
    fi
    "$python" -m venv --clear .venv
fi
rm -f "$STAMP"

echo "setup: installing into .venv (about 1 GB to download, some minutes the first time)"
pip install --no-deps --no-compile -r "$LOCK"
if .venv/bin/python -c "import importlib.metadata as m, sys; sys.exit(m.version('torch').split('+')[0] != '$TORCH')" 2>/dev/null; then
    : # already there
elif ! pip install --no-deps --no-compile "torch==$TORCH+cpu"; then
    echo "setup: pip finds no CPU build of torch; taking the package index's own, which is larger and runs on a CPU too"
    pip install --no-compile --constraint "$LOCK" "torch==$TORCH"
fi
# On every core, where pip compiles on one; without it, each process does where Python is told to
# write no bytecode, as in many containers. Some packages hold files that do not compile.
.venv/bin/python -m compileall -qq -j 0 .venv/lib shared services workers || true
pip install --no-deps --no-build-isolation --editable .
printf '%s' "$KEY" > "$STAMP"
echo "setup: done"
