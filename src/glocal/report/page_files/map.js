// The map of the collection: every image where its embedding lies, thumbnails drawn, larger under the pointer.
const PLANE = { width: 1200, height: 760, margin: 40 };

function mapSection() {
  if (!STORED.length || DATA.collection.names.length < 4) return;
  const sheet = new Image();
  const canvas = make("canvas", { width: PLANE.width, height: PLANE.height, tabindex: 0, role: "application", "aria-label": "Map of images. Left and right arrow keys go from image to image." });
  const card = make("div", { class: "card", hidden: true });
  const told = make("p", { class: "quiet", "aria-live": "polite" });
  const state = { model: 0, at: -1, dots: false };
  const draw = () => drawMap(canvas, sheet, state);
  const point = (i) => { state.at = i; draw(); showCard(canvas, card, told, state); };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), scale = PLANE.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const away = STORED[state.model].map.map((p) => { const [px, py] = planePlace(p); return (px - x) ** 2 + (py - y) ** 2; });
    const nearest = away.indexOf(Math.min(...away));
    const hit = away[nearest] < 40 ** 2 ? nearest : -1;
    if (hit !== state.at) point(hit);
  });
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const order = STORED[state.model].map.map((p, i) => [p[0], i]).sort((a, b) => a[0] - b[0]).map(([, i]) => i);
    point(order[(Math.max(0, order.indexOf(state.at) + (state.at < 0 ? 0 : move)) + order.length) % order.length]);
  });
  const labelled = DATA.collection.labels.some((label) => label !== null);
  section("map", "Map of the collection", "Images that the model finds alike lie together (t-SNE); distances between far groups mean nothing.",
    make("div", { class: "bar" }, choice("Model", STORED.map((model) => model.name), 0, (i) => { state.model = i; point(-1); }),
      labelled ? toggle("Dots coloured by class", false, (on) => { state.dots = on; draw(); }) : null),
    make("div", { class: "plane" }, canvas, card), told);
  sheet.src = DATA.collection.sheet.picture;
  sheet.decode().then(draw, () => null);
}

function planePlace([x, y]) {
  return [PLANE.margin + x * (PLANE.width - 2 * PLANE.margin), PLANE.margin + y * (PLANE.height - 2 * PLANE.margin)];
}

function drawMap(canvas, image, state) {
  const context = canvas.getContext("2d"), { sheet, labels } = DATA.collection;
  const classes = [...new Set(labels)].sort(), places = STORED[state.model].map.map(planePlace);
  const size = Math.max(22, Math.min(56, 900 / Math.sqrt(places.length)));
  context.clearRect(0, 0, PLANE.width, PLANE.height);
  const one = (i, side) => {
    const [x, y] = places[i];
    if (state.dots) {
      context.fillStyle = COLOURS[classes.indexOf(labels[i]) % 12]; context.beginPath(); context.arc(x, y, side / 5, 0, 7); context.fill();
      return;
    }
    context.drawImage(image, i % sheet.columns * sheet.cell, Math.floor(i / sheet.columns) * sheet.cell, sheet.cell, sheet.cell, x - side / 2, y - side / 2, side, side);
  };
  places.forEach((_, i) => one(i, size));
  if (state.at < 0) return;
  const [x, y] = places[state.at];
  one(state.at, size * 1.6);
  context.lineWidth = 4; context.strokeStyle = "#ffffff"; context.strokeRect(x - size * 0.8, y - size * 0.8, size * 1.6, size * 1.6);
}

function showCard(canvas, card, told, state) {
  card.hidden = state.at < 0;
  if (card.hidden) return;
  const [x, y] = planePlace(STORED[state.model].map[state.at]), box = canvas.getBoundingClientRect(), scale = box.width / PLANE.width;
  card.replaceChildren(cell(DATA.collection.sheet, state.at, 144, ""), imageName(state.at));
  card.style.left = `${Math.min(box.width - 170, Math.max(0, x * scale + 24))}px`;
  card.style.top = `${Math.min(box.height - 190, Math.max(0, y * scale + 24))}px`;
  told.textContent = imageName(state.at);
}
