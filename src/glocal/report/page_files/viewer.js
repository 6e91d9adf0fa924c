// The patch viewer: a patch of one image, and how alike every patch of the others is, by two models side by side.
const SIDE = 336;
const STRONGEST = 5;

const STORED = DATA.models.map((model) => {
  const text = atob(model.patches), values = new Int8Array(text.length);
  for (let i = 0; i < text.length; i++) values[i] = text.charCodeAt(i);
  const count = model.grid[0] * model.grid[1], lengths = new Float64Array(values.length / model.directions);
  for (let p = 0; p < lengths.length; p++) {
    let sum = 0;
    for (let d = 0; d < model.directions; d++) sum += values[p * model.directions + d] ** 2;
    lengths[p] = Math.sqrt(sum);
  }
  return { ...model, values, count, lengths };
});

// Cosine of one patch with every patch of every sample: Float64Array of samples x patches. Python computes the same bits.
function similarities(model, sample, patch) {
  const { values, directions, lengths, count } = STORED[model], asked = (sample * count + patch) * directions;
  const found = new Float64Array(lengths.length), own = lengths[sample * count + patch];
  for (let p = 0; p < found.length; p++) {
    let product = 0;
    for (let d = 0; d < directions; d++) product += values[asked + d] * values[p * directions + d];
    const below = lengths[p] * own;
    found[p] = below > 0 ? product / below : 0;
  }
  return found;
}

function viewerSection() {
  if (!STORED.length) return;
  const images = DATA.samples.map((sample) => { const image = new Image(); image.src = sample.picture; return image; });
  const state = { sample: 0, x: 0.5, y: 0.5, models: STORED.length > 1 ? [0, 1] : [0] };
  const ask = make("canvas", { id: "ask", width: SIDE, height: SIDE, tabindex: 0, role: "application" });
  const told = make("p", { class: "quiet", "aria-live": "polite", id: "told" });
  const strip = make("div", { class: "strip" });
  const answers = make("div", { class: "answers" });
  const draw = () => drawViewer(state, images, ask, told, strip, answers);
  const place = (event) => {
    const box = ask.getBoundingClientRect();
    state.x = Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
    state.y = Math.min(0.9999, Math.max(0, (event.clientY - box.top) / box.height));
    draw();
  };
  ask.addEventListener("click", place);
  ask.addEventListener("pointermove", (event) => { if (event.buttons) place(event); });
  ask.addEventListener("keydown", (event) => {
    const [rows, columns] = STORED[state.models[0]].grid;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    state.x = (Math.min(columns - 1, Math.max(0, Math.floor(state.x * columns) + move[0])) + 0.5) / columns;
    state.y = (Math.min(rows - 1, Math.max(0, Math.floor(state.y * rows) + move[1])) + 0.5) / rows;
    draw();
  });
  DATA.samples.forEach((sample, i) => strip.append(make("button", { type: "button", title: sample.name, onclick: () => { state.sample = i; draw(); } },
    make("img", { src: sample.picture, alt: sample.name }))));
  const names = STORED.map((model) => model.name);
  const choices = make("div", { class: "bar" }, choice("Model", names, 0, (i) => { state.models[0] = i; draw(); }),
    names.length > 1 ? choice("beside", [...names, "none"], 1, (i) => { state.models = i < names.length ? [state.models[0], i] : [state.models[0]]; draw(); }) : null);
  section("patches", "Click a patch", "Every patch has an embedding. Click one and see which patches of the other images the model finds alike: bright is alike, the five best are outlined. Arrow keys move the patch.",
    make("div", { class: "stage" }, choices, make("div", { class: "viewer" }, make("div", { class: "ask" }, ask, told, strip), answers)));
  Promise.all(images.map((image) => image.decode().catch(() => null))).then(draw);
}

function drawViewer(state, images, ask, told, strip, answers) {
  const sample = DATA.samples[state.sample];
  [...strip.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.sample)));
  const model = STORED[state.models[0]], patch = patchAt(model, state.x, state.y);
  ask.setAttribute("aria-label", `${sample.name}. Row ${Math.floor(patch / model.grid[1]) + 1}, column ${patch % model.grid[1] + 1} is chosen. Arrow keys move it.`);
  const context = ask.getContext("2d");
  context.drawImage(images[state.sample], 0, 0, SIDE, SIDE);
  outline(context, model.grid, patch, "#ffffff", 3);
  const panels = state.models.map((m) => answerPanel(m, state, images));
  answers.replaceChildren(...panels.map((panel) => panel.element));
  told.textContent = panels.map((panel) => `${STORED[panel.model].name}: most alike in ${DATA.samples[panel.best[0].sample].name}, cosine ${panel.best[0].value.toFixed(2)}.`).join(" ");
}

