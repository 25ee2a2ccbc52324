"use strict";
const rows = [...document.querySelectorAll(".row")];
const offsets = document.body.dataset.offsets.split(" ");
const all = document.getElementById("all");
function show(row, place) {
  row.style.setProperty("--k", place);
  row.querySelector("input").value = place;
  row.querySelector("output").textContent = offsets[place] + " mm";
}
for (const row of rows) row.querySelector("input").addEventListener("input", (event) => show(row, event.target.value));
if (all) all.addEventListener("input", () => rows.forEach((row) => show(row, all.value)));
document.documentElement.classList.add("scripted");
