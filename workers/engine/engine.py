"""One vLLM server: started once, its weights swapped in place and verified, not restarted for a
new model of the same architecture."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.settings import get_settings
from workers.engine import metrics as engine_metrics
from workers.engine import process as engine_process
from workers.engine.admin import (
    CALL_SECONDS,
    EngineAdmin,
    EngineError,
    EngineStartError,
    EngineTimeout,
)
from workers.engine.architecture import architecture
from workers.engine.process import STOP_SECONDS, ServerProcess
from workers.engine.verify import WeightsVerifier
from workers.models.weights import ModelWeights

log = logging.getLogger(__name__)
POLL_SECONDS = 0.25
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")


class ManagedEngine:
    """Owns a server process, or uses one at an address it does not own. Thread-safe."""

    def __init__(self, port: int, log_name: str, url: str = "", host: str = LOOPBACK) -> None:
        self._owned = not url
        self.url = url or f"http://{LOOPBACK if host in EVERYWHERE else host}:{port}"
        self._host, self._port = host, port
        self._log_name = log_name
        self._admin = EngineAdmin(self.url)
        self._lock = threading.RLock()
        self._process: ServerProcess | None = None
        self._serving: ModelWeights | None = None
        self._architecture: object = None
        self._verifier = WeightsVerifier(self._admin)
        self._max_num_seqs = get_settings().max_num_seqs
        self._was_short_of_memory = False
        self.starts = 0
        """Number of servers started; a swap starts none."""

    @classmethod
    def for_worker(cls) -> "ManagedEngine":
        s = get_settings()
        return cls(s.worker_engine_port, "engine-worker", s.worker_engine_url)

    @classmethod
    def for_inference(cls) -> "ManagedEngine":
        s = get_settings()
        port, host = s.inference_engine_port, s.inference_engine_host
        return cls(port, "engine-inference", s.inference_engine_url, host)

    @property
    def serving(self) -> ModelWeights | None:
        """The verified weights that it serves; None while these are not known."""
        return self._serving

    def alive(self) -> bool:
        """Tell whether a server runs; `check` tells whether it also works."""
        if not self._owned:
            return self._serving is not None
        process = self._process
        return process is not None and process.exit_code is None

    def check(self, seconds: float = CALL_SECONDS) -> None:
        """Raises `EngineError` unless the engine generates a token in `seconds`, or others' tokens
        meanwhile: one with a full queue is slow, and not hung."""
        before = self._admin.tokens_done()
        try:
            self._admin.canary(seconds)
        except EngineTimeout:
            if self._admin.tokens_done() == before:
                raise

    def tokens_done(self) -> float:
        """Tokens that it has read or written; grows as long as it works."""
        return self._admin.tokens_done()

    def idle(self) -> bool:
        """Tell that no request runs or waits."""
        return self._admin.idle()

    def ensure(self, model: ModelWeights) -> None:
        """Serve these weights: start, swap or, for another architecture, start anew.

        Raises:
            EngineStartError: it does not start; its last lines are in the message.
            EngineError: it does not answer, or does not serve what it was given.
        """
        with self._lock:
            fits = self._serving is not None and self._architecture == architecture(model.path)
            if self._owned and not (self._works() and fits):
                self._start_anew(model)
            elif self._serving is None or self._serving.sha256 != model.sha256:
                try:
                    self._swap(model)
                except EngineError as error:
                    self._serving = None
                    if not self._owned:
                        raise
                    log.error("swap failed, starting the engine anew: %s", error)
                    self._start_anew(model)
            if self._serving != model:
                # Read now: a checkpoint's folder may have been pruned when the next one comes.
                self._serving, self._architecture = model, architecture(model.path)

    def ran_out_of_memory(self) -> bool:
        """Tell whether its server died of that; the next one decodes half as many at once."""
        process = self._process
        return self._was_short_of_memory or (process is not None and process.ran_out_of_memory())

    def last_lines(self) -> str:
        """The last lines of its server's log; empty if the server is not ours."""
        return self._process.last_lines() if self._process is not None else ""

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Free the device for a training; on a CPU there is nothing to free."""
        sleeps = self._owned and engine_process.has_gpu()
        if not (sleeps and get_settings().sleep_engine_while_training):
            yield
            return
        self._or_stop(self._admin.sleep)
        try:
            yield
        finally:
            if self.alive():
                self._or_stop(self._admin.wake)

    def _or_stop(self, call: Callable[[], None]) -> None:
        """An engine that fails at this frees the device by ending; the next `ensure` starts it."""
        with self._lock:
            try:
                call()
            except EngineError as error:
                log.warning("stopping the engine: %s", error)
                self.stop()

    def stop(self) -> None:
        """End the server with everything it started; also from beside an `ensure`, which fails."""
        self._end(STOP_SECONDS)

    def kill(self) -> None:
        """`stop` for a server that does not work, and so would not leave when asked to."""
        self._end(patience=0)

    def _end(self, patience: float) -> None:
        process, self._process, self._serving = self._process, None, None
        if process is not None:
            self._was_short_of_memory |= process.ran_out_of_memory()
            process.stop(patience)

    def close(self) -> None:
        """`stop`, for good."""
        self.stop()
        self._admin.close()

    def _works(self) -> bool:
        if not self.alive():
            return False
        try:
            self.check()
        except EngineError as error:
            log.warning("the engine does not answer its canary: %s", error)
            self.kill()
            return False
        return True

    def _start_anew(self, model: ModelWeights) -> None:
        self.stop()
        if self._was_short_of_memory:
            self._max_num_seqs = max(1, self._max_num_seqs // 2)
            self._was_short_of_memory = False
            log.warning("out of memory: from now on %d sequences at once", self._max_num_seqs)
        settings = get_settings().model_copy(update={"max_num_seqs": self._max_num_seqs})
        started = time.monotonic()
        process = self._process = ServerProcess(
            engine_process.command(settings, model.path, self._host, self._port),
            engine_process.environment(),
            engine_process.log_file(settings, self._log_name),
        )
        self.starts += 1
        engine_metrics.STARTS.inc()
        self._wait_ready(process, started + settings.engine_start_timeout_s)
        try:
            self._verifier.verify(model, before=None)
            self._admin.label(model.sha256)
        except EngineError as error:
            self.stop()
            message = f"{error}\nThe engine's last lines:\n{process.last_lines()}"
            raise EngineError(message) from error
        log.info("engine started", extra={"seconds": round(time.monotonic() - started, 1)})

    def _wait_ready(self, process: ServerProcess, deadline: float) -> None:
        """Until the canary answers; the engine's last lines are in the error."""
        while True:
            code = process.exit_code
            if code is not None or time.monotonic() > deadline:
                how = "did not become ready in time" if code is None else f"exited with {code}"
                self.stop()
                # One that was killed may start the next time; one that gave up will not.
                kind = EngineError if code is not None and code < 0 else EngineStartError
                raise kind(f"the engine {how}\nIts last lines:\n{process.last_lines()}")
            if self._admin.healthy():
                return self._admin.canary()
            time.sleep(POLL_SECONDS)

    def _swap(self, model: ModelWeights) -> None:
        started = time.monotonic()
        with engine_metrics.swapping():
            before = self._verifier.probe() if self._serving is not None else None
            self._admin.swap(str(model.path), model.sha256)
            self._verifier.verify(model, before)
        seconds = round(time.monotonic() - started, 3)
        log.info("weights swapped", extra={"model": model.id, "seconds": seconds})
