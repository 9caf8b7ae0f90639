"""``python -m dfshield``."""

import os
import sys

status = None
if os.environ.get("DFSHIELD_FORKSERVER"):  # otherwise the import is time lost
    from dfshield.forkserver import ask

    status = ask(sys.argv[1:])
if status is None:
    from dfshield.cli import main

    main()
else:
    sys.exit(status)
