"use strict";
const cases = document.querySelector("#case-list");
const status = document.querySelector("#status");
const SVG = "http://www.w3.org/2000/svg";

// Slices of a case: the page shows one of each plane, and a slider exchanges its picture and contours.
for (const plane of document.querySelectorAll(".plane")) {
  const slider = plane.querySelector("input[type=range]");
  if (!slider) continue;
  let slices = null;
  slider.hidden = false;
  slider.addEventListener("input", () => {
    const picture = plane.querySelector("svg");
    const image = picture.querySelector("image");
    const drawn = picture.querySelector("g");
    if (!slices) {
      slices = JSON.parse(plane.querySelector("script").textContent);
      if (image) slices[slider.dataset.start].image = image.getAttribute("href").split(",")[1];
    }
    const slice = slices[slider.value];
    if (image) image.setAttribute("href", "data:image/webp;base64," + slice.image);
    drawn.replaceChildren(...slice.paths.map(([kind, data]) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", kind);
      path.setAttribute("d", data);
      return path;
    }));
    const text = `slice ${slice.number} of ${slider.dataset.total}`;
    plane.querySelector("output").textContent = text;
    picture.setAttribute("aria-label", picture.getAttribute("aria-label").replace(/slice \d+ of \d+$/, text));
    slider.setAttribute("aria-valuetext", text);
  });
}

// What is drawn.
for (const box of document.querySelectorAll("[data-switch]")) {
  box.addEventListener("change", () => document.body.classList.toggle("no-" + box.dataset.switch, !box.checked));
}

const table = document.querySelector("#all-rows");
const structure = document.querySelector("#structure");
const search = document.querySelector("#search");

function filter() {
  const wanted = structure ? structure.value : "";
  const name = search.value.trim().toLowerCase();
  const names = new Map([...cases.children].map((card) => [card.dataset.rank, card.dataset.name.toLowerCase()]));
  let count = 0;
  for (const card of cases.children) {
    card.hidden = !card.dataset.name.toLowerCase().includes(name);
    count += !card.hidden;
  }
  if (table) {
    for (const row of table.tBodies[0].rows) {
      row.hidden = (wanted && row.dataset.structure !== wanted) || !names.get(row.dataset.rank).includes(name);
    }
  }
  const classes = document.body.classList;
  for (const each of [...classes]) if (each.startsWith("only-")) classes.remove(each);
  if (wanted) classes.add("only-" + wanted);
  status.textContent = `${count} of ${cases.children.length} cases`;
}
search.addEventListener("input", filter);
if (structure) structure.addEventListener("change", () => { filter(); sortCards(); });

// Cards follow the order of the table's visible rows; a case without a row keeps its place at the end.
function sortCards() {
  if (!table) return;
  const ranks = new Map();
  for (const row of table.tBodies[0].rows) {
    if (!row.hidden && !ranks.has(row.dataset.rank)) ranks.set(row.dataset.rank, ranks.size);
  }
  const place = (card) => (ranks.has(card.dataset.rank) ? ranks.get(card.dataset.rank) : ranks.size);
  cases.append(...[...cases.children].sort((a, b) => place(a) - place(b) || a.dataset.rank - b.dataset.rank));
}

if (table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value ?? cell.textContent.trim().replace("–", "");
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is unknown comes last in either direction
      const numeric = !isNaN(x) && !isNaN(y);
      return (up ? 1 : -1) * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    sortCards();
    status.textContent = `Sorted by ${head.textContent.trim()}, ${up ? "ascending" : "descending"}`;
  }));
}

// A link from the table opens the case that it leads to.
addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target && target.matches(".case")) target.open = true;
});
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll(".case:not([open])")];
  closed.forEach((card) => { card.open = true; });
});
addEventListener("afterprint", () => closed.forEach((card) => { card.open = false; }));
