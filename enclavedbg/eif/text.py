"""Text out of an image, for people."""

from __future__ import annotations


def safe(text: str) -> str:
    """The text with what a terminal would act on made visible."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
