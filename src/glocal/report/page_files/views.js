// What training saw: the views of an image, and which patches are taken for the same place.
function viewsSection() {
  if (!DATA.seen?.length) return;
  section("views", "What training sees", "Each image is cut into views; frames show where. Point at a patch, or move to a view with the tab key, to see which patches of the other views are taken for the same place. Squares of other colours are the augmentation drawn patch by patch.",
    ...DATA.seen.map(seenImage));
}

function seenImage(seen) {
  const overlays = seen.views.map((view) => make("svg", { viewBox: `0 0 ${view.grid[1]} ${view.grid[0]}`, preserveAspectRatio: "none", "aria-hidden": "true" }));
  const colour = (i) => `hsl(${Math.round(360 * i / Math.max(1, seen.views.length))} 85% 62%)`;
  const mark = (view, patch, paint) => {
    const columns = seen.views[view].grid[1];
    overlays[view].append(make("rect", { x: patch % columns + 0.04, y: Math.floor(patch / columns) + 0.04, width: 0.92, height: 0.92, fill: "none", stroke: paint, "stroke-width": 2.5, "vector-effect": "non-scaling-stroke" }));
  };
  const clear = () => overlays.forEach((overlay) => overlay.replaceChildren());
  const point = (view, patch) => {
    clear();
    mark(view, patch, "#ffffff");
    const asked = view === seen.teacher ? [patch] : seen.matches[view].filter(([, b]) => b === patch).map(([a]) => a);
    if (view !== seen.teacher) asked.forEach((a) => mark(seen.teacher, a, "#5dffb1"));
    seen.matches.forEach((pairs, other) => { if (other !== view) pairs.filter(([a]) => asked.includes(a)).forEach(([, b]) => mark(other, b, "#5dffb1")); });
  };
  const examples = () => {
    clear();
    seen.matches.forEach((pairs, view) => {
      const every = Math.max(1, Math.floor(pairs.length / 6));
      pairs.forEach(([a, b], n) => { if (n % every === 0) { const paint = `hsl(${Math.round(n * 360 / pairs.length)} 90% 60%)`; mark(view, b, paint); if (view === seen.matches.findIndex((p) => p.length)) mark(seen.teacher, a, paint); } });
    });
  };
  examples();
  const boxes = make("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" }, ...seen.views.map((view, i) => make("rect", {
    x: view.box[1], y: view.box[0], width: view.box[3], height: view.box[2], fill: "none", stroke: colour(i), "stroke-width": 3, "vector-effect": "non-scaling-stroke" })));
  const wall = seen.views.map((view, i) => {
    const frame = make("div", { class: "frame" }, make("img", { src: view.picture, alt: `View ${view.name} of ${seen.name}`, style: { "image-rendering": "auto" } }), overlays[i]);
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect(), [rows, columns] = view.grid;
      const column = Math.min(columns - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * columns)));
      point(i, Math.min(rows - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * rows))) * columns + column);
    });
    frame.addEventListener("pointerleave", examples);
    const middle = () => point(i, Math.floor(view.grid[0] / 2) * view.grid[1] + Math.floor(view.grid[1] / 2));
    return make("figure", { tabindex: 0, onfocus: middle, onblur: examples }, frame, make("figcaption", { class: "quiet", style: { "border-top": `4px solid ${colour(i)}` } }, `${view.name}${view.flip ? ", mirrored" : ""}; seen by ${view.seen_by}`));
  });
  return make("div", { class: "seen" }, make("figure", {}, make("div", { class: "frame" }, make("img", { src: seen.picture, alt: seen.name }), boxes), make("figcaption", { class: "quiet" }, seen.name)), make("div", { class: "wall" }, ...wall));
}
