"use strict";
// Draws the figures in the page's colours; switches views, arms and colour scheme.
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const SCHEMES = ["auto", "light", "dark"];
  const hidden = new Set();
  const drawn = new Set();
  const view = {};

  const token = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();

  // Values such as "$ink" under a colour key are colours of the scheme.
  function coloured(value, key) {
    if (Array.isArray(value)) return value.map((each) => coloured(each, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, k)]));
    }
    const isColour = typeof value === "string" && value[0] === "$" && /color/.test(key);
    return isColour ? token(value.slice(1)) : value;
  }

  function axis(own) {
    const lines = { gridcolor: "$grid", linecolor: "$rule", zerolinecolor: "$rule", tickcolor: "$rule" };
    const title = own && own.title && own.title.text ? { ...own.title, standoff: 8 } : undefined;
    return { ...lines, automargin: true, fixedrange: matchMedia("(pointer: coarse)").matches, ...own, title };
  }

  function layoutOf(own) {
    return coloured({
      ...own,
      xaxis: axis(own.xaxis),
      yaxis: axis(own.yaxis),
      autosize: true,
      margin: { l: 48, r: 18, t: own.showlegend ? 36 : 14, b: 44 },
      paper_bgcolor: "$paper",
      plot_bgcolor: "$paper",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "$ink" },
      hoverlabel: { bgcolor: "$paper", bordercolor: "$muted", font: { color: "$ink" } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    }, "");
  }

  function draw(id) {
    const study = id.split("-")[0];
    const chosen = figures[id].views[view[id]];
    const data = chosen.data.map((trace) => {
      const meta = trace.meta || {};
      const off = hidden.has(`${study} arm ${meta.arm}`) || hidden.has(`${study} layer ${meta.layer}`);
      return { ...coloured(trace, ""), visible: !off };
    });
    const config = { responsive: true, displayModeBar: false, displaylogo: false };
    drawn.add(id);
    return Plotly.react(id, data, layoutOf(chosen.layout), config);
  }

  const ids = Object.keys(figures);
  const redraw = (which) => which.filter((id) => drawn.has(id)).forEach(draw);

  // A plot is drawn when it comes near the viewport, so that long reports load fast.
  function drawInView() {
    const nearby = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        nearby.unobserve(target);
        if (!drawn.has(target.id)) draw(target.id);
      }
      root.dataset.ready = "";
    }, { rootMargin: "50% 0%" });
    for (const id of ids) nearby.observe(document.getElementById(id));
    if (!ids.length) root.dataset.ready = "";
    addEventListener("beforeprint", () => ids.filter((id) => !drawn.has(id)).forEach(draw));
  }

  function listen() {
    for (const select of document.querySelectorAll("select[data-figure]")) {
      select.addEventListener("change", () => {
        const { study, choice } = select.dataset;
        // Both plots of curves have the same metrics; they move together.
        const twins = choice === "metric" ? `select[data-study="${study}"][data-choice="metric"]` : null;
        for (const each of twins ? document.querySelectorAll(twins) : [select]) {
          each.value = select.value;
          view[each.dataset.figure] = Number(select.value);
          if (each === select || drawn.has(each.dataset.figure)) draw(each.dataset.figure);
        }
      });
    }
    for (const chip of document.querySelectorAll("button.chip")) {
      chip.addEventListener("click", () => {
        const { study, arm, layer } = chip.dataset;
        const key = arm ? `${study} arm ${arm}` : `${study} layer ${layer}`;
        const show = hidden.delete(key);
        if (!show) hidden.add(key);
        // Both accuracy plots have the same chips; they move together.
        for (const twin of document.querySelectorAll("button.chip")) {
          if (twin.dataset.study === study && twin.dataset.arm === arm && twin.dataset.layer === layer) {
            twin.setAttribute("aria-pressed", String(show));
          }
        }
        redraw(ids.filter((id) => id.startsWith(`${study}-accuracy`)));
      });
    }
    for (const button of document.querySelectorAll("button[data-copy]")) {
      button.addEventListener("click", () => copy(button));
    }
    document.getElementById("theme").addEventListener("click", () => {
      const now = SCHEMES.indexOf(root.dataset.theme || "auto");
      setScheme(SCHEMES[(now + 1) % SCHEMES.length]);
      redraw(ids);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(ids));
  }

  function setScheme(name) {
    if (name === "auto") delete root.dataset.theme; else root.dataset.theme = name;
    document.querySelector("#theme span").textContent = name;
    try { localStorage.setItem("fedkd-scheme", name); } catch { /* no storage in private windows */ }
  }

  function storedScheme() {
    try { return localStorage.getItem("fedkd-scheme"); } catch { return null; }
  }

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      // Pages opened from disk may have no clipboard API: select the text and use execCommand.
      getSelection().selectAllChildren(source);
      done = document.execCommand("copy");
    }
    const words = done ? "Copied" : "Selected: copy it with the keyboard";
    document.getElementById("said").textContent = words;
    const label = button.dataset.label || (button.dataset.label = button.textContent);
    button.textContent = words;
    setTimeout(() => { button.textContent = label; }, 1600);
  }

  const stored = storedScheme();
  if (SCHEMES.includes(stored)) setScheme(stored);
  for (const id of ids) view[id] = figures[id].start;
  listen();
  drawInView();
})();
