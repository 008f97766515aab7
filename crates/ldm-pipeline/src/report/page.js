"use strict";
(() => {
const root = document.documentElement;
const faults = [];
// Kept in the document, so that a check from outside finds them.
const fault = (text) => { faults.push(String(text)); root.dataset.errors = String(faults.length); root.dataset.error = faults[0]; };
root.dataset.errors = "0";
window.addEventListener("error", (event) => fault(event.message));
window.addEventListener("unhandledrejection", (event) => fault(event.reason));
document.addEventListener("securitypolicyviolation", (event) => fault("blocked: " + event.blockedURI));

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 54, right: 12, top: 10, bottom: 24 };
const COLOURS = 8;
// Sheets of fewer pixels across are enlarged.
const SMALL = 480;
// With fewer values a curve is shown as it is.
const MIN_TO_SMOOTH = 100;

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const draw = (parent, tag, attributes) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
};
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/// Index of the first step that is not below `step`.
const lowerBound = (steps, step) => {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1; else high = middle;
  }
  return low;
};

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
const number = (value) => {
  if (value === null) return "not finite";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e");
  return trim(value.toFixed(clamp(3 - Math.floor(Math.log10(size)), 0, 6)));
};
const count = (value) => Math.round(value).toLocaleString("en");
/// A round value on an axis whose values are `spacing` apart, or more.
const tickLabel = (value, spacing) => {
  const size = Math.abs(value);
  const digits = (unit) => clamp(Math.ceil(-Math.log10(spacing / unit) - 1e-6), 0, 12);
  if (size < 1e-12) return "0";
  if (size >= 1e9 || size < 1e-3) return trim(value.toExponential(clamp(digits(size), 0, 4)).replace(/e.*/, "")) + value.toExponential().replace(/.*e\+?/, "e");
  if (size >= 1e6 && digits(1e6) <= 2) return trim((value / 1e6).toFixed(2)) + "M";
  if (size >= 1e3 && digits(1e3) <= 1) return trim((value / 1e3).toFixed(1)) + "k";
  return size >= 1e3 ? count(value) : trim(value.toFixed(digits(1)));
};

/// About `wanted` round values between `low` and `high`.
const linearTicks = (low, high, wanted, least = 0) => {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, power * [1, 2, 5, 10].find((factor) => factor * power >= rough));
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index++) ticks.push(index * step);
  return ticks;
};
const logTicks = (low, high) => {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const factors = last - first <= 1 ? [1, 2, 3, 5, 7] : last - first <= 3 ? [1, 3] : [1];
  const stride = Math.max(1, Math.round((last - first) / 6));
  const ticks = [];
  for (let power = first; power <= last; power += stride)
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  return ticks.length > 1 ? ticks : linearTicks(low, high, 4).filter((tick) => tick > 0);
};

/// Exponential moving average without the bias of its start; begins anew after nothing.
const smooth = (values, weight) => {
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
};

const colour = (index, lines) => lines <= COLOURS ? `var(--c${index})` : `hsl(${Math.round(225 - 215 * index / (lines - 1))} 58% 52%)`;

const settings = { smoothing: 0.8, together: true };

/// The charts of a stage, which share the range of steps that they show.
class Stage {
  constructor(stage) {
    this.alerts = stage.alerts;
    this.charts = stage.charts.map((chart, index) => new Chart(this, chart, `${stage.id}-${index}`));
    const steps = this.charts.flatMap((chart) => chart.lines.flatMap((line) => [line.steps[0], line.steps.at(-1)]));
    const low = Math.min(...steps), high = Math.max(...steps);
    this.all = low < high ? [low, high] : [low - 1, high + 1];
    const place = document.getElementById(`${stage.id}-charts`);
    let section = null, grid = null;
    for (const chart of this.charts) {
      if (chart.section !== section) {
        section = chart.section;
        grid = make("div", { class: "charts" });
        place.append(make("h3", {}, section), grid);
      }
      grid.append(chart.figure);
    }
    for (const chart of this.charts) chart.render();
  }

