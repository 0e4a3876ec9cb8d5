// The page around play.js: sliders in, a drawn network and its numbers out.
"use strict";

(() => {
  const root = document.getElementById("play");
  if (!root) return;
  const UNITS = 2, INPUTS = 2, CLASSES = 2;
  const find = (name) => root.querySelector(`[data-part="${name}"]`);
  const SVG = "http://www.w3.org/2000/svg";
  let network, x = [1.0, -0.5], y = 0, losses = [];

  // The same start at each depth: numbers between -1 and 1 from a small generator.
  function fresh(depth, activation) {
    let seed = 12345 + depth;
    const random = () => { seed = (seed * 1103515245 + 12345) % 2147483648; return (seed / 2147483648) * 2 - 1; };
    const widths = [INPUTS, ...Array(depth).fill(UNITS), CLASSES];
    const W = widths.slice(1).map((k, l) => Array.from({ length: k }, () => Array.from({ length: widths[l] }, random)));
    return { activation, W, b: widths.slice(1).map((k) => Array(k).fill(0)) };
  }

  function slider(label, value, change, low = -3, high = 3) {
    const box = document.createElement("label"), input = document.createElement("input");
    const shown = document.createElement("output");
    Object.assign(input, { type: "range", min: low, max: high, step: 0.01, value });
    shown.textContent = Number(value).toFixed(2);
    input.addEventListener("input", () => { shown.textContent = Number(input.value).toFixed(2); change(Number(input.value)); draw(); });
    box.append(label, input, shown);
    return box;
  }

  function sliders() {
    const layer = Number(find("layer").value), box = find("weights");
    box.replaceChildren();
    network.W[layer].forEach((row, i) => row.forEach((w, j) => {
      box.append(slider(`W${layer + 1}[${i},${j}]`, w, (v) => { network.W[layer][i][j] = v; }));
    }));
    network.b[layer].forEach((b, i) => box.append(slider(`b${layer + 1}[${i}]`, b, (v) => { network.b[layer][i] = v; })));
  }

  function reset() {
    network = fresh(Number(find("depth").value), find("activation").value);
    losses = [];
    find("depth-shown").textContent = find("depth").value;
    const chosen = find("layer");
    chosen.replaceChildren(...network.W.map((_, l) => new Option(`layer ${l + 1}`, l)));
    sliders();
    draw();
  }

  const short = (v) => (Math.abs(v) >= 0.005 || v === 0 ? v.toFixed(2) : v.toExponential(0)).replaceAll("-", "−");
  function color(share) { // blue below 0, white, orange above
    const hue = share > 0 ? [213, 94, 0] : [0, 114, 178], depth = Math.min(Math.abs(share), 1);
    return `rgb(${hue.map((c) => Math.round(255 + depth * (c - 255))).join(",")})`;
  }
  function add(parent, name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const key of Object.keys(attributes)) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function picture(svg, units, lines) {
    svg.replaceChildren();
    const across = 640 / (units.length - 1 || 1), at = (l, i, n) => [40 + l * across, 70 + (i - (n - 1) / 2) * 66];
    lines.forEach((W, l) => {
      const largest = Math.max(...W.flat().map(Math.abs), 1e-300);
      W.forEach((row, i) => row.forEach((w, j) => {
        const [x1, y1] = at(l, j, row.length), [x2, y2] = at(l + 1, i, W.length);
        add(svg, "line", { x1, y1, x2, y2, stroke: color(w / largest), "stroke-width": 1 + 4 * Math.abs(w / largest) });
      }));
    });
    units.forEach((values, l) => {
      const largest = Math.max(...values.map((v) => Math.abs(v ?? 0)), 1e-300);
      values.forEach((v, i) => {
        const [cx, cy] = at(l, i, values.length), share = v === null ? 0 : v / largest;
        add(svg, "circle", { cx, cy, r: 25, fill: color(share), stroke: "#666" });
        if (v !== null) add(svg, "text", { x: cx, y: cy + 5, "text-anchor": "middle", "font-size": 14, fill: Math.abs(share) > 0.65 ? "white" : "black" }, short(v));
      });
    });
  }

  function draw() {
    const g = Play.gradients(network, x, y);
    picture(find("forward"), [x, ...g.h, g.yhat], network.W);
    picture(find("backward"), [x.map(() => null), ...g.delta], g.grad_W);
    find("loss").textContent = g.loss.toFixed(6);
    find("first").textContent = Math.hypot(...g.delta[0]).toExponential(2);
    find("last").textContent = Math.hypot(...g.delta[g.delta.length - 1]).toExponential(2);
    find("steps").textContent = String(losses.length);
    const svg = find("curve"), all = [...losses, g.loss], top = Math.max(...all, 1e-12);
    svg.replaceChildren();
    add(svg, "line", { x1: 40, y1: 110, x2: 680, y2: 110, stroke: "#666" });
    add(svg, "polyline", { fill: "none", stroke: "#0072B2", "stroke-width": 2.5,
      points: all.map((v, k) => `${40 + (640 * k) / Math.max(all.length - 1, 1)},${110 - (100 * v) / top}`).join(" ") });
    const table = find("table");
    table.replaceChildren(...g.grad_W.map((M, l) => {
      const row = document.createElement("tr");
      [`layer ${l + 1}`, M.map((r) => r.map(short).join("  ")).join("; "), g.delta[l].map(short).join("  ")].forEach((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        row.append(cell);
      });
      return row;
    }));
  }

  function steps(count) {
    const lr = Number(find("rate").value);
    for (let k = 0; k < count; k++) {
      losses.push(Play.gradients(network, x, y).loss);
      network = Play.step(network, x, y, lr);
    }
    losses = losses.slice(-500);
    sliders();
    draw();
  }

  find("inputs").append(...x.map((v, i) => slider(`x[${i}]`, v, (value) => { x[i] = value; })));
  for (const name of ["depth", "activation"]) find(name).addEventListener("input", reset);
  find("layer").addEventListener("input", sliders);
  find("class").addEventListener("input", () => { y = Number(find("class").value); draw(); });
  find("rate").addEventListener("input", () => { find("rate-shown").textContent = Number(find("rate").value).toFixed(2); });
  find("one").addEventListener("click", () => steps(1));
  find("fifty").addEventListener("click", () => steps(50));
  find("again").addEventListener("click", reset);
  reset();

  const result = find("check");
  if (typeof PLAY_NUMBERS === "undefined") {
    result.textContent = "not checked: this build exported no numbers of the library";
    return;
  }
  const { worst, count, cases } = Play.check(PLAY_NUMBERS);
  result.dataset.worst = String(worst);
  result.dataset.count = String(count);
  result.textContent = `Checked here, in this browser: ${count} numbers of ${cases} networks against gpubackprop ${PLAY_NUMBERS.version}; largest relative difference ${worst.toExponential(1)}.`;
})();
