"""The engine room: chapters run with parameters, swept over workers, and rendered as a book."""

import sys

# Reading a notebook imports jsonschema, which builds a grammar of web addresses if it can: seconds
# in every process, for a format that no schema of a notebook asks for. It does without.
sys.modules.setdefault("rfc3987_syntax", None)
