"""QR codes: as a PNG data URI for pages and JSON."""

import segno


def as_data_uri(text: str) -> str:
    """A PNG, dark on light, error level M or better, with its quiet zone, about 300 pixels wide."""
    return segno.make_qr(text, error="m").png_data_uri(scale=6, border=4)
