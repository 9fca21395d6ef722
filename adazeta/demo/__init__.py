"""The command ``adazeta demo``: its data, its run and its plot."""
