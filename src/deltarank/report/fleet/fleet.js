"use strict";
// Sorts and filters the table, and draws the map of cosines.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector) => document.querySelector(selector);
  const body = find("#rows tbody");
  const rows = [...body.rows];
  const state = { sort: null, down: true, rank: Number(find("#rank").value), row: 0, column: 0 };

  // ---- the table ----------------------------------------------------------------------------------------------
  function value(row, key) {
    if (key === "name" || key === "kind") return row.dataset[key];
    const text = key === "kept" ? row.dataset.kept.split(" ")[state.rank] : row.dataset[key];
    return text ? Number(text) : null;
  }

  function compare(a, b) {
    const [x, y] = [value(a, state.sort), value(b, state.sort)];
    const order = Number(a.dataset.row) - Number(b.dataset.row);
    if (x === null || y === null) return (x === null) - (y === null) || order; // unknown comes last, either way
    const by = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return (state.down ? -by : by) || order;
  }

  function sortBy(key) {
    const isText = key === "name" || key === "kind";
    state.down = state.sort === key ? !state.down : !isText && key !== "kept";
    state.sort = key;
    show();
  }

  function show() {
    const word = find("#filter").value.toLowerCase();
    if (state.sort) body.append(...rows.sort(compare));
    for (const row of rows) {
      row.hidden = !row.dataset.name.toLowerCase().includes(word);
      row.querySelector(".at").textContent = data.kept[row.dataset.row][state.rank] ?? "";
    }
    for (const head of document.querySelectorAll("#rows thead th")) {
      const isSorted = state.sort && head.querySelector("button")?.dataset.sort === state.sort;
      if (isSorted) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const shown = rows.filter((row) => !row.hidden).length;
    find("#shown").textContent = `${shown.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")}`;
  }

  find("#rows thead").addEventListener("click", (event) => {
    const button = event.target.closest("[data-sort]");
    if (button) sortBy(button.dataset.sort);
  });
  find("#filter").addEventListener("input", show);
  find("#rank").addEventListener("change", (event) => {
    state.rank = Number(event.target.value);
    show();
  });
  show();

  // ---- the map ------------------------------------------------------------------------------------------------
  const map = find("#map");
  if (!map) return;
  const size = data.names.length;
  const cosine = (i, j) => (i === j ? 100 : i > j ? data.cosines[i][j] : data.cosines[j][i]);
  const STEPS = 9; // colours from 0 to 1; below 0 another one, mixed with the first
  const dark = matchMedia("screen and (prefers-color-scheme: dark)"); // paper is always light

  // The stylesheet has the colours of either mode, as #rrggbb.
  function colours() {
    const style = getComputedStyle(document.documentElement);
    const named = (name) => style.getPropertyValue(name).trim();
    const parts = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const ramp = Array.from({ length: STEPS }, (_, i) => parts(named(`--cosine-${i}`)));
    return { ramp, below: parts(named("--series-0")), mark: named("--series-0") };
  }

  const mixed = (from, to, share) => from.map((part, k) => Math.round(part + (to[k] - part) * share));

  function colour(percent, { ramp, below }) {
    if (percent < 0) return mixed(ramp[0], below, Math.min(-percent / 100, 1));
    const place = (percent / 100) * (STEPS - 1);
    const step = Math.min(Math.floor(place), STEPS - 2);
    return mixed(ramp[step], ramp[step + 1], place - step);
  }

  function draw() {
    const now = colours();
    const scale = Math.max(1, Math.floor((2 * 640) / size)); // two pixels of the canvas for each of the page
    map.width = map.height = size * scale;
    const context = map.getContext("2d");
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        context.fillStyle = `rgb(${colour(cosine(i, j), now).join()})`;
        context.fillRect(j * scale, i * scale, scale, scale);
      }
    }
    if (state.chosen) {
      const width = Math.max(2, Math.round(size * scale / 320));
      context.strokeStyle = now.mark;
      context.lineWidth = width;
      const edge = Math.max(scale, 3 * width);
      const from = (place) => Math.min(Math.max((place + 0.5) * scale - edge / 2, width / 2), size * scale - edge - width / 2);
      context.strokeRect(from(state.column), from(state.row), edge, edge);
    }
  }

  function choose(row, column) {
    const inside = (place) => Math.min(Math.max(place, 0), size - 1);
    [state.row, state.column, state.chosen] = [inside(row), inside(column), true];
    draw();
    const [first, second] = [data.names[state.row], data.names[state.column]];
    const text = (cosine(state.row, state.column) / 100).toFixed(3).replace("-", "\u2212");
    find("#pair").textContent = state.row === state.column ? first : `${first} and ${second}: cosine ${text}`;
  }

  function at(event) {
    const box = map.getBoundingClientRect();
    const place = (offset, length) => Math.floor((offset / length) * size);
    choose(place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width));
  }

  map.addEventListener("pointermove", (event) => event.pointerType === "mouse" && at(event));
  map.addEventListener("click", at);
  map.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(state.row + step[0], state.column + step[1]);
  });
  dark.addEventListener("change", draw);
  draw();
})();