  /// Shows `range`, or everything, in `chart` or in all.
  zoom(chart, range) {
    if (range) {
      const least = Math.max(1e-6, Math.min(2, this.all[1] - this.all[0]));
      let [low, high] = range;
      if (high - low < least) { const middle = (low + high) / 2; low = middle - least / 2; high = middle + least / 2; }
      low = Math.max(low, this.all[0]);
      high = Math.min(high, this.all[1]);
      range = low <= this.all[0] && high >= this.all[1] ? null : [low, high];
    }
    for (const other of settings.together ? this.charts : [chart]) {
      other.range = range;
      other.redraw();
    }
  }
}

class Chart {
  constructor(stage, chart, id) {
    Object.assign(this, { stage, id, section: chart.section, exact: chart.exact, title: chart.title });
    this.range = null;
    this.cursor = null;
    this.lines = chart.lines.map((line, index) => ({ ...line, hidden: false, colour: colour(index, chart.lines.length), nan: line.steps.filter((_, at) => line.values[at] === null) }));
    const finite = this.lines.flatMap((line) => line.values.filter((value) => value !== null));
    const ordered = finite.sort((a, b) => a - b);
    const quantile = (part) => ordered[Math.floor(part * (ordered.length - 1))];
    this.mayLog = quantile(1) > 0;
    // Where most values would be a flat line at the bottom or the top of it.
    this.log = quantile(0) > 0 && !this.exact && (quantile(1) / quantile(0.5) > 30 || quantile(0.5) / quantile(0.02) > 100);

    this.figure = make("figure", { class: "chart", id });
    const name = make("div", { class: "name" }, make("h4", {}, chart.title));
    const family = make("code", {}, chart.family);
    name.append(make("p", { class: "about" }, ...(chart.about ? [chart.about + " · "] : []), ...(chart.title === chart.family && !chart.about ? [] : [family])));
    const first = this.lines[0];
    const value = this.lines.length === 1 ? [make("div", { class: "value", title: `at step ${count(first.steps.at(-1))}` }, number(first.values.at(-1)))] : [];
    const tools = make("div", { class: "tools" });
    this.logButton = this.tool(tools, "log", "Logarithmic scale", () => { this.log = !this.log; this.redraw(); });
    this.logButton.disabled = !this.mayLog;
    this.resetButton = this.tool(tools, "all", "Show all steps", () => this.stage.zoom(this, null));
    this.wideButton = this.tool(tools, "⤢", "Full width", () => { this.figure.classList.toggle("wide"); this.render(); });
    this.figure.append(make("header", {}, name, ...value, tools));
    this.svg = draw(this.figure, "svg", { tabindex: "0", role: "img", "aria-label": this.describe() });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.figure.append(this.tip);
    if (this.lines.length > 1) this.figure.append(this.legend());
    this.listen();
    new ResizeObserver(() => { if (this.svg.clientWidth !== this.size?.width) this.render(); }).observe(this.svg);
  }

  tool(parent, text, label, action) {
    const button = make("button", { type: "button", title: label, "aria-label": `${label}: ${this.title}` }, text);
    button.addEventListener("click", action);
    parent.append(button);
    return button;
  }

  describe() {
    const lines = this.lines.slice(0, 6).map((line) => `${line.name}, ${count(line.recorded)} values to step ${count(line.steps.at(-1))}, last ${number(line.values.at(-1))}`);
    return `${this.title}. ${lines.join("; ")}${this.lines.length > 6 ? "; and more" : ""}.`;
  }

