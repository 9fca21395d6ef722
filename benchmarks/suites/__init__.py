"""One module for each name that the command line takes, with ``rows(options)``."""
