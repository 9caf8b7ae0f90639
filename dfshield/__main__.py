"""``python -m dfshield``."""

import sys

from dfshield.forkserver import ask

status = ask(sys.argv[1:])
if status is None:
    from dfshield.cli import main

    main()
else:
    sys.exit(status)
