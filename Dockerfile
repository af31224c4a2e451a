# One file, an image a role: docker build --target api|vllm|trl|cpu .
#
#   api   services, loop, migrations; no ML library
#   vllm  workers with an engine, inference, and training beside an engine on the same GPU
#   trl   a worker that only trains; it needs no vLLM
#   cpu   everything in the environment that `make setup` makes, for the demo without a GPU
#
# What a container runs is up to its command; docker-compose.yml and k8s/ name them. Locks are made
# by requirements/lock.py. Tags, not digests: name a digest where you build for others.

# --- what all have in common ----------------------------------------------------------------------

FROM scratch AS source
# A checkout may be its owner's alone to read (umask 077), and containers run as another user.
COPY --chmod=755 pyproject.toml README.md LICENSE /
COPY --chmod=755 shared /shared
COPY --chmod=755 services /services
COPY --chmod=755 workers /workers
COPY --chmod=755 configs /configs

FROM python:3.11-slim-trixie AS python
# The same owner of volumes in every image, whichever mounts one first.
RUN groupadd --gid 10001 forethought \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /cache forethought \
    && install -d -o forethought -g forethought /models
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 \
    HOME=/cache FORETHOUGHT_MODEL_STORE=/models
WORKDIR /app

# --- api ------------------------------------------------------------------------------------------

FROM python AS api
COPY requirements/api.lock requirements/
RUN pip install --no-deps --require-hashes -r requirements/api.lock
COPY --from=source / .
# Without an index: it fails here, not at a user's, when the lock lacks what the project asks for.
RUN pip install --no-index --no-build-isolation --editable ".[hub,otel]"
USER 10001:10001
# uvicorn's own variables. Open streams get 20 s at a stop, of the 30 s that a container has.
ENV UVICORN_HOST=0.0.0.0 UVICORN_PORT=8000 UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN=20 \
    UVICORN_ACCESS_LOG=false UVICORN_PROXY_HEADERS=false \
    UVICORN_HTTP=shared.web.http_protocol:BoundedProtocol
EXPOSE 8000
# Whether the database answers is for /readyz and who routes; a restart does not bring it back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["uvicorn", "services.coordinator.app:app"]

# --- trl ------------------------------------------------------------------------------------------

FROM python AS trl
# Triton compiles what launches its kernels.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/trl.lock requirements/
RUN pip install --no-deps --require-hashes -r requirements/trl.lock
COPY --from=source / .
RUN pip install --no-index --no-build-isolation --editable ".[trl]"
USER 10001:10001

# --- cpu ------------------------------------------------------------------------------------------

FROM python AS cpu
# vLLM's kernels for CPUs ask for it.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/cpu.lock requirements/
# Torch's CPU build is there and not on PyPI. Whatever else it may have, the hashes choose.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --require-hashes -r requirements/cpu.lock
COPY --from=source / .
RUN pip install --no-index --no-build-isolation --editable .
USER 10001:10001

# --- vllm -----------------------------------------------------------------------------------------

FROM vllm/vllm-openai:v0.32.0 AS vllm
RUN groupadd --gid 10001 forethought \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /cache forethought \
    && install -d -o forethought -g forethought /models
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_BREAK_SYSTEM_PACKAGES=1 \
    HOME=/cache FORETHOUGHT_MODEL_STORE=/models
WORKDIR /app
COPY requirements/vllm.lock requirements/
RUN python3 -m pip install --no-deps --require-hashes -r requirements/vllm.lock
COPY --from=source / .
RUN python3 -m pip install --no-index --no-build-isolation --editable ".[vllm,hub,trl,judge]"
USER 10001:10001
# vLLM's image starts a server of its own.
ENTRYPOINT []
