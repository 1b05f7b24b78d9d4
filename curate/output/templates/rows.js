"use strict";
// The table of rows: filtered, sorted and opened; its state is the address, so that it can be linked.
const rows = JSON.parse(document.getElementById("rows-data").textContent);
const PAGE = 50;
const NUMBERS = new Set(["score", "influence", "error"]); // the highest first
const byId = (id) => document.getElementById(id);
const table = byId("rows");
const body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
const fields = ["q", "is", "label"].map(byId).filter(Boolean);
const number = new Intl.NumberFormat("en");
for (const row of rows)
  row.all = [row.row, row.label, ...row.columns.flat()].join("\n").toLowerCase();
const missing = (key) => rows.every((row) => row[key] === null);
const hidden = new Set(["influence", "error", "label"].filter(missing));
if (!rows.some((row) => row.text || row.picture)) hidden.add("text");
const keys = heads.map((head) => head.dataset.key).filter((key) => !hidden.has(key));
for (const head of heads) head.hidden = hidden.has(head.dataset.key);

let sort = { key: "rank", down: false };
let shown = PAGE;
let open = new Set();

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function signed(value, digits) {
  if (value === null) return "–";
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
}

function cell(row, key) {
  if (key === "row") {
    const button = element("button", { type: "button", textContent: number.format(row.row) });
    button.setAttribute("aria-expanded", open.has(row.row));
    button.setAttribute("aria-label", `row ${row.row}, details`);
    button.addEventListener("click", () => toggle(row.row));
    return element("th", { scope: "row" }, button);
  }
  if (key === "text") {
    const made = element("td", { className: "content" });
    if (row.picture) made.append(picture(row));
    made.append(element("bdi", { textContent: row.stored ? row.text : "not stored here" }));
    return made;
  }
  if (key === "label")
    return element("td", { className: "word" }, element("bdi", { textContent: row.label ?? "–" }));
  if (key === "kept")
    return element("td", {
      className: row.kept ? "is-kept" : "is-dropped",
      textContent: row.kept ? "kept" : "dropped",
    });
  const texts = {
    rank: number.format(row.rank),
    score: signed(row.score, 2),
    influence: signed(row.influence, 2),
    error: row.error === null ? "–" : row.error.toFixed(2),
  };
  return element("td", { className: key, textContent: texts[key] });
}

function picture(row) {
  const image = element("img", { src: row.picture, alt: "", loading: "lazy" });
  image.className = row.heat ? "heat small" : "picture small";
  image.addEventListener("load", () => {
    image.classList.toggle("strip", image.naturalWidth > 3 * image.naturalHeight);
  });
  return image;
}

function details(row) {
  const list = element("dl");
  for (const [name, text] of row.columns)
    list.append(
      element("div", {}, element("dt", { textContent: name }),
        element("dd", {}, element("bdi", { textContent: text }))));
  const inside = element("div", { className: "details" });
  if (row.picture) inside.append(picture(row));
  inside.append(element("p", { textContent: row.why }));
  if (row.stored) inside.append(list);
  else inside.append(element("p", { textContent: "The content of this dropped row is not stored." }));
  if (row.more) inside.append(element("p", { textContent: `and ${row.more} more columns` }));
  const made = element("td", { colSpan: keys.length }, inside);
  return element("tr", { className: "opened" }, made);
}

function compare(a, b) {
  const [x, y] = [a[sort.key], b[sort.key]];
  if (x === y) return a.rank - b.rank;
  if (x === null) return 1;
  if (y === null) return -1;
  const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return sort.down ? -order : order;
}

function matching() {
  const words = byId("q").value.toLowerCase().split(/\s+/).filter(Boolean);
  const is = byId("is").value;
  const label = byId("label") ? byId("label").value : "";
  return rows.filter(
    (row) =>
      words.every((word) => row.all.includes(word)) &&
      (!is || row.kept === (is === "kept")) &&
      (!label || row.label === label));
}

function draw() {
  const matches = matching().sort(compare);
  const last = Math.max(-1, ...matches.map((row, place) => (open.has(row.row) ? place : -1)));
  const visible = matches.slice(0, Math.max(shown, last + 1));
  body.replaceChildren(
    ...visible.flatMap((row) => {
      const line = element("tr", {}, ...keys.map((key) => cell(row, key)));
      line.dataset.row = row.row;
      return open.has(row.row) ? [line, details(row)] : [line];
    }));
  byId("found").textContent = `${number.format(matches.length)} of ${number.format(rows.length)} rows`;
  byId("more").hidden = visible.length >= matches.length;
  for (const head of heads) {
    if (head.dataset.key === sort.key)
      head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function remember() {
  const state = new URLSearchParams();
  for (const field of fields) if (field.value) state.set(field.id, field.value);
  if (sort.key !== "rank" || sort.down) state.set("sort", (sort.down ? "-" : "") + sort.key);
  if (open.size) state.set("row", [...open].join(","));
  history.replaceState(null, "", `#${state}`);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const field of fields) field.value = state.get(field.id) ?? "";
  for (const field of fields) if (field.selectedIndex === -1) field.value = "";
  const [, down, key] = /^(-?)(\w+)$/.exec(state.get("sort") ?? "rank") ?? [];
  sort = keys.includes(key) ? { key, down: Boolean(down) } : { key: "rank", down: false };
  open = new Set((state.get("row") ?? "").split(",").filter(Boolean).map(Number));
  shown = PAGE;
  draw();
  const first = [...open][0];
  const line = first === undefined ? null : body.querySelector(`tr[data-row="${first}"]`);
  if (line) {
    line.scrollIntoView({ block: "center" });
    line.querySelector("button").focus({ preventScroll: true });
  }
}

function toggle(row) {
  if (!open.delete(row)) open.add(row);
  draw();
  remember();
  body.querySelector(`tr[data-row="${row}"] button`).focus();
}

for (const head of heads)
  head.firstElementChild.addEventListener("click", () => {
    const { key } = head.dataset;
    sort = { key, down: sort.key === key ? !sort.down : NUMBERS.has(key) };
    draw();
    remember();
  });
for (const field of fields)
  field.addEventListener("input", () => {
    shown = PAGE;
    open.clear();
    draw();
    remember();
  });
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("more").addEventListener("click", () => {
  shown += 4 * PAGE;
  draw();
});
addEventListener("hashchange", recall);
recall();