  legend() {
    const legend = make("div", { class: "legend", role: "group", "aria-label": `Lines of ${this.title}` });
    const buttons = this.lines.map((line) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = line.colour;
      const label = line.label === "" ? "all" : line.label;
      return make("button", { type: "button", title: line.name }, swatch, label);
    });
    const update = () => buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(!this.lines[index].hidden)));
    buttons.forEach((button, index) => button.addEventListener("click", (event) => {
      const line = this.lines[index];
      if (event.shiftKey) {
        const alone = this.lines.every((other) => other.hidden !== (other === line));
        for (const other of this.lines) other.hidden = !alone && other !== line;
      } else {
        line.hidden = !line.hidden;
      }
      update();
      this.redraw();
    }));
    update();
    legend.append(...buttons);
    return legend;
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.render(); report(); });
  }

  smoothed(line) {
    if (settings.smoothing === 0 || this.exact || line.recorded < MIN_TO_SMOOTH) return null;
    if (line.weight !== settings.smoothing) {
      const thinned = line.meanSteps.length > 0;
      line.weight = settings.smoothing;
      line.smooth = { steps: thinned ? line.meanSteps : line.steps, values: smooth(thinned ? line.means : line.values, settings.smoothing) };
    }
    return line.smooth;
  }

  /// The values between the visible steps, and one beyond on either side.
  window(steps) {
    const [low, high] = this.range ?? this.stage.all;
    return [Math.max(0, lowerBound(steps, low) - 1), Math.min(steps.length, lowerBound(steps, high) + 1)];
  }

  render() {
    const width = this.svg.clientWidth || this.figure.clientWidth - 34;
    if (width < 60) return;
    const height = this.figure.classList.contains("wide") ? 380 : 210;
    const { left, right, top, bottom } = MARGIN;
    const [first, last] = this.range ?? this.stage.all;
    const visible = this.lines.filter((line) => !line.hidden);

    let low = Infinity, high = -Infinity;
    const measure = (line, from, to) => {
      for (const value of line.values.slice(from, to)) {
        if (value === null || (this.log && value <= 0)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    };
    for (const line of visible) measure(line, lowerBound(line.steps, first), lowerBound(line.steps, last + 1e-9));
    // Between two points, only the line that joins them.
    if (low > high) for (const line of visible) measure(line, ...this.window(line.steps));
    const empty = low > high;
    if (empty) [low, high] = this.log ? [0.1, 1] : [0, 1];
    if (this.log) {
      if (high / low < 1.05) [low, high] = [low / 1.5, high * 1.5];
      const room = (high / low) ** 0.04;
      [low, high] = [low / room, high * room];
    } else {
      if (high - low <= Math.abs(high) * 1e-9) { const room = Math.abs(high) / 2 || 1; [low, high] = [low - room, high + room]; }
      const room = (high - low) * 0.05;
      [low, high] = [low - room, high + room];
    }
    const scale = this.log ? Math.log : (value) => value;
    const [bottomValue, topValue] = [scale(low), scale(high)];
    this.x = (step) => left + (step - first) / (last - first) * (width - left - right);
    this.step = (x) => first + (x - left) / (width - left - right) * (last - first);
    this.y = (value) => top + (topValue - scale(value)) / (topValue - bottomValue) * (height - top - bottom);
    this.size = { width, height };

    const svg = this.svg;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    draw(draw(svg, "clipPath", { id: `${this.id}-clip` }), "rect", { x: left, y: 0, width: width - left - right, height });
    const levels = this.log ? logTicks(low, high) : linearTicks(low, high, height / 45);
    for (const tick of levels) {
      const y = this.y(tick);
      draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y });
      draw(svg, "text", { x: left - 8, y: y + 4, "text-anchor": "end" }).textContent = tickLabel(tick, this.log ? tick : levels[1] - levels[0]);
    }
    const ticks = linearTicks(first, last, clamp((width - left) / 65, 2, 10), 1);
    for (const tick of ticks) {
      const x = this.x(tick);
      draw(svg, "line", { class: "grid", x1: x, x2: x, y1: height - bottom, y2: height - bottom + 4 });
      const anchor = x > width - 30 ? "end" : "middle";
      draw(svg, "text", { x: anchor === "end" ? width - 2 : x, y: height - 6, "text-anchor": anchor }).textContent = tickLabel(tick, ticks[1] - ticks[0]);
    }

    const inside = draw(svg, "g", { "clip-path": `url(#${this.id}-clip)` });
    let points = 0;
    for (const line of visible) {
      const smoothed = this.smoothed(line);
      const raw = this.path(line.steps, line.values);
      points += raw.points;
      draw(inside, "path", { class: smoothed ? "curve raw" : "curve", d: raw.d }).style.stroke = line.colour;
      if (smoothed) draw(inside, "path", { class: "curve", d: this.path(smoothed.steps, smoothed.values).d }).style.stroke = line.colour;
      if (raw.points <= 40)
        for (const [x, y] of raw.dots) draw(inside, "circle", { cx: x, cy: y, r: 2.4 }).style.fill = line.colour;
      for (const step of line.nan) {
        if (step < first || step > last) continue;
        const x = this.x(step), mark = draw(inside, "path", { class: "nan", d: `M${x - 3.5},${top - 4}l7,7m0,-7l-7,7` });
        draw(mark, "title", {}).textContent = `${line.name} not finite at step ${count(step)}`;
      }
    }
    for (const alert of this.stage.alerts) {
      if (alert.step < first || alert.step > last) continue;
      const x = this.x(alert.step), mark = draw(inside, "path", { class: "alert", d: `M${x},${height - bottom - 7}l4,7h-8z` });
      draw(mark, "title", {}).textContent = `step ${count(alert.step)}, ${alert.kind}: ${alert.text}`;
    }
    if (empty) draw(svg, "text", { x: (width + left) / 2, y: height / 2, "text-anchor": "middle" }).textContent = visible.length ? "nothing finite in this range" : "all lines are hidden";
    this.figure.dataset.points = String(points);
    this.logButton.setAttribute("aria-pressed", String(this.log));
    this.wideButton.setAttribute("aria-pressed", String(this.figure.classList.contains("wide")));
    this.resetButton.hidden = !this.range;
    this.overlay = draw(svg, "g", {});
    if (this.cursor !== null) this.showCursor();
  }

  path(steps, values) {
    const [from, to] = this.window(steps);
    const dots = [];
    let d = "", points = 0, alone = false, pen = false;
    for (let at = from; at < to; at++) {
      const value = values[at];
      if (value === null || (this.log && value <= 0)) { if (alone) d += "h.01"; pen = alone = false; continue; }
      const x = this.x(steps[at]).toFixed(1), y = this.y(value).toFixed(1);
      d += (pen ? "L" : "M") + x + "," + y;
      alone = !pen;
      pen = true;
      points++;
      dots.push([x, y]);
    }
    return { d: alone ? d + "h.01" : d, points, dots };
  }

  /// Shows the values at the step under the cursor.
  showCursor(pointerY = null) {
    const { width, height } = this.size;
    const nearest = this.lines.filter((line) => !line.hidden).map((line) => {
      const after = clamp(lowerBound(line.steps, this.cursor), 0, line.steps.length - 1);
      const before = Math.max(0, after - 1);
      const at = Math.abs(line.steps[before] - this.cursor) <= Math.abs(line.steps[after] - this.cursor) ? before : after;
      return { line, step: line.steps[at], value: line.values[at] };
    });
    this.overlay.replaceChildren();
    if (nearest.length === 0) { this.tip.hidden = true; return; }
    const closest = nearest.reduce((a, b) => Math.abs(a.step - this.cursor) <= Math.abs(b.step - this.cursor) ? a : b);
    const x = this.x(closest.step);
    draw(this.overlay, "line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom });
    let shown = nearest;
    if (shown.length > 12 && pointerY !== null) {
      const distance = ({ value }) => value === null || (this.log && value <= 0) ? Infinity : Math.abs(this.y(value) - pointerY);
      const chosen = new Set([...nearest].sort((a, b) => distance(a) - distance(b)).slice(0, 12));
      shown = nearest.filter((one) => chosen.has(one));
    }
    const rows = shown.slice(0, 12).map(({ line, step, value }) => {
      if (value !== null && !(this.log && value <= 0))
        draw(this.overlay, "circle", { cx: this.x(step), cy: this.y(value), r: 3.2 }).style.fill = line.colour;
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = line.colour;
      const smoothed = this.smoothed(line);
      const mean = smoothed ? smoothed.values[clamp(lowerBound(smoothed.steps, step), 0, smoothed.values.length - 1)] : null;
      const text = number(value) + (mean === null || mean === undefined ? "" : ` (${number(mean)})`) + (step === closest.step ? "" : ` at ${count(step)}`);
      return make("div", {}, swatch, make("span", {}, this.lines.length === 1 ? line.name : line.label || "all"), make("span", {}, text));
    });
    this.tip.replaceChildren(make("b", {}, `step ${count(closest.step)}`), ...rows);
    this.tip.hidden = false;
    const offset = this.svg.offsetLeft || 17;
    const onLeft = x > width / 2;
    this.tip.style.left = onLeft ? "auto" : `${(this.svg.getBoundingClientRect().left - this.figure.getBoundingClientRect().left) + x + 12}px`;
    this.tip.style.right = onLeft ? `${this.figure.clientWidth - offset - x + 12}px` : "auto";
    this.tip.style.top = `${this.svg.getBoundingClientRect().top - this.figure.getBoundingClientRect().top + 8}px`;
  }

  hideCursor() {
    this.cursor = null;
    this.tip.hidden = true;
    this.overlay?.replaceChildren();
  }

  listen() {
    const svg = this.svg;
    const at = (event) => { const box = svg.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const within = (x) => clamp(x, MARGIN.left, this.size.width - MARGIN.right);
    let start = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.size) return;
      start = within(at(event)[0]);
      svg.setPointerCapture?.(event.pointerId);
      svg.focus({ preventScroll: true });
    });
    svg.addEventListener("pointermove", (event) => {
      if (!this.size) return;
      const [x, y] = at(event);
      this.cursor = this.step(within(x));
      this.showCursor(y);
      if (start !== null) {
        const end = within(x);
        draw(this.overlay, "rect", { class: "range", x: Math.min(start, end), width: Math.abs(end - start), y: MARGIN.top, height: this.size.height - MARGIN.top - MARGIN.bottom });
      }
    });
    svg.addEventListener("pointerup", (event) => {
      const from = start, end = within(at(event)[0]);
      start = null;
      if (from === null || Math.abs(end - from) < 5) return;
      this.stage.zoom(this, [this.step(Math.min(from, end)), this.step(Math.max(from, end))]);
    });
    svg.addEventListener("pointercancel", () => { start = null; this.hideCursor(); });
    svg.addEventListener("pointerleave", () => { if (start === null) this.hideCursor(); });
    svg.addEventListener("blur", () => this.hideCursor());
    svg.addEventListener("dblclick", () => this.stage.zoom(this, null));
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== svg) return;
      event.preventDefault();
      this.zoomAt(this.step(within(at(event)[0])), Math.exp(clamp(event.deltaY, -200, 200) * 0.002));
    }, { passive: false });
    svg.addEventListener("keydown", (event) => {
      const [low, high] = this.range ?? this.stage.all;
      const here = this.cursor ?? (low + high) / 2;
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move) {
        this.cursor = clamp(here + move * Math.max(1, (high - low) / 100), low, high);
        this.showCursor();
      } else if (event.key === "+" || event.key === "=") this.zoomAt(here, 0.7);
      else if (event.key === "-" || event.key === "−") this.zoomAt(here, 1 / 0.7);
      else if (event.key === "0" || event.key === "Escape") this.stage.zoom(this, null);
      else return;
      event.preventDefault();
    });
  }

  zoomAt(step, factor) {
    const [low, high] = this.range ?? this.stage.all;
    this.stage.zoom(this, [step - (step - low) * factor, step + (high - step) * factor]);
  }
}

