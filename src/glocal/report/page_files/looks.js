// Lenses over the sample images, nearest images, groups of patches, results.
function lensSection() {
  if (!STORED.length) return;
  const grid = make("div", { class: "lens", style: { "grid-template-columns": `8.5rem repeat(${DATA.samples.length}, 9.2rem)` } });
  const lenses = [["image", "Images"], ["colours", "Patches as colours"], ["foreground", "Foreground only"], ["attention", "Attention"], ["segments", "Groups of patches"]];
  const shown = new Set(["image", "colours", "attention", "segments"]);
  const draw = () => {
    const rows = [];
    for (const [key, title] of lenses.filter(([key]) => shown.has(key)))
      for (const model of key === "image" ? [null] : STORED) if (!model || model[key]) rows.push(...lensRow(key, title, model));
    grid.replaceChildren(...rows);
  };
  draw();
  const toggles = lenses.slice(1).map(([key, title]) => toggle(title, shown.has(key), (on) => { on ? shown.add(key) : shown.delete(key); draw(); }));
  const smooth = toggle("Smooth", false, (on) => grid.classList.toggle("smooth", on));
  section("lenses", "Through the model's eyes", "Patches as colours: the first three principal components of all images' patches, one basis for all, so the same colour is the same content. Attention: where the class token looks, mean over heads.",
    make("div", { class: "stage" }, make("div", { class: "bar" }, ...toggles, smooth), make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Lenses over the sample images" }, grid)));
}

function lensRow(key, title, model) {
  const head = make("div", { class: "rowhead" }, title, model && STORED.length > 1 ? make("div", { class: "quiet" }, model.name) : null);
  const pictures = DATA.samples.map((sample, i) => make("figure", {},
    make("img", { class: key === "image" ? "" : "map", src: key === "image" ? sample.picture : model[key][i], loading: "lazy",
      alt: key === "image" ? sample.name : `${title} of ${sample.name}${model ? ` by ${model.name}` : ""}` }),
    key === "image" ? make("figcaption", { title: sample.name }, sample.label ?? sample.name) : null));
  return [head, ...pictures];
}

function neighbourSection() {
  if (!STORED.length || DATA.collection.names.length < 2) return;
  const holder = make("div", { class: "found" });
  const draw = (m) => holder.replaceChildren(...STORED[m].neighbours.map((found, s) => neighbourLine(DATA.queries[s], found)));
  draw(0);
  const labelled = DATA.collection.labels.some((label) => label !== null);
  section("neighbours", "Nearest images", `Images whose embedding points most nearly in the same direction, among ${DATA.collection.names.length} of ${DATA.collection.of.toLocaleString("en")} images.${labelled ? " A green frame: the same class; a dashed red one: another. The model saw no class." : ""}`,
    make("div", { class: "bar" }, choice("Model", STORED.map((model) => model.name), 0, draw)), holder);
}

function neighbourLine(index, found) {
  const { sheet, labels } = DATA.collection;
  const shot = (i, text, extra, frame) => make("div", { class: `shot ${extra}` }, cell(sheet, i, extra ? 96 : 64, imageName(i), frame), make("p", { title: imageName(i) }, text));
  return make("div", { class: "line", tabindex: 0, role: "group", "aria-label": `Nearest to ${imageName(index)}` },
    shot(index, labels[index] ?? "query", "query", ""),
    ...found.map(([i, cosine]) => shot(i, `${cosine.toFixed(2)} ${labels[i] ?? ""}`, "", labels[index] === null || labels[i] === null ? "" : labels[index] === labels[i] ? "same" : "other")));
}

function clusterSection() {
  if (!STORED.length) return;
  const holder = make("div", { class: "groups" });
  const draw = (m) => {
    const { sheet, examples, images, shares, colours } = STORED[m].clusters;
    let first = 0;
    holder.replaceChildren(...examples.map((count, g) => {
      const cells = Array.from({ length: count }, (_, k) => cell(sheet, first + k, 60, `A patch of ${images[g][k]}`));
      first += count;
      return make("div", { class: "group", style: { "--c": `rgb(${colours[g]})` } }, make("h3", {}, `Group ${g + 1} `, make("span", { class: "quiet" }, `${(100 * shares[g]).toFixed(1)} % of patches`)), make("div", { class: "cells" }, ...cells));
    }));
  };
  draw(0);
  section("groups", "Groups of patches", "Patches of many images put into groups by k-means of their embeddings; each group's most typical patch of eight images, with what lies around it.",
    make("div", { class: "bar" }, choice("Model", STORED.map((model) => model.name), 0, draw)), holder);
}

function evaluationSection() {
  const tables = (DATA.evaluation ?? []).map((t) => ({
    title: `${t.protocol} on ${t.data}`, columns: ["measure", ...t.columns], notes: t.notes,
    rows: t.rows.map((row) => [row.measure, ...row.values.map((v) => v === null ? "–" : v.interval ? `${v.text} (${v.interval[0]} to ${v.interval[1]})` : v.text)]) }));
  if (!tables.length) return;
  section("evaluation", "Evaluation", "", ...tables.map(resultTable));
}

function resultTable(table) {
  const head = make("thead", {}, make("tr", {}, ...table.columns.map((name) => make("th", { scope: "col" }, name))));
  const body = make("tbody", {}, ...table.rows.map((row) => make("tr", {}, ...row.map((text, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, String(text))))));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": table.title }, make("table", {}, make("caption", {}, table.title), head, body),
    ...(table.notes ?? []).map((note) => make("p", { class: "quiet" }, note)));
}

function settingsSection() {
  if (!DATA.settings) return;
  section("settings", "Settings", "", make("details", {}, make("summary", {}, "The resolved configuration of this run"), make("pre", { tabindex: 0, "aria-label": "Configuration" }, DATA.settings)));
}
