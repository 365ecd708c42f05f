"""Self-contained HTML pages: templates with inlined scripts and styles, and a content security policy for these alone."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = '<meta name="generator" content="GlyphLM">'  # marks files that may be overwritten
DASH = "–"
# Not allowed in HTML: control characters and lone surrogates.
UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@cache
def _inlined(name: str) -> str:
    """The text of a script or style sheet."""
    return (TEMPLATES / name).read_text(encoding="utf-8").strip()


def policy(script: str, live: bool = False) -> str:
    """The content security policy: the page's own script (by its hash), inline styles and pictures, no network.

    `live` allows requests to the server of the page.
    """
    digest = base64.b64encode(hashlib.sha256(_inlined(script).encode()).digest()).decode()
    asks = "; connect-src 'self'" if live else ""
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'{asks}"


def render(template: str, values: Mapping[str, Any], script: str, live: bool = False, **filters: Any) -> str:
    """Render a template, which also has `script`, `policy`, `generator` and the filters `data`, `image` and `inline`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, finalize=_writable, trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters.update(filters, data=_data, image=image, inline=_inlined)
    page = environment.get_template(template)
    return page.render(values, script=script, policy=policy(script, live), generator=GENERATOR)


def image(data: bytes | str, kind: str) -> str:
    """A picture as a data URL."""
    payload = data.encode() if isinstance(data, str) else data
    return f"data:image/{kind};base64,{base64.b64encode(payload).decode()}"


def _data(value: Any) -> str:
    """JSON for a <script type="application/json">, with `<` escaped, which could end that element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _writable(value: Any) -> Any:
    """Replace missing values by a dash, and characters that HTML does not allow; applied to every value before escaping."""
    if value is None or isinstance(value, jinja2.Undefined):
        return DASH
    if isinstance(value, str) and not hasattr(value, "__html__"):  # output of a macro is safe already
        return UNWRITABLE.sub(_stand_in, value)
    return value


def _stand_in(match: re.Match[str]) -> str:
    """Unicode's symbol for an ASCII control character, else the replacement character."""
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"
