"""QR codes: as a PNG data URI for JSON, as SVG for pages, as text for a terminal."""

import io

import segno


def as_data_uri(text: str) -> str:
    """A PNG, dark on light, error level M or better, with its quiet zone, about 300 pixels wide."""
    return segno.make_qr(text, error="m").png_data_uri(scale=6, border=4)


def as_svg(text: str) -> str:
    """The same as an SVG element, black on whatever is behind it, for a page whose policy allows no data URI."""
    return segno.make_qr(text, error="m").svg_inline(border=4, omitsize=True)


def as_text(text: str) -> str:
    """For a terminal: dark on light, whatever colours it has, two modules in a character."""
    drawing = io.StringIO()
    segno.make_qr(text, error="m").terminal(drawing, border=4, compact=True)
    return drawing.getvalue()
