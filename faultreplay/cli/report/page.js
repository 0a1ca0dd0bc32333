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
    const room = place.clientWidth - 40;
    spec.config.legend.columns = Math.max(1, Math.floor(room / spec.usermeta.label_px));
    spec.config.legend.labelLimit = Math.min(spec.config.legend.labelLimit, room - 30);
    // `ast`: expressions are interpreted, so that the page's policy need allow no eval.
    const options = {renderer: "svg", actions: false, ast: true, tooltip: {theme: dark.matches ? "dark" : "light"}};
    drawn.push(window.vegaEmbed(place, spec, options).catch((error) => {
      place.textContent = "This picture could not be drawn: " + error.message;
      console.error(error);
    }));
  }
  Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