/// The history of a stage's sheets: a slider and small pictures, which are there without this as well.
const browse = (box) => {
  const thumbs = [...box.querySelectorAll(".thumbs button")];
  const shown = make("img", { class: "shown" });
  box.querySelector("figure").append(shown);
  const slider = box.querySelector("input"), output = box.querySelector("output");
  const select = (index, scroll) => {
    const thumb = thumbs[index], picture = thumb.querySelector("img");
    for (const name of ["src", "alt", "width", "height"]) shown.setAttribute(name, picture.getAttribute(name));
    shown.classList.toggle("small", Number(picture.getAttribute("width")) < SMALL);
    slider.value = index;
    slider.setAttribute("aria-valuetext", thumb.dataset.step);
    output.textContent = thumb.dataset.step;
    thumbs.forEach((other) => other.setAttribute("aria-current", String(other === thumb)));
    const strip = thumb.parentElement;
    if (scroll) strip.scrollLeft = thumb.offsetLeft - strip.offsetLeft - (strip.clientWidth - thumb.clientWidth) / 2;
  };
  thumbs.forEach((thumb, index) => thumb.addEventListener("click", () => select(index, false)));
  slider.addEventListener("input", () => select(Number(slider.value), true));
  select(thumbs.length - 1, true);
};

/// Leaves the lines of the configuration that hold the words, with the sections that they stand in.
const search = (field) => {
  const found = document.getElementById("found");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let total = 0;
    for (const section of document.querySelectorAll(".settings details")) {
      const heading = section.querySelector("summary").textContent.toLowerCase();
      let left = 0;
      for (const line of section.querySelectorAll(".line")) {
        const text = (heading + " " + line.textContent).toLowerCase();
        line.hidden = !words.every((word) => text.includes(word));
        left += line.hidden ? 0 : 1;
      }
      section.hidden = left === 0 && words.length > 0;
      if (words.length > 0 && left > 0) section.open = true;
      total += left;
    }
    found.textContent = words.length > 0 ? `${total} found` : "";
  });
};

