"""Style and script of the page. Nothing is fetched: the page's own policy (`POLICY`) forbids it."""

from __future__ import annotations

from typing import Final

POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
)
"""Vega compiles its expressions at run time; nothing may be loaded from anywhere, whatever a script says."""

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--line:#d0d7de;--soft:#57606a;--band:#f6f8fa;--mark:#0969da}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--line:#30363d;--soft:#8d96a0;--band:#161b22;
--mark:#4493f8}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:76rem;margin:1.5rem auto;
padding:0 1rem}p,ul{max-width:60rem}
h1{font-size:1.35rem;overflow-wrap:anywhere;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .3rem}
.answer{border-left:4px solid var(--mark);background:var(--band);padding:.6rem 1rem;margin:1rem 0;max-width:60rem}
.answer p{margin:.35rem 0}.answer .first{font-size:1.1rem;font-weight:600}.warn{border-color:#d55e00}
.soft,figcaption,footer{color:var(--soft);font-size:.87rem}
nav{font-size:.9rem;margin:.6rem 0}nav a{color:var(--mark);margin-right:.9rem;white-space:nowrap}
figure{margin:.2rem 0 0;max-width:60rem}.picture{width:100%;min-height:3rem;color:var(--ink)}
.picture svg{max-width:100%;height:auto;display:block}
.wide{overflow-x:auto}.wide:focus-visible,button:focus-visible{outline:2px solid var(--mark);outline-offset:1px}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums;font-size:.88rem}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.text,th.text{text-align:left}
thead th{border-bottom:2px solid var(--line);vertical-align:bottom;line-height:1.25;padding:0}
thead button{font:inherit;font-weight:600;color:inherit;background:none;border:0;padding:.3rem .55rem;cursor:pointer;
text-align:inherit;line-height:inherit;width:100%}
thead button::after{content:"\\2195";opacity:.35;margin-left:.3em;font-size:.85em}
th[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
th[aria-sort=descending] button::after{content:"\\2193";opacity:1}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper);z-index:1}
td.long{white-space:normal;min-width:16rem}
tr.sub td{color:var(--soft)}tr.sub td:first-child{padding-left:1.7rem}tbody tr:hover td{background:var(--band)}
ul{padding-left:1.2rem}li,code{overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;max-width:60rem}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
#vg-tooltip-element{max-width:90vw}
@media(max-width:30rem){body{padding:0 .6rem}th:first-child,td:first-child{position:static}
dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{@page{size:A4 landscape;margin:12mm}
:root{--ink:#000;--paper:#fff;--line:#bbb;--soft:#444;--band:#f4f4f4;color-scheme:light}
html,body{font-size:11px}body{max-width:none;margin:0;padding:0}.wide{overflow:visible}nav{display:none}
table{font-size:9px}th,td{padding:.15rem .3rem}thead button{padding:.15rem .3rem}thead button::after{content:""}
th:first-child,td:first-child{position:static}tr,figure,.answer{break-inside:avoid}h2{break-after:avoid}
figure{max-width:230mm}}
"""

SCRIPT: Final = """
"use strict";
(function () {
  function key(row, at) {
    const cell = row.cells[at];
    if (!cell || cell.colSpan > 1) return null;
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.textContent.trim() || null;
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, {numeric: true});
  }
  function sort(head, at) {
    const table = head.closest("table");
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    // One body a group: what belongs to a row stays under it. Cells without a value go last, both ways.
    const bodies = Array.from(table.tBodies);
    const keys = new Map(bodies.map((body) => [body, key(body.rows[0], at)]));
    bodies.sort((one, other) => {
      const a = keys.get(one), b = keys.get(other);
      if (a === null || b === null) return (a === null) - (b === null);
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return down ? compare(b, a) : compare(a, b);
    });
    for (const body of bodies) table.append(body);
  }
  for (const head of document.querySelectorAll("thead th")) {
    head.querySelector("button").addEventListener("click", () => sort(head, head.cellIndex));
  }
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const drawn = [];
  for (const [name, spec] of Object.entries(pictures)) {
    const place = document.getElementById("picture-" + name);
    spec.width = "container";
    const options = {renderer: "svg", actions: false, tooltip: {theme: dark.matches ? "dark" : "light"}};
    drawn.push(window.vegaEmbed(place, spec, options).catch((error) => {
      place.textContent = "This picture could not be drawn: " + error.message;
      console.error(error);
    }));
  }
  Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
"""
