// Reading the page's data and making its elements. Texts become text nodes and attributes, never markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#4e79a7", "#f28e2b", "#e15759", "#3a9c93", "#59a14f", "#b8930c", "#b07aa1", "#c4677d", "#9c755f", "#7b7f8c", "#2f9ccb", "#7fa12c"];
const HEAT = [[13, 8, 51], [74, 12, 107], [130, 37, 103], [187, 55, 84], [229, 92, 48], [249, 142, 9], [252, 205, 60], [252, 255, 180]];
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "rect", "circle", "g"].includes(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function section(id, title, lead, ...children) {
  const heading = make("h2", {}, title);
  document.getElementById("main").append(
    make("section", { id, "aria-label": title }, heading, lead ? make("p", { class: "lead" }, lead) : null, ...children));
  document.getElementById("nav").append(make("a", { href: `#${id}` }, title));
}

// A labelled choice among names; calls `chosen` with the index.
function choice(label, names, at, chosen) {
  const select = make("select", { onchange: () => chosen(Number(select.value)) },
    ...names.map((name, i) => make("option", { value: i, selected: i === at }, name)));
  return make("label", {}, `${label} `, select);
}

function toggle(text, pressed, changed) {
  const button = make("button", { type: "button", "aria-pressed": String(pressed) }, text);
  button.addEventListener("click", () => {
    const next = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(next));
    changed(next);
  });
  return button;
}

// One cell of a sheet of thumbnails as an element of `size` pixels.
function cell(sheet, number, size, name, extra = "") {
  const column = number % sheet.columns, row = Math.floor(number / sheet.columns);
  return make("div", { class: `cell ${extra}`, role: "img", "aria-label": name, style: {
    width: `${size}px`, height: `${size}px`, "background-image": `url(${sheet.picture})`,
    "background-size": `${sheet.columns * size}px auto`, "background-position": `-${column * size}px -${row * size}px` } });
}

function heat(share) {
  const place = Math.min(1, Math.max(0, share)) * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[low].map((value, i) => Math.round(value + (HEAT[low + 1][i] - value) * (place - low)));
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : size >= 1 ? value.toFixed(2) : value.toFixed(3);
}

function imageName(i) {
  const { names, labels } = DATA.collection;
  return labels[i] ? `${names[i]} (${labels[i]})` : names[i];
}

function header() {
  const verdict = document.getElementById("verdict");
  if (DATA.verdict) verdict.classList.add(DATA.verdict.status);
  else verdict.remove();
  for (const finding of (DATA.verdict?.findings ?? []))
    document.getElementById("findings").append(make("p", { class: `finding ${finding.severity}` },
      make("b", {}, finding.severity), ` ${finding.what} `, make("span", { class: "quiet" }, finding.change)));
  for (const card of (DATA.cards ?? []))
    document.getElementById("cards").append(make("div", {}, make("dt", {}, card.label),
      make("dd", { class: "value" }, card.value), make("dd", { class: "note" }, card.note)));
  if (DATA.table) document.getElementById("table").append(resultTable(DATA.table));
}
