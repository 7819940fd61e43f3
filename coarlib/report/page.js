"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "style") Object.assign(element.style, value);
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const VIEWS = {int16: Int16Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array};
  const unpack = (packed) => {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    return new VIEWS[packed.dtype](bytes.buffer);
  };
  const unscale = (packed, width) => {
    const steps = unpack(packed), scale = unpack(packed.scale);
    return Float32Array.from(steps, (step, at) =>
      step === -32768 ? NaN : step * scale[scale.length === 1 ? 0 : Math.floor(at / width)]);
  };
  const fixed = (value, digits) => value.toFixed(digits).replace(/^-(?=.*[1-9])/, "−").replace(/^-/, "");
  const show = (value, digits = 3) => Number.isNaN(value) ? "–" : fixed(value, digits);
  const digitsOf = (size) => size > 0 ? Math.min(Math.max(0, 1 - Math.floor(Math.log10(size))), 12) : 2;
  const LETTERS = 40;  // the middle of longer names is left out
  const short = (name) => name.length <= LETTERS ? name : name.slice(0, LETTERS / 2) + "…" + name.slice(1 - LETTERS / 2);

  function theme() {
    const button = byId("theme"), names = ["auto", "light", "dark"];
    const said = {auto: "as the system", light: "light", dark: "dark"};
    let at = 0;
    button.addEventListener("click", () => {
      at = (at + 1) % names.length;
      if (names[at] === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = names[at];
      button.textContent = "◐ " + names[at];
      button.setAttribute("aria-label", "Colours: " + said[names[at]]);
    });
  }

  // Rows of small tables are reordered in place; the next click turns the order around.
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.setAttribute("aria-sort", "none");
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const cell = row.cells[column];
          return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
        };
        const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
        rows.sort(([a], [b]) => compare(a, b) * (down ? -1 : 1));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, {numeric: true});
  };

  function explorer() {
    const size = 15, count = data.targets, body = byId("examples").tBodies[0];
    const numbers = {};
    for (const [name, packed] of Object.entries(data.columns)) numbers[name] = unscale(packed, 1e12);
    const top = data.top && {
      count: data.top.count,
      features: unpack(data.top.features),
      weights: unscale(data.top.weights, data.top.count),
      errors: data.top.errors && unscale(data.top.errors, data.top.count),
    };
    const missing = top && (top.features instanceof Uint16Array ? 65535 : 4294967295);
    const near = data.nearest && {
      count: data.nearest.count,
      targets: unpack(data.nearest.targets),
      cosines: unscale(data.nearest.cosines, data.nearest.count),
    };
    const starts = [];
    (data.groups || []).reduce((start, [, units]) => (starts.push(start), start + units), 0);
    const featureName = (feature) => {
      if (starts.length) {
        let at = starts.length - 1;
        while (starts[at] > feature) at--;
        return data.groups[at][0] + "[" + (feature - starts[at]) + "]";
      }
      const label = data.featureLabels ? " (" + data.featureLabels[feature] + ")" : "";
      return (data.ofExamples ? "example " : "feature ") + feature + label;
    };
    const label = (t) => data.labels ? data.labels[t] : "";
    const strongestOf = (t) => {
      if (!top) return -1;
      const start = t * top.count, half = top.count / 2;
      const best = Math.abs(top.weights[start]) >= Math.abs(top.weights[start + half]) ? start : start + half;
      return top.features[best] === missing ? -1 : top.features[best];
    };
    const strongestNames = top && Array.from({length: count}, (_, t) => {
      const feature = strongestOf(t);
      return feature < 0 ? "" : featureName(feature);
    });
    const columns = [["example", (t) => t, (t) => String(t)]];
    if (data.labels) columns.push(["label", label, (t) => short(label(t))]);
    const numeric = (key, name) => {
      if (numbers[key]) columns.push([name, (t) => numbers[key][t], (t) => show(numbers[key][t]), "number"]);
    };
    numeric("pearson", "correlation");
    if (top) columns.push(["strongest", (t) => strongestNames[t], (t) => short(strongestNames[t])]);
    numeric("r_squared", "R²");
    numeric("mean", "mean");
    numeric("sd", "sd");
    let order = Array.from({length: count}, (_, t) => t), all = order, page = 0, chosen = -1;
    const heads = byId("examples").tHead.rows[0];
    const sort = (column, direction) => {
      const value = columns[column][1], values = Array.from({length: count}, (_, t) => value(t));
      const rank = (a, b) => {
        const x = values[a], y = values[b];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return compare(x, y) * direction || a - b;
      };
      all = Array.from({length: count}, (_, t) => t).sort(rank);
      [...heads.cells].forEach((head, at) => head.setAttribute("aria-sort",
        at !== column ? "none" : direction > 0 ? "ascending" : "descending"));
      find();
    };
    columns.forEach(([name], column) => {
      const button = make("button", {type: "button"}, name);
      const head = make("th", {scope: "col", "aria-sort": column ? "none" : "ascending"}, button);
      button.addEventListener("click", () =>
        sort(column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
      heads.append(head);
    });
    const matches = (t, wanted) => {
      if (/^\d+$/.test(wanted)) return String(t) === wanted || String(label(t)) === wanted;
      const texts = [label(t), data.texts[t] || "", top ? strongestNames[t] : ""];
      return texts.some((text) => text.toLowerCase().includes(wanted));
    };
    const find = () => {
      const wanted = byId("search").value.trim().toLowerCase();
      order = wanted ? all.filter((t) => matches(t, wanted)) : all;
      page = 0;
      byId("search-state").textContent = order.length.toLocaleString("en") + " of " +
        count.toLocaleString("en") + " examples";
      draw();
    };
    const draw = () => {
      const pages = Math.max(1, Math.ceil(order.length / size));
      page = Math.min(Math.max(page, 0), pages - 1);
      body.replaceChildren(...order.slice(page * size, (page + 1) * size).map((t) => {
        const row = make("tr", {"data-target": t});
        columns.forEach(([, , text, kind], at) => {
          if (at) return row.append(make("td", kind ? {class: kind} : {}, text(t)));
          const button = make("button", {type: "button", "aria-label": "Show example " + t}, String(t));
          button.addEventListener("click", () => choose(t));
          const cell = make("th", {scope: "row"}, button);
          if (data.images[t]) cell.append(" ", make("img", {src: data.images[t], alt: ""}));
          row.append(cell);
        });
        if (t === chosen) row.className = "chosen";
        return row;
      }));
      byId("page").textContent = "page " + (page + 1) + " of " + pages;
      byId("previous").disabled = page === 0;
      byId("next").disabled = page === pages - 1;
    };
    const bars = (t, from, to, colour, sign) => {
      const grid = make("div", {class: "bars"});
      const spread = (at) => top.errors ? 1.96 * top.errors[at] : 0;
      const all = Array.from({length: top.count}, (_, at) => t * top.count + at);
      const shown = all.filter((at) => top.features[at] !== missing);
      const largest = Math.max(0, ...shown.map((at) => Math.abs(top.weights[at]) + (spread(at) || 0))) || 1;
      const digits = digitsOf(top.errors ? Math.max(...shown.map(spread)) : largest / 10);
      for (let at = t * top.count + from; at < t * top.count + to; at++) {
        if (top.features[at] === missing) continue;
        const weight = top.weights[at], share = 98 * Math.abs(weight) / largest;
        const track = make("div", {class: "track", "aria-hidden": "true"},
          make("div", {class: "fill", style: {width: share + "%", background: colour}}));
        let note = (weight > 0 ? "+" : "−") + Math.abs(weight).toFixed(digits);
        if (top.errors) {
          const reach = 98 * spread(at) / largest, left = Math.max(0, share - reach);
          track.append(make("div", {class: "error", style: {left: left + "%", width: share + reach - left + "%"}}));
          note += " ± " + spread(at).toFixed(digits);
        }
        const whole = featureName(top.features[at]), name = make("span", {title: whole}, short(whole));
        const image = data.featureImages && data.featureImages[top.features[at]];
        if (image) name.prepend(make("img", {src: image, alt: ""}), " ");
        grid.append(name, track, make("span", {class: "number"}, note));
      }
      return grid.children.length ? grid : make("p", {class: "note"}, "none " + sign);
    };
    const choose = (t, asked = true) => {
      chosen = t;
      const panel = byId("example"), parts = [make("h3", {}, "Example " + t + (data.labels ? ": " + label(t) : ""))];
      if (data.images[t]) parts.push(make("img", {class: "main", src: data.images[t], alt: "Example " + t + (data.labels ? ", " + label(t) : "")}));
      if (data.texts[t]) parts.push(make("blockquote", {}, data.texts[t]));
      if (numbers.pearson) {
        parts.push(make("p", {class: "note"}, "Held-out correlation " + show(numbers.pearson[t]) +
          " [" + show(numbers.low[t]) + ", " + show(numbers.high[t]) + "]."));
      }
      if (top) {
        parts.push(make("h4", {}, "Raise the output when kept"), bars(t, 0, top.count / 2, "var(--helps)", "raises it"));
        parts.push(make("h4", {}, "Lower the output when kept"), bars(t, top.count / 2, top.count, "var(--hurts)", "lowers it"));
        if (top.errors) parts.push(make("p", {class: "note"}, "±, and the line at a bar's end: 95% interval."));
      }
      if (near) {
        const list = make("ul", {class: "near"});
        for (let at = t * near.count; at < (t + 1) * near.count; at++) {
          const other = near.targets[at];
          const button = make("button", {type: "button", "aria-label": "Show example " + other}, other + " (" + show(near.cosines[at], 2) + ")");
          if (data.images[other]) button.prepend(make("img", {src: data.images[other], alt: ""}), " ");
          button.addEventListener("click", () => choose(other));
          list.append(make("li", {}, button));
        }
        parts.push(make("h4", {}, "Nearest in attribution space (cosine)"), list);
      }
      panel.replaceChildren(...parts);
      draw();
      if (asked && matchMedia("(max-width: 52rem)").matches) panel.scrollIntoView();
    };
    byId("search").addEventListener("input", find);
    byId("search-form").addEventListener("submit", (event) => event.preventDefault());
    byId("previous").addEventListener("click", () => { page--; draw(); });
    byId("next").addEventListener("click", () => { page++; draw(); });
    find();
    if (count) choose(0, false);
  }

  function scatter() {
    const packed = data.scatter, width = packed.points;
    const predicted = unscale(packed.predicted, width), measured = unscale(packed.true, width);
    const select = byId("scatter-target"), place = byId("scatter");
    packed.targets.forEach((t, at) => select.append(make("option", {value: at},
      "example " + t + (data.labels ? ": " + short(data.labels[t]) : ""))));
    const NS = "http://www.w3.org/2000/svg";
    const part = (tag, attributes, text) => {
      const element = document.createElementNS(NS, tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const draw = () => {
      const at = Number(select.value), from = at * width;
      const p = predicted.subarray(from, from + width), y = measured.subarray(from, from + width);
      const range = (values) => [Math.min(...values), Math.max(...values)];
      const low = Math.min(range(p)[0], range(y)[0]), high = Math.max(range(p)[1], range(y)[1]);
      const spread = high - low || 1, x = (v) => 40 + 250 * (v - low) / spread;
      const up = (v) => 262 - 250 * (v - low) / spread;
      const svg = part("svg", {viewBox: "0 0 300 300", class: "scatter", role: "img",
        "aria-label": "Predicted against measured output of example " + packed.targets[at]});
      svg.append(part("line", {x1: x(low), y1: up(low), x2: x(high), y2: up(high), stroke: "currentColor", "stroke-width": 0.7}));
      p.forEach((value, row) => svg.append(part("circle", {cx: x(value).toFixed(1), cy: up(y[row]).toFixed(1), r: 2.2, fill: "var(--helps)", "fill-opacity": 0.6})));
      const text = {"font-size": 10, fill: "currentColor"};
      svg.append(part("text", {...text, x: 165, y: 292, "text-anchor": "middle"}, "predicted " + data.output));
      svg.append(part("text", {...text, x: 8, y: 140, transform: "rotate(-90 8 140)", "text-anchor": "middle"}, "measured " + data.output));
      const rough = spread / 4, base = 10 ** Math.floor(Math.log10(rough));
      const step = base * [1, 2, 5, 10].find((times) => times * base >= rough);
      for (let at = Math.ceil(low / step); at * step <= high; at++) {
        const value = at * step, said = fixed(value, Math.max(0, -Math.floor(Math.log10(step))));
        svg.append(part("text", {...text, x: x(value), y: 277, "text-anchor": "middle"}, said));
        svg.append(part("text", {...text, x: 36, y: up(value) + 3, "text-anchor": "end"}, said));
      }
      place.replaceChildren(svg);
    };
    select.addEventListener("change", draw);
    draw();
  }

  theme();
  document.querySelectorAll("table.sortable").forEach(sortable);
  if (data.targets && byId("examples")) explorer();
  if (data.scatter && byId("scatter")) scatter();
  document.documentElement.dataset.ready = "1";
})();
