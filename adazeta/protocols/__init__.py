"""The field's benchmark tasks as data, and their protocol behind one command."""
