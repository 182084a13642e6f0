"""Define the error of wrong input or set-up."""

from __future__ import annotations


class MedReflError(Exception):
    """Wrong input or set-up by the user; the message is one line that names the file, row or key."""
