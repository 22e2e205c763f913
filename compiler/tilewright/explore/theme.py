"""Colours and shapes of pages and pictures, for light and for dark.

Pages follow JupyterLab's theme, VS Code's, or what the reader's system prefers. Amounts are shown
by one hue and by length; categories take hues that colour-blind people can tell apart (Okabe and
Ito's), and always have a label or a shape of their own as well.
"""

from __future__ import annotations

LIGHT = """\
--tw-fg:#1f2328;--tw-dim:#57606a;--tw-bg:#ffffff;--tw-soft:#f3f5f7;--tw-line:#d0d7de;
--tw-accent:#0b62b0;--tw-cost:#d55e00;--tw-mark:#fff1c2;--tw-markline:#b58900;
--tw-c0:#0072b2;--tw-c1:#b35900;--tw-c2:#00795a;--tw-c3:#a3477d;--tw-c4:#2f7fb0;--tw-c5:#7a6a00;
--tw-kw:#8a1a6b;--tw-str:#0a5f38;--tw-com:#626b75;--tw-num:#0b52a0;--tw-fun:#8a3f00;"""
DARK = """\
--tw-fg:#e6edf3;--tw-dim:#9ba6b2;--tw-bg:#15191f;--tw-soft:#20262e;--tw-line:#3a434e;
--tw-accent:#6cb2f5;--tw-cost:#f08a3c;--tw-mark:#43391a;--tw-markline:#e0b64a;
--tw-c0:#56b4e9;--tw-c1:#e69f00;--tw-c2:#1fbf8f;--tw-c3:#dd8fc0;--tw-c4:#8cc8f0;--tw-c5:#d8cd4a;
--tw-kw:#e59ad0;--tw-str:#7fd6a4;--tw-com:#96a1ad;--tw-num:#8cc2ff;--tw-fun:#f0b27a;"""

IN_DARK = (
    '[data-jp-theme-light="false"]',
    ".vscode-dark",
    ".vscode-high-contrast:not(.vscode-high-contrast-light)",
)
IN_LIGHT = ('[data-jp-theme-light="true"]', ".vscode-light", ".vscode-high-contrast-light")

PICTURES = """\
svg.tw-svg{font:11px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
svg.tw-svg text{fill:var(--tw-fg)}
.tw-svg .dim{fill:var(--tw-dim)}
.tw-svg .name{font-weight:600}
.tw-svg .on{paint-order:stroke;stroke:var(--tw-bg);stroke-width:4px;stroke-linejoin:round}
.tw-svg .step{fill:var(--tw-bg);stroke:var(--tw-dim)}
.tw-svg .cost{fill:var(--tw-cost)}
.tw-svg .bar{fill:var(--tw-cost)}
.tw-svg .value{fill:var(--tw-soft);stroke:var(--tw-line)}
.tw-svg .host{fill:var(--tw-soft);stroke:var(--tw-dim);stroke-dasharray:4 3}
.tw-svg .edge{fill:none;stroke:var(--tw-dim);stroke-width:1.2}
.tw-svg .tip{fill:var(--tw-dim)}
.tw-svg .group{fill:none;stroke:var(--tw-accent);stroke-dasharray:6 4;stroke-width:1.4}
.tw-svg .grouptext{fill:var(--tw-accent);font-weight:600}
.tw-svg .grid{stroke:var(--tw-line);stroke-width:1}
.tw-svg .axis{stroke:var(--tw-dim);stroke-width:1}
.tw-svg .roof{fill:none;stroke:var(--tw-fg);stroke-width:1.6}
.tw-svg .level{fill:none;stroke:var(--tw-dim);stroke-width:1.2;stroke-dasharray:5 4}
.tw-svg .live{fill:none;stroke:var(--tw-fg);stroke-width:1.4}
.tw-svg .point{fill:var(--tw-cost);fill-opacity:.75;stroke:var(--tw-fg)}
.tw-svg .least{fill:none;stroke:var(--tw-accent);stroke-width:1.8}
""" + "".join(
    f".tw-svg .c{k}{{fill:var(--tw-c{k});fill-opacity:.35;stroke:var(--tw-c{k})}}\n"
    f".tw-svg .s{k}{{fill:var(--tw-c{k})}}\n"
    for k in range(6)
)


def variables(scope: str) -> str:
    """Rules that give the colours to the elements of a scope."""
    dark = ",".join(f"{where} {scope}" for where in IN_DARK)
    light = ",".join(f"{where} {scope}" for where in IN_LIGHT)
    return (
        f"{scope}{{{LIGHT}}}\n@media (prefers-color-scheme:dark){{{scope}{{{DARK}}}}}\n"
        f"{light}{{{LIGHT}}}\n{dark}{{{DARK}}}\n"
    )


def document(svg: str) -> str:
    """A picture as a file of its own, which follows what the reader's system prefers."""
    style = (
        f"<style>{variables('svg.tw-svg')}{PICTURES}svg.tw-svg{{background:var(--tw-bg)}}</style>"
    )
    start = svg.index(">") + 1
    head = svg[: start - 1]
    if "xmlns=" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>{style}{svg[start:]}\n'
