"""The public ops: check the arguments, register with torch, hand over to a backend."""
