"""The frame of the report: head, style, table of contents. Light, dark, narrow and printed."""

from __future__ import annotations

from collections.abc import Sequence

from tisdpo_jax.evaluation import heatmap
from tisdpo_jax.evaluation._html import escape


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole document from (anchor, heading, HTML) sections. The policy in its head forbids script and network."""
    links = "".join(f'<li><a href="#{anchor}">{escape(heading)}</a></li>' for anchor, heading, _ in sections)
    body = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(heading)}</h2>\n'
        f"{content}\n</section>"
        for anchor, heading, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{heatmap.style_sheet()}</style>\n</head>\n<body>\n"
        f"<header><h1><bdi>{escape(title)}</bdi></h1>\n{lead}\n"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


_STYLE = """
:root{--page:#f6f7f9;--paper:#fff;--ink:#16181d;--quiet:#5b6270;--line:#d9dce3;--grid:#e3e6eb;
--soft:#f5f6f8;--link:#1f5fae;--good:#0b6b3a;--bad:#a3281c;color-scheme:light dark}
@media screen and (prefers-color-scheme:dark){:root{
--page:#111317;--paper:#191b20;--ink:#eceef2;--quiet:#a4abb8;--line:#3a3e47;
--grid:#2c3038;--soft:#22252b;--link:#8cbcf5;--good:#6fd39b;--bad:#ff9a8c;
--c0:#5fb2f0;--c1:#f2945c;--c2:#54c79f;--c3:#e293c0;--c4:#b4bac6;--c5:#d9bd4a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem clamp(1rem,4vw,2.5rem) 4rem;max-width:76rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:clamp(1.4rem,4vw,1.8rem);line-height:1.2;margin:0 0 .8rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .9rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:0 0 .4rem}
summary h3{display:inline}
h4{font-size:.9rem;margin:0 0 .3rem;color:var(--quiet)}
a{color:var(--link)}
summary{cursor:pointer;padding:.3rem 0}
code,pre{font:.86em/1.5 ui-monospace,"Cascadia Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
pre{margin:0;padding:1rem 1.25rem;background:var(--paper);border:1px solid var(--line);border-radius:10px;overflow:auto;
max-height:32rem;overflow-wrap:normal}
nav ul{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.8rem 0 0;padding:0;font-size:.85rem}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,13rem),1fr));gap:.7rem 1.5rem;margin:0}
.facts dt{font-size:.82rem;color:var(--quiet)}
.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:0 0 1.2rem}
main>section>.scroll,details>.scroll,.card,.chart{background:var(--paper);
border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%}
caption{text-align:start;font-weight:600;padding:.8rem .8rem .4rem}
.numbers th,.numbers td,.words th,.words td{
padding:.45rem 1rem;text-align:end;font-weight:400;border-top:1px solid var(--line);
vertical-align:top}
.numbers{font-variant-numeric:tabular-nums}
.numbers th,.numbers td{white-space:nowrap;padding:.45rem .8rem}
.numbers thead th{white-space:normal;min-width:4.2rem}
.compare{table-layout:fixed;min-width:40rem}
.numbers thead th,.words thead th{border-top:0;font-size:.82rem;color:var(--quiet);vertical-align:bottom}
.numbers th:first-child,.words th,.words td{text-align:start}
.numbers tbody th{font-weight:600}
.numbers code{font-weight:400;white-space:normal}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}
.card{padding:1rem 1.25rem;margin:0 0 1.2rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;text-align:start}
.prompt{color:var(--quiet);margin-bottom:.9rem}
.note{font-size:.82rem;margin-top:.25rem}.quiet{color:var(--quiet)}
.headline{font-size:.95rem;margin:.5rem 0 0}
.scores{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));
gap:.4rem 2.5rem;margin:0 0 .4rem}
.score p{margin:0 0 .15rem;font-weight:600}
.bar{display:grid;grid-template-columns:7.5rem 1fr 4.5rem;gap:.8rem;align-items:center;font-size:.9rem}
.bar svg{display:block}.bar b{font-variant-numeric:tabular-nums}
.track{stroke:var(--grid)}.fill{stroke:var(--c4,#6b6b6b)}.last{stroke:var(--c2,#007a5a)}
.answers{table-layout:fixed;min-width:48rem}
.answers th,.answers td{padding:.5rem .8rem;text-align:start;font-weight:400;
vertical-align:top;border-top:1px solid var(--line);font-size:.9rem;line-height:1.42}
.answers thead th{font-weight:600;color:var(--ink);font-size:.9rem;border-top:0;padding-block:.5rem .3rem}
.answers th:first-child{width:17%}.answers tbody th{color:var(--quiet)}
.answers caption{position:absolute;clip-path:inset(50%);height:1px;padding:0}
#samples h2{margin-top:.4rem;padding-top:.6rem;font-size:1.1rem;margin-bottom:.5rem}
.sides{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:.9rem 1.5rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1rem;margin:.5rem 0 1rem}
.chart{margin:0;padding:.8rem .9rem .6rem;min-width:0}
.chart figcaption{display:flex;flex-wrap:wrap;align-items:baseline;gap:.1rem 1rem;margin-bottom:.4rem;font-size:.9rem}
.chart svg{display:block;color:var(--quiet)}
.chart .key{font-size:.82rem;color:var(--quiet);white-space:nowrap}
.chart .key svg{display:inline;vertical-align:middle}
@media (max-width:40rem){.numbers th,.numbers td,.words th,.words td{padding:.4rem .5rem;font-size:.86rem}
.numbers thead th{min-width:0}.compare{table-layout:auto;min-width:0}.compare th,.compare td{white-space:normal}
.facts{grid-template-columns:1fr 1fr}.card{padding:.8rem .9rem}}
@media print{body{background:#fff;padding:0;font-size:11pt}nav{display:none}.card,.chart,.scroll,tr{
break-inside:avoid-page}
pre{max-height:none;white-space:pre-wrap}
.scroll{overflow:visible}.numbers{font-size:8.5pt}.compare{font-size:10pt}h2,summary{break-after:avoid-page}
.numbers th,.numbers td{padding:.3rem .4rem}.sides{grid-template-columns:1fr 1fr}}
"""