const stages = [];
const report = () => {
  const charts = stages.flatMap((stage) => stage.charts);
  const drawn = charts.filter((chart) => Number(chart.figure.dataset.points) > 0);
  root.dataset.charts = String(charts.length);
  root.dataset.drawn = String(drawn.length);
  root.dataset.lines = String(charts.reduce((sum, chart) => sum + chart.lines.length, 0));
  root.dataset.points = String(drawn.reduce((sum, chart) => sum + Number(chart.figure.dataset.points), 0));
  root.dataset.requests = String(performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length);
};

for (const stage of data.stages) if (stage.charts.length > 0) stages.push(new Stage(stage));
report();
document.querySelectorAll(".sheets").forEach(browse);
document.querySelectorAll("#config input[type=search]").forEach(search);
const slider = document.getElementById("smoothing");
slider.addEventListener("input", () => {
  settings.smoothing = Number(slider.value);
  document.getElementById("smoothing-value").textContent = settings.smoothing.toFixed(2);
  for (const stage of stages) for (const chart of stage.charts) chart.redraw();
});
const together = document.getElementById("together");
together.addEventListener("change", () => { settings.together = together.checked; });
// What a browser kept from an earlier visit.
settings.smoothing = Number(slider.value);
settings.together = together.checked;
document.getElementById("smoothing-value").textContent = settings.smoothing.toFixed(2);
document.getElementById("only-warnings")?.addEventListener("change", (event) => {
  for (const row of document.querySelectorAll(".log tbody tr")) row.hidden = event.target.checked && !row.classList.contains("warning");
});
})();
