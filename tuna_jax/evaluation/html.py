"""Parts of HTML reports: embedded images, the page around them, percentages."""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

STYLE = """
:root { --ink:#1d2129; --soft:#626875; --line:#e3e6eb; --card:#fff; --page:#f6f7f9;
  --good:#188050; --bad:#c43030; --accent:#2f5fd0; }
* { box-sizing: border-box; }
body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif; }
main { max-width:1180px; margin:0 auto; padding:40px 24px 80px; }
h1 { font-size:30px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em; }
h2 { font-size:19px; margin:44px 0 6px; }
p { margin:4px 0 12px; max-width:74ch; } .soft { color:var(--soft); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(136px,1fr)); gap:12px; margin:24px 0; }
.tile { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 14px; }
.tile b { display:block; font-size:24px; line-height:1.3; white-space:nowrap; font-variant-numeric:tabular-nums; }
.tile span { display:block; font-weight:600; font-size:13px; }
.tile small { color:var(--soft); font-size:12px; }
table { border-collapse:collapse; width:100%; background:var(--card); border:1px solid var(--line);
  border-radius:10px; overflow:hidden; font-size:14px; }
th,td { text-align:left; padding:7px 12px; border-bottom:1px solid var(--line); vertical-align:middle; }
th { font-size:12px; color:var(--soft); font-weight:600; } tr:last-child td { border-bottom:0; }
td.number { font-variant-numeric:tabular-nums; white-space:nowrap; }
.bar { position:relative; width:180px; height:10px; background:#eceef2; border-radius:5px; }
.bar i { position:absolute; inset:0 auto 0 0; background:var(--accent); border-radius:5px; }
.bar u { position:absolute; top:-2px; bottom:-2px; background:rgba(29,33,41,.28); border-radius:2px; }
.bar s { position:absolute; top:-3px; bottom:-3px; width:2px; background:var(--bad); }
.sheet { display:grid; grid-template-columns:repeat(auto-fill,var(--wide,128px)); gap:18px 14px; margin-top:14px; }
figure { margin:0; } figure img { width:auto; height:128px; display:block; border-radius:6px;
  image-rendering:pixelated; box-shadow:0 0 0 1px var(--line); }
figcaption { font-size:12px; line-height:1.35; margin-top:7px; color:var(--soft); }
.right img { box-shadow:0 0 0 3px var(--good); } .wrong img { box-shadow:0 0 0 3px var(--bad); }
.right figcaption::before { content:"✓ "; color:var(--good); font-weight:700; }
.wrong figcaption::before { content:"✗ "; color:var(--bad); font-weight:700; }
td img { width:auto; height:48px; display:block; border-radius:4px; image-rendering:pixelated; }
td.yes { color:var(--good); font-weight:600; } td.no { color:var(--bad); font-weight:600; }
td figure img { height:72px; } td.asked { min-width:180px; max-width:240px; font-size:13px; }
.beside td { font-size:13px; padding:6px 8px; }
.wide { width:100%; background:var(--card); border:1px solid var(--line); border-radius:10px; padding:10px; }
.curves { display:block; max-width:100%; margin:14px 0; border:1px solid var(--line); border-radius:10px; }
.scroll { overflow-x:auto; }
footer { margin-top:56px; font-size:12px; color:var(--soft); border-top:1px solid var(--line); padding-top:14px; }
"""


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def inline(data: bytes, kind: str = "image/png") -> str:
    """A file as a data URL, for pages that must not need any other file."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def whole_page(title: str, body: str) -> str:
    """A page that needs nothing beside it."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def percent(value: float) -> str:
    """A share for people: 98.4 %, 0.02 %."""
    share = 100 * value
    return f"{share:.1f} %" if share >= 1 or share == 0 else f"{share:.2g} %"
