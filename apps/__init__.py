"""One thin program per job. Run from the repository's root: `python -m apps.NAME config=FILE key=value ...`.

Not packaged: Meta Lingua has a top-level `apps` too, and a regular package (this file) wins over a namespace.
"""
