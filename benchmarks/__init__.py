"""Measurements of speed. `LOG.md` has what came out, with the command beside it."""
