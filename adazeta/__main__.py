"""``python -m adazeta`` is the command ``adazeta``."""

from adazeta.cli import main

raise SystemExit(main())
