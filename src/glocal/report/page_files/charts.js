// Lines over the steps of a run, as SVG.
const BOX = { width: 420, height: 190, left: 44, right: 8, top: 8, bottom: 22 };

function chartSection() {
  if (!DATA.charts?.length) return;
  const best = DATA.verdict?.best ?? null;
  section("training", "Training", best === null ? "" : `The dashed line is step ${best.toLocaleString("en")}, where the score was highest: export/best.`,
    make("div", { class: "charts" }, ...DATA.charts.map((chart) => lineChart(chart, best))));
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(t);
  return found;
}

function lineChart(chart, best) {
  const points = chart.lines.flatMap((line) => line.points);
  const [x0, x1] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  let [y0, y1] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  if (y0 > 0 && y0 < 0.6 * y1) y0 = 0;
  if (y0 === y1) [y0, y1] = [y0 - 1, y1 + 1];
  const x = (v) => BOX.left + (v - x0) / Math.max(1, x1 - x0) * (BOX.width - BOX.left - BOX.right);
  const y = (v) => BOX.height - BOX.bottom - (v - y0) / (y1 - y0) * (BOX.height - BOX.top - BOX.bottom);
  const told = chart.lines.map((l) => `${l.name} from ${number(l.points[0][1])} to ${number(l.points.at(-1)[1])}`).join("; ");
  const svg = make("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": `${chart.title}: ${told}` });
  for (const t of ticks(y0, y1, 4)) {
    svg.append(make("line", { class: "axis", x1: BOX.left, x2: BOX.width - BOX.right, y1: y(t), y2: y(t) }));
    svg.append(make("text", { x: BOX.left - 6, y: y(t) + 4, "text-anchor": "end" }, tickText(t)));
  }
  for (const t of ticks(x0, x1, 5)) svg.append(make("text", { x: x(t), y: BOX.height - 5, "text-anchor": "middle" }, t.toLocaleString("en")));
  if (best !== null && best >= x0 && best <= x1) svg.append(make("line", { class: "best", x1: x(best), x2: x(best), y1: BOX.top, y2: BOX.height - BOX.bottom }));
  chart.lines.forEach((line, i) => svg.append(make("path", { fill: "none", stroke: COLOURS[i % 12], "stroke-width": 2, "stroke-linejoin": "round",
    d: line.points.map((p, n) => `${n ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("") })));
  const legend = make("div", { class: "legend" });
  const cursor = make("line", { class: "best", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  const told_at = (step) => legend.replaceChildren(
    ...chart.lines.map((line, i) => make("span", { style: { "--c": COLOURS[i % 12] } }, `${line.name} ${number(valueAt(line, step))}`)),
    step === null ? "" : make("small", {}, `step ${Math.round(step).toLocaleString("en")}`));
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), share = (event.clientX - box.left) / box.width * BOX.width;
    const step = Math.min(x1, Math.max(x0, x0 + (share - BOX.left) / (BOX.width - BOX.left - BOX.right) * (x1 - x0)));
    cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step)); cursor.setAttribute("visibility", "visible");
    told_at(step);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); told_at(null); });
  told_at(null);
  return make("figure", { class: "chart" }, make("h3", {}, chart.title, " ", make("span", { class: "quiet" }, chart.unit)), svg, legend);
}

function tickText(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(0);
  return String(Number(value.toPrecision(6)));
}

// The value at or before a step; the last one when no step is pointed at.
function valueAt(line, step) {
  if (step === null) return line.points.at(-1)[1];
  let found = line.points[0][1];
  for (const [at, value] of line.points) if (at <= step) found = value;
  return found;
}
