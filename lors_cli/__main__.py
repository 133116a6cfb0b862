"""``python -m lors_cli``, the same as ``lors``."""

from lors_cli.cli import main

main()
