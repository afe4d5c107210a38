"""QR codes: as a PNG data URI for pages and JSON, as text for terminals."""

import io

import segno


def as_data_uri(text: str) -> str:
    """A PNG, dark on light, error level M or better, with its quiet zone, about 300 pixels wide."""
    return segno.make_qr(text, error="m").png_data_uri(scale=6, border=4)


def as_terminal(text: str) -> str:
    """The same with block characters."""
    out = io.StringIO()
    segno.make_qr(text, error="m").terminal(out, border=2, compact=True)
    return out.getvalue()
