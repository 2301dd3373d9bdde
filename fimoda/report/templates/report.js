"use strict";
// Everything is text to this script: no HTML is made of data, and nothing is loaded or sent.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 15;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// ---- numbers and texts

const whole = new Intl.NumberFormat("en");

function formatter(values, signed) {
  // one number of decimals for a column, so that its points stand in line
  const sizes = values.filter((value) => typeof value === "number").map(Math.abs);
  const largest = sizes.reduce((one, other) => Math.max(one, other), 0);
  const sign = (value) => (signed && value > 0 ? "+" : "");
  let text;
  if (sizes.every(Number.isInteger)) text = String;
  else if (largest < 1e-4 || largest >= 1e7) text = (value) => value.toExponential(2);
  else {
    const decimals = Math.max(0, Math.min(7, 2 - Math.floor(Math.log10(largest))));
    text = (value) => value.toFixed(decimals);
  }
  return (value) => (value === null ? "" : (sign(value) + text(value)).replaceAll("-", "\u2212"));
}

const words = (text) => text.match(/[\p{L}\p{N}]+(?:['’_-][\p{L}\p{N}]+)*|[^\p{L}\p{N}]+/gu) || [];
const isWord = (token) => /[\p{L}\p{N}]/u.test(token);

// ---- files

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  // a quote before what a spreadsheet would take for a formula
  const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download(name, lines) {
  const text = "\ufeff" + lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- tables: search, sort, pages, selection, export

function compare(one, other) {
  return typeof one === "number" && typeof other === "number" ? one - other : collator.compare(one, other);
}
const collator = new Intl.Collator("en", { numeric: true });

// columns: {title, of(row), kind, show(value, row, text) -> node}; rows: objects, with a `position` if they can be dropped
function table(place, { caption, file, columns, rows, sorted = null, pinned = null }) {
  const chosen = new Set();
  const droppable = rows.length > 0 && rows[0].position !== undefined;
  let found = rows, page = 0, order = sorted;

  for (const column of columns) {
    const values = (pinned ? [pinned, ...rows] : rows).map(column.of);
    column.isNumber = column.kind === "number" || column.kind === "score";
    if (column.isNumber) column.text = formatter(values, column.kind === "score");
    else column.text = (value) => (value === null || value === undefined ? "" : String(value));
  }
  const searchable = columns.filter((column) => column.kind !== "image");
  const haystack = new Map();
  function hay(row) {
    if (!haystack.has(row)) {
      haystack.set(row, searchable.map((column) => column.text(column.of(row))).join("\n").toLowerCase());
    }
    return haystack.get(row);
  }

  const search = make("input", { type: "search", autocomplete: "off", spellcheck: "false", input: () => { page = 0; update(); } });
  const told = make("span", { role: "status", class: "quiet" });
  const save = make("button", { type: "button", class: "export", click: () => exported() });
  const drop = make("button", { type: "button", class: "drop", click: () => dropped() }, "Rows to drop (CSV)");
  const head = make("tr"), body = make("tbody"), pages = make("div", { class: "pages" });
  const all = make("input", { type: "checkbox", "aria-label": "Select all rows found", change: () => {
    for (const row of found) all.checked ? chosen.add(row) : chosen.delete(row);
    update();
  } });

  head.append(make("th", { scope: "col", class: "tick" }, all));
  for (const column of columns) {
    const numeric = column.isNumber ? "number" : "";
    if (column.kind === "image") {
      head.append(make("th", { scope: "col" }, column.title));
      continue;
    }
    const button = make("button", { type: "button", click: () => {
      const down = order && order.column === column ? !order.down : column.isNumber;
      order = { column, down };
      page = 0;
      update();
    } }, column.title);
    column.head = make("th", { scope: "col", class: numeric }, button);
    head.append(column.head);
  }

  function line(row, isPinned) {
    const tick = make("td", { class: "tick" });
    if (!isPinned) {
      tick.append(make("input", {
        type: "checkbox", "aria-label": `Select ${row.name}`,
        change: (event) => { event.target.checked ? chosen.add(row) : chosen.delete(row); tell(); },
      }));
      tick.firstChild.checked = chosen.has(row);
    }
    const cells = columns.map((column, place) => {
      const value = column.of(row), text = column.text(value);
      const made = make(place === 0 ? "th" : "td", place === 0 ? { scope: "row" } : {});
      if (column.isNumber) made.className = "number";
      else if (text.length < 25) made.className = "short";
      if (column.kind === "score" && value) made.classList.add(value > 0 ? "above" : "below");
      if (column.kind === "sentence") made.className = "sentence";
      column.show ? column.show(made, value, row, text) : made.append(text);
      return made;
    });
    return make("tr", isPinned ? { class: "pinned" } : {}, tick, ...cells);
  }

  function tell() {
    const part = found.length === rows.length ? "" : ` of ${whole.format(rows.length)}`;
    told.textContent = `${whole.format(found.length)}${part} rows` + (chosen.size ? `, ${whole.format(chosen.size)} selected` : "");
    save.textContent = chosen.size ? `Export ${whole.format(chosen.size)} selected (CSV)` : `Export ${whole.format(found.length)} found (CSV)`;
    save.disabled = !found.length && !chosen.size;
    drop.disabled = !chosen.size;
    all.checked = found.length > 0 && found.every((row) => chosen.has(row));
  }

  function update() {
    const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = asked.length ? rows.filter((row) => asked.every((word) => hay(row).includes(word))) : rows.slice();
    if (order) {
      const { column, down } = order;
      const keyed = found.map((row) => [column.of(row), row]);
      const missing = (value) => value === null || value === undefined || value === "";
      keyed.sort(([one], [other]) => missing(one) || missing(other)
        ? missing(one) - missing(other) : (down ? -1 : 1) * compare(one, other));
      found = keyed.map(([, row]) => row);
    }
    for (const column of columns) {
      if (!column.head) continue;
      if (order && order.column === column) column.head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else column.head.removeAttribute("aria-sort");
    }
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    page = Math.min(page, last);
    const lines = found.slice(page * PAGE, (page + 1) * PAGE).map((row) => line(row, false));
    body.replaceChildren(...(pinned ? [line(pinned, true)] : []), ...lines);
    const go = (title, to, name) => make("button", { type: "button", disabled: to < 0 || to > last || to === page, "aria-label": name,
      click: () => { page = to; update(); } }, title);
    pages.replaceChildren();
    if (last > 0) {
      pages.append(go("\u00ab", 0, "First page"), go("\u2039", page - 1, "Previous page"),
        make("span", { class: "quiet" }, `page ${whole.format(page + 1)} of ${whole.format(last + 1)}`),
        go("\u203a", page + 1, "Next page"), go("\u00bb", last, "Last page"));
    }
    tell();
  }

  function exported() {
    const lines = (chosen.size ? inOrder() : found).map((row) => searchable.map((column) => column.of(row)));
    download(`${file}.csv`, [searchable.map((column) => column.title), ...lines]);
  }

  // those that are found as they stand, then those that a search hides
  function inOrder() { return [...new Set([...found.filter((row) => chosen.has(row)), ...chosen])]; }

  function dropped() {
    const lines = [...chosen].sort((one, other) => one.position - other.position).map((row) => [row.position, row.name]);
    download("rows_to_drop.csv", [["position", "row"], ...lines]);
  }

  const tools = make("div", { class: "tools" }, make("label", {}, "Search ", search), told, save, ...(droppable ? [drop] : []));
  const grid = make("table", {}, make("caption", {}, caption), make("thead", {}, head), body);
  place.replaceChildren(tools, make("div", { class: "wide", role: "region", "aria-label": caption, tabindex: "0" }, grid), pages);
  update();
}

// ---- rows of the data

const suspects = new Set(data.suspects), conflicts = new Set(data.conflicts), repeats = new Set(data.repeated);

const rows = data.rows.position.map((position, place) => {
  const marks = [];
  if (suspects.has(place)) marks.push("look at first");
  if (repeats.has(place)) marks.push(conflicts.has(data.rows.group[place]) ? "repeated, targets differ" : "repeated");
  return {
    position, place,
    name: data.rows.name[place],
    target: data.rows.target[place],
    mean: data.rows.mean[place],
    extreme: data.rows.extreme[place],
    own: data.rows.own ? data.rows.own[place] : null,
    group: data.rows.group[place],
    cells: data.rows.cells[place] || null,
    marks: marks.join(", "),
  };
});

const isNumeric = (values) => values.some((value) => typeof value === "number");
const NAME = { title: "row", of: (row) => row.name };
const POSITION = { title: "position", of: (row) => row.position, kind: "number" };
const TARGET = { title: "target", of: (row) => row.target, kind: isNumeric(data.rows.target) ? "number" : "text" };
const MEAN = { title: "mean score", of: (row) => row.mean, kind: "score" };
const EXTREME = { title: "largest score", of: (row) => row.extreme, kind: "score" };
const OWN = { title: "self-influence", of: (row) => row.own, kind: "score" };
const MARKS = { title: "marks", of: (row) => row.marks };

// what a cell shows: with `test`, how it differs from the test row's
function features(test) {
  return data.features.map((feature, j) => {
    const of = (row) => (row.cells ? row.cells[j] : null);
    const other = test ? test.cells[j] : null;
    const known = test && feature.kind === "sentence" ? new Set(words(other || "").map((one) => one.toLowerCase())) : null;
    return {
      title: feature.name, of, kind: feature.kind,
      show(made, value, row, text) {
        const isCompared = test && row !== test;
        if (value === null) {
          made.append(make("span", { class: "quiet" }, row.cells ? "missing" : ""));
          if (isCompared && other !== null) made.classList.add("differs");
          return;
        }
        if (feature.kind === "image") { made.append(make("img", { src: value, alt: `Image of ${row.name}`, class: "thumb" })); return; }
        if (feature.kind === "sentence" && isCompared) {
          for (const token of words(text)) made.append(isWord(token) && known.has(token.toLowerCase()) ? make("mark", {}, token) : token);
          return;
        }
        made.append(text);
        if (!isCompared || value === other) return;
        made.classList.add("differs");
        if (feature.kind !== "number" || other === null) { made.append(make("span", { class: "sr" }, " (differs)")); return; }
        const far = feature.unit ? Math.min(1, Math.abs(value - other) / (2 * feature.unit)) : 0;
        made.style.setProperty("--far", `${Math.round(40 * far)}%`);
        made.append(make("span", { class: "arrow", "aria-hidden": "true" }, value > other ? "\u25b2" : "\u25bc"),
          make("span", { class: "sr" }, value > other ? " (above the test row)" : " (below the test row)"));
      },
    };
  });
}

// ---- one test row

function ofTest(place) {
  const choose = make("select", { change: () => draw(Number(choose.value)) });
  data.tests.forEach((test, z) => choose.append(make("option", { value: z }, test.target === null ? test.name : `${test.name}: ${test.target}`)));
  const back = make("button", { type: "button", click: () => draw(Number(choose.value) - 1) }, "Previous");
  const next = make("button", { type: "button", click: () => draw(Number(choose.value) + 1) }, "Next");
  const grid = make("div");
  place.append(make("div", { class: "tools" }, make("label", {}, "Test row ", choose), back, next), grid);

  function draw(z) {
    const test = data.tests[z];
    choose.value = z;
    back.disabled = z === 0;
    next.disabled = z === data.tests.length - 1;
    const half = test.rows.length / 2;
    const own = { kind: "test row", name: test.name, target: test.target, cells: test.cells, score: null, error: null };
    const lines = test.rows.map((where, rank) => ({
      ...rows[where],
      kind: data.kinds[rank < half ? 0 : 1],
      score: test.scores[rank],
      error: test.errors ? test.errors[rank] : null,
      marks: [rows[where].marks, test.group !== null && rows[where].group === test.group ? "same features as the test row" : ""].filter(Boolean).join(", "),
    }));
    const columns = [
      { ...NAME }, { title: "kind", of: (row) => row.kind }, { title: "score", of: (row) => row.score, kind: "score" },
      ...(test.errors ? [{ title: "error", of: (row) => row.error, kind: "number" }] : []),
      { ...TARGET, show(made, value, row, text) {
        made.append(text);
        if (data.classes && row !== own && own.target !== null && value !== own.target) made.classList.add("differs");
      } },
      ...features(own),
      ...(lines.some((row) => row.marks) ? [{ ...MARKS }] : []),
    ];
    table(grid, { caption: `Training rows for test row ${test.name}, which stands above them`, file: "training_rows_of_test_row", columns, rows: lines, pinned: own });
  }
  draw(0);
}

// ---- all tables

const at = (id) => document.getElementById(id);
const inFull = rows.every((row) => row.cells) ? () => features(null) : () => [];
const optional = () => [...(data.rows.own ? [{ ...OWN }] : []), ...(rows.some((row) => row.marks) ? [{ ...MARKS }] : [])];

ofTest(at("of-test"));
const meanScore = { ...MEAN };
table(at("of-train"), {
  caption: "Training rows, scores over all test rows", file: "training_rows", rows, sorted: { column: meanScore, down: true },
  columns: [{ ...NAME }, { ...POSITION }, { ...TARGET }, meanScore, { ...EXTREME }, ...optional(), ...inFull()],
});
const some = (places) => places.map((place) => rows[place]);
const withCells = (list) => (list.some((row) => row.cells) ? features(null) : []);
if (at("of-suspects")) {
  const list = some(data.suspects);
  table(at("of-suspects"), { caption: "Training rows to look at first", file: "rows_to_look_at", rows: list,
    columns: [{ ...NAME }, { ...POSITION }, { ...TARGET }, { ...OWN }, { ...MEAN }, ...withCells(list)] });
}
if (at("of-repeats")) {
  const list = some(data.repeated);
  const group = { title: "group", of: (row) => row.group, kind: "number" };
  table(at("of-repeats"), { caption: "Training rows with the same features", file: "repeated_rows", rows: list, sorted: { column: group, down: false },
    columns: [{ ...NAME }, { ...POSITION }, group, { ...TARGET }, { title: "targets", of: (row) => (conflicts.has(row.group) ? "differ" : "agree") }, { ...MEAN }, ...withCells(list)] });
}
if (at("of-groups")) {
  const list = data.groups.name.map((name, j) => ({ name, effect: data.groups.effect[j] }));
  table(at("of-groups"), { caption: "Groups of training rows", file: "groups", rows: list,
    columns: [{ title: "group", of: (row) => row.name }, { title: "effect", of: (row) => row.effect, kind: "score" }] });
}

// ---- light and dark

const theme = at("theme"), root = document.documentElement;
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const named = () => { theme.textContent = isDark() ? "Light page" : "Dark page"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; named(); });
theme.hidden = false;
named();
})();
