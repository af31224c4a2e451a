"""`python -m workers.engine.inference`: serves the promoted model to chat.

Starts its engine at the first promotion, swaps weights at later ones, and says in the `serving` row
what it serves. A canary tells a dead or hanging engine from a healthy one; it is started anew.

No request is answered by two models. The row says `swapping` well before the swap, so that the
coordinator begins no phase meanwhile; what is under way ends on the weights it began with.
"""

import logging
import signal
import threading
import time
import uuid
from contextlib import suppress

from sqlalchemy import delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from shared import log
from shared.db.engine import notify, transaction
from shared.db.tables import Serving
from shared.registry import models as model_store
from shared.settings import get_settings
from workers.engine import metrics as engine_metrics
from workers.engine.admin import EngineError, EngineStartError, SwapError
from workers.engine.engine import ManagedEngine
from workers.models.weights import ModelWeights

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
CHECK_SECONDS = 5.0
"""Between two checks, each of which also renews the `serving` row."""
CANARY_SECONDS = 10.0
"""A check's time. A hang is seen after both at the latest, and the engine started anew."""
ANNOUNCE_SECONDS = 2.0
"""From saying `swapping` to the swap: the coordinator looks every second."""
DRAIN_SECONDS = 60.0
RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 120.0


class Inference:
    def __init__(self, engine: ManagedEngine, stop: threading.Event) -> None:
        self._engine = engine
        self._url = get_settings().inference_advertised_url or engine.url
        self._stop = stop
        self._checked_at = 0.0
        self._failed: str | None = None
        """Id of the model that could not be served last time, so many times in a row."""
        self._failures = 0
        self._retry_at = 0.0

    def look(self) -> None:
        """Serve what is promoted; check that the engine works."""
        try:
            wanted = promoted()
        except DBAPIError as error:
            logger.warning("database away: %s", type(error.orig).__name__)
            wanted = self._engine.serving  # chat goes on, and so do the checks
        if wanted is None:
            return
        if wanted.id == self._failed and time.monotonic() < self._retry_at:
            return  # another model need not wait for the end of this one's
        serving = self._engine.serving
        if serving is None or serving.id != wanted.id:
            self._serve(wanted)
        elif not self._healthy(serving):
            self._say_starting()
            self._engine.kill()
            self._serve(wanted)

    def _healthy(self, serving: ModelWeights) -> bool:
        if not self._engine.alive():
            logger.warning("the engine ended by itself")
            return False
        if time.monotonic() - self._checked_at < CHECK_SECONDS:
            return True
        try:
            self._engine.check(CANARY_SECONDS)
        except EngineError as error:
            logger.warning("engine unhealthy: %s", error)
            return False
        self._checked_at = time.monotonic()
        self._record(serving, "ready")
        return True

    def _serve(self, model: ModelWeights) -> None:
        if self._engine.alive() and self._engine.serving is not None:
            self._record(None, "swapping")
            self._drain()
        else:
            self._say_starting()
        try:
            self._engine.ensure(model)
        except EngineError as error:
            if self._stop.is_set():
                return
            logger.error("cannot serve %s: %s", model.id, error)
            before = self._failures if model.id == self._failed else 0
            delay = min(RETRY_SECONDS * 2**before, MAX_RETRY_SECONDS)
            self._failed, self._failures = model.id, before + 1
            self._retry_at = time.monotonic() + delay
            # Clients see it: nothing of what the engine itself says of the matter.
            ours = isinstance(error, EngineStartError | SwapError)
            why = str(error).splitlines()[0] if ours else "its engine does not work; see its log"
            self._record(None, "failed", why)
            return
        self._failed, self._checked_at = None, time.monotonic()
        self._record(model, "ready")
        logger.info("serving", extra={"model": model.id})

    def _drain(self) -> None:
        """Let chats under way come to their end."""
        self._stop.wait(ANNOUNCE_SECONDS)
        deadline = time.monotonic() + DRAIN_SECONDS
        with suppress(EngineError):
            while not self._engine.idle() and time.monotonic() < deadline:
                if self._stop.wait(0.1):
                    return

    def _say_starting(self) -> None:
        with suppress(DBAPIError):  # where the database is away, the engine is needed no less
            self._record(None, "starting")

    def _record(self, model: ModelWeights | None, state: str, detail: str = "") -> None:
        values = {
            "model_id": uuid.UUID(model.id) if model else None,
            "state": state,
            "detail": detail,
            "updated_at": func.clock_timestamp(),
        }
        with transaction() as session:
            row = insert(Serving).values(engine_url=self._url, **values)
            session.execute(
                row.on_conflict_do_update(index_elements=[Serving.engine_url], set_=values)
            )
            notify(session, f"serving {state}")

    def leave(self) -> None:
        with suppress(DBAPIError), transaction() as session:
            session.execute(delete(Serving).where(Serving.engine_url == self._url))


def promoted() -> ModelWeights | None:
    """The weights to serve: those of the model promoted last."""
    with transaction() as session:
        model = model_store.last_promoted(session)
        return None if model is None else ModelWeights.of(model)


def main() -> None:
    log.configure("inference")
    engine_metrics.serve()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = ManagedEngine.for_inference()
    inference = Inference(engine, stop)
    worker = threading.Thread(target=_work, args=(inference, stop), daemon=True)
    worker.start()
    stop.wait()
    engine.stop()  # also cuts a start short
    inference.leave()


def _work(inference: Inference, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            inference.look()
        except DBAPIError as error:
            logger.warning("database away: %s", type(error.orig).__name__)
        except Exception:
            logger.exception("inference failed; looking again")
        stop.wait(POLL_SECONDS)


if __name__ == "__main__":
    main()
