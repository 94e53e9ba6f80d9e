"""HTML reports from Jinja2 templates: the loader, and the filters that templates use.

A template is a file `NAME.html.j2` next to the module that renders it, named by its path within the package. It extends
`evaluation/page.html.j2`. Every value is escaped.
"""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from PIL import Image


def render(template: str, **values: Any) -> str:
    """A page as text.

    Args:
        template: its path within the package tuna_jax, such as "sweeps/report_page.html.j2".
        **values: its variables; `title`, and `note` for the footer, are those of `evaluation/page.html.j2`.

    Raises:
        jinja2.TemplateNotFound: there is no such template.
        jinja2.UndefinedError: the template uses a variable that is not given.
    """
    return _environment().get_template(template).render(note=values.pop("note", ""), **values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tuna_jax", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "data_url": data_url, "count": count}
    return environment


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_url(content: bytes | np.ndarray, kind: str = "image/png") -> str:
    """A file's content as a data URL, so that the page needs no other file; pixels become a PNG first."""
    content = png(content) if isinstance(content, np.ndarray) else content
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def percent(value: float) -> str:
    """A proportion as text: 98.4 %, 0.02 %."""
    share = 100 * value
    return f"{share:.1f} %" if share >= 1 or share == 0 else f"{share:.2g} %"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 result, 2 results."""
    return f"{number} {noun}" + ("s" if number != 1 else "")
