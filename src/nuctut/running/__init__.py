"""The engine room: chapters run with parameters, swept over workers, and rendered as a book."""
