# A queue that preempts or cancels a job signals all its processes. The program ends after the piece of work in progress
# and says so (dfshield/core/signals.py); the shell, tee and this Snakemake wait for it. SIGKILL ends all of them.
import contextlib
import signal

shell.prefix("trap '' TERM USR1; set -euo pipefail; ")
with contextlib.suppress(ValueError):  # no main thread, no handlers
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
