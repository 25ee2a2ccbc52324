"use strict";
const table = document.getElementById("lines");
const body = table.tBodies[0];
const value = (row, column) => row.cells[column].dataset.v;
function sort(head) {
  const column = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  const rows = [...body.rows];
  rows.sort((a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const [p, q] = [Number(x), Number(y)];
    const order = Number.isNaN(p) || Number.isNaN(q) ? x.localeCompare(y) : p - q;
    return up ? order : -order;
  });
  for (const each of head.parentNode.cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows);
}
for (const head of table.tHead.rows[0].cells) {
  head.querySelector("button").addEventListener("click", () => sort(head));
}
document.documentElement.classList.add("scripted");