function answerPanel(m, state, images) {
  const model = STORED[m], patch = patchAt(model, state.x, state.y), found = similarities(m, state.sample, patch);
  const others = DATA.samples.map((_, i) => i).filter((i) => i !== state.sample);
  const values = others.flatMap((i) => [...found.subarray(i * model.count, (i + 1) * model.count)]).sort((a, b) => a - b);
  const low = values[Math.floor(values.length * 0.5)] ?? 0, high = values.at(-1) ?? 1;
  const best = strongest(found, model, others);
  const shown = [state.sample, ...others].map((i) => {
    const canvas = make("canvas", { width: SIDE, height: SIDE, role: "img",
      "aria-label": `${DATA.samples[i].name}: similarity by ${model.name}, at most ${Math.max(...found.subarray(i * model.count, (i + 1) * model.count)).toFixed(2)}` });
    drawHeat(canvas, images[i], found.subarray(i * model.count, (i + 1) * model.count), model.grid, low, high);
    const context = canvas.getContext("2d");
    if (i === state.sample) outline(context, model.grid, patch, "#ffffff", 8);
    best.forEach((b, rank) => { if (b.sample === i) outline(context, model.grid, b.patch, "#5dffb1", 7, String(rank + 1)); });
    return make("figure", {}, canvas, make("figcaption", {}, i === state.sample ? "the image itself" : DATA.samples[i].label ?? DATA.samples[i].name));
  });
  const stops = HEAT.map((c, i) => `rgb(${c}) ${Math.round(100 * i / (HEAT.length - 1))}%`).join(", ");
  const [rows, columns] = model.grid;
  const element = make("div", { class: "answer", "data-model": m, "data-patch": patch, "data-best": JSON.stringify(best) },
    make("h3", {}, model.name), make("div", { class: "scale", style: { background: `linear-gradient(90deg, ${stops})` } }),
    make("div", { class: "ends" }, make("span", {}, `cosine ${low.toFixed(2)} or less`), make("span", {}, high.toFixed(2))),
    make("div", { class: "tiles" }, ...shown),
    make("p", { class: "quiet" }, `${rows} x ${columns} patches at ${model.size} pixels; ${model.directions} of ${model.dimensions} directions, ${(100 * model.kept).toFixed(1)} % of the length.`));
  return { element, best, model: m };
}

function patchAt(model, x, y) {
  return Math.floor(y * model.grid[0]) * model.grid[1] + Math.floor(x * model.grid[1]);
}

// The best patches of the other images, one after the other; neighbours of a chosen patch are left out.
function strongest(found, model, others) {
  const listed = others.flatMap((sample) => Array.from({ length: model.count }, (_, patch) => ({ sample, patch, value: found[sample * model.count + patch] })));
  listed.sort((a, b) => b.value - a.value || a.sample - b.sample || a.patch - b.patch);
  const chosen = [], near = (a, b) => a.sample === b.sample && Math.abs(a.patch % model.grid[1] - b.patch % model.grid[1]) <= 1 &&
    Math.abs(Math.floor(a.patch / model.grid[1]) - Math.floor(b.patch / model.grid[1])) <= 1;
  for (const one of listed) {
    if (chosen.length === STRONGEST) break;
    if (!chosen.some((other) => near(one, other))) chosen.push(one);
  }
  return chosen;
}

function drawHeat(canvas, image, values, grid, low, high) {
  const small = make("canvas", { width: grid[1], height: grid[0] }), inner = small.getContext("2d"), pixels = inner.createImageData(grid[1], grid[0]);
  values.forEach((value, p) => {
    const share = (value - low) / Math.max(1e-9, high - low), [r, g, b] = heat(share);
    pixels.data.set([r, g, b, Math.round(255 * (0.55 + 0.35 * Math.min(1, Math.max(0, share))))], 4 * p);
  });
  inner.putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, SIDE, SIDE);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, SIDE, SIDE);
}

function outline(context, grid, patch, colour, width, text = "") {
  const w = SIDE / grid[1], h = SIDE / grid[0], x = patch % grid[1] * w, y = Math.floor(patch / grid[1]) * h;
  context.lineWidth = width + 3; context.strokeStyle = "#000000"; context.strokeRect(x, y, w, h);
  context.lineWidth = width; context.strokeStyle = colour; context.strokeRect(x, y, w, h);
  if (!text) return;
  const middle = [Math.min(SIDE - 24, Math.max(24, x + w / 2)), y > 60 ? y - 24 : y + h + 26];
  context.font = "bold 40px system-ui, sans-serif"; context.textAlign = "center"; context.textBaseline = "middle";
  context.lineWidth = 8; context.strokeStyle = "#000000"; context.strokeText(text, ...middle);
  context.fillStyle = colour; context.fillText(text, ...middle);
}
