"""``python -m dfshield``."""

from dfshield.cli import main

main()
