"""The error of wrong input or set-up."""

from __future__ import annotations


class MedReflError(Exception):
    """An error of the user's input or set-up; its message is one line that names the file, row or key."""
