"""HTML bytes to plain text: the main content of a page, its code blocks as they were written.

The work is Resiliparse's: it leaves out navigation, comments and footers and keeps the white space of `<pre>`, which
the extractors that were made for prose do not. This module decides the character set and what counts as empty. It
makes no Markdown: headings, links and fences are not marked.
"""

import codecs
import re

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META_CHARSET = re.compile(rb"<meta[^>]{0,512}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", re.IGNORECASE)
_META_WINDOW = 1024  # bytes that the WHATWG encoding-sniffing algorithm looks at (HTML standard, 13.2.3.2)


def charset_of(body: bytes, declared: str | None = None, *, html: bool = True) -> str:
    """The Python codec for `body`: byte order mark, then the HTTP header's charset, then `<meta>`, then detection.

    Labels mean what WHATWG says they mean in browsers (`iso-8859-1` is windows-1252). Unknown labels are passed over.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return name
    meta = _META_CHARSET.search(body[:_META_WINDOW]) if html else None
    for label in (declared, meta.group(1).decode("ascii") if meta else None):
        codec = _codec(label)
        # A page that names UTF-16 in ASCII letters is not UTF-16 (same standard, "changing the encoding").
        if codec and not (codec.startswith("utf-16") and meta and label != declared):
            return codec
    return _codec(detect_encoding(body)) or "utf-8"


def decode(body: bytes, declared: str | None = None, *, html: bool = True) -> tuple[str, str]:
    """(text, codec). Bytes that the codec refuses become U+FFFD, which a cleaning rule counts."""
    codec = charset_of(body, declared, html=html)
    return bytes_to_str(body, codec, fallback_encodings=()), codec


def html_to_text(html: str) -> str:
    """The main content as text; the whole visible text where no main content is found; "" for a page without text.

    `<pre>` keeps indentation, tabs and blank lines. Comment sections are left out.
    """
    html = html.replace("\0", "\ufffd")
    text = extract_plain_text(html, main_content=True, comments=False)
    if not text.strip():
        text = extract_plain_text(html, main_content=False)
    return text.strip("\n") if text.strip() else ""


def _codec(label: str | None) -> str | None:
    if not label:
        return None
    try:
        codecs.lookup(label)
        return map_encoding_to_html5(label, fallback_utf8=False)
    except (LookupError, ValueError, TypeError):
        return None
