"""``python -m adazeta.cli`` is the command ``adazeta``: what torchrun starts."""

from adazeta.cli import main

raise SystemExit(main())
