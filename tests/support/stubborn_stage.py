"""A stage that works for ever, and does not leave when it is asked to."""

import signal
import time

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
