"""How: timing, cells of a table, comparison with committed rows, and the goals."""
