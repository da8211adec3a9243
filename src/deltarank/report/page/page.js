"use strict";
// The rank selector and the other controls change `state`, and then update what depends on it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  // A column that repeats few values comes as those values and the number of each row's value.
  const unpacked = (columns) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, Array.isArray(column) ? column : column.at.map((i) => column.of[i])]));
  for (const run of data.runs) Object.assign(run, { cells: unpacked(run.cells), matrices: unpacked(run.matrices) });
  const narrow = matchMedia("(max-width: 640px)");
  const oneAtATime = data.shows_one_run; // of more runs than fit side by side, one is chosen
  const several = data.runs.length > 1 && !oneAtATime;
  const FIRST_ROWS = 60;
  const state = { rankIndex: data.default_rank_index, shown: 0, run: 0, matrix: null, cursor: null, sort: "lost0", down: true, all: false, filter: "" };
  const drawn = new Map(); // element -> view
  let generation = 0;

  const find = (selector) => document.querySelector(selector);
  const rank = () => data.ranks[state.rankIndex];

  // ---- numbers as text, as in results/formatting.py ----------------------------------------------------
  const NB = "\u00a0";

  function fixed(value, digits) {
    const scaled = value * 10 ** digits;
    const tie = Math.abs(scaled % 1) === 0.5; // Python rounds a tie to the even neighbour
    return ((tie ? 2 * Math.round(scaled / 2) : Number(value.toFixed(digits)) * 10 ** digits) / 10 ** digits).toFixed(digits);
  }

  function percent(share) {
    if (share === null || share === undefined) return "not measured";
    if (share === 0 || share === 1) return `${100 * share}${NB}%`;
    if (share < 0.001) return `under 0.1${NB}%`;
    if (share > 0.999) return `over 99.9${NB}%`;
    const hundredths = 100 * share;
    return `${fixed(hundredths, hundredths < 9.95 || hundredths >= 98.5 ? 1 : 0)}${NB}%`;
  }

  const kept = (lost) => (lost === null ? "not measured" : percent(lost > 0 && 1 - lost === 1 ? 0.9999 : 1 - lost));
  const cosine = (lost) => (lost === null ? null : lost / (1 + Math.sqrt(1 - lost)));

  function figure(value) {
    if (value === null || value === undefined) return "";
    if (value === 0) return "0";
    if (Math.abs(value) >= 1000) return Number(value.toPrecision(3)).toLocaleString("en-US");
    if (Math.abs(value) < 1e-3) return value.toExponential(1);
    return String(Number(value.toPrecision(3)));
  }

  const whole = (count) => (count === null ? "" : count.toLocaleString("en-US"));

  // Four digits, for the table.
  function exact(value) {
    if (value === null || value === undefined) return "";
    if (value === 0 || Number.isInteger(value)) return String(value);
    return Math.abs(value) < 1e-3 ? value.toExponential(3) : value.toPrecision(4);
  }

  // ---- small things -----------------------------------------------------------------------------------------
  function rows(columns) {
    const names = Object.keys(columns);
    return names.length ? columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]]))) : [];
  }

  function element(tag, text, attributes = {}) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  const cellsOf = data.runs.map((run) => rows(run.cells));
  const lostOf = (run, matrix) => data.runs[run].matrices.lost[matrix][state.rankIndex];
  const cellText = (run, i) => {
    const cell = cellsOf[run][i];
    const lost = cell[`lost_${rank()}`];
    const where = cell.layer_number === null ? cell.module : `layer ${cell.layer}, ${cell.module}`;
    const count = data.runs[run].cell_matrices[i];
    const many = count > 1 ? ` (${whole(count)} matrices)` : "";
    if (cell.unchanged) return `${where}${many}: unchanged`;
    if (lost === null) return `${where}${many}: ${data.runs[run].cell_reasons[i] ?? `not measured at rank ${rank()}`}`;
    const missing = data.runs[run].cell_missing[i] ? `; ${data.runs[run].cell_missing[i]} not measured` : "";
    const unlisted = data.runs[run].cell_members[i].length ? "" : "; this page has no row for it, results.json has";
    return `${where}${many}: ${percent(lost)} of the energy lost at rank ${rank()}, cosine distance ${figure(cosine(lost))}${missing}${unlisted}`;
  };

  // ---- charts -----------------------------------------------------------------------------------------------
  const short = (table) => ((several || narrow.matches) && table.module ? { ...table, name: table.module.map((label) => data.short_modules[label] ?? label) } : table);

  function heatName() {
    return several || narrow.matches ? "heat_tall" : "heat";
  }

  function datasets(name, run) {
    if (outputs?.has(name)) return outputs.datasets(name, run);
    if (name === "heat" || name.startsWith("layers_")) return { cells: cellsOf[run] };
    if (name === "loss") return { by_rank: rows(data.runs[run].by_rank), line_ends: rows(short(data.runs[run].line_ends)) };
    if (name === "runs") return { by_rank: rows(data.all_runs.by_rank), line_ends: rows(data.all_runs.line_ends) };
    return matrixData();
  }

  function tipText(row) {
    if ("tooltip" in row) return row.tooltip;
    if ("share_kld" in row) return outputs.partText(row);
    if ("cell" in row) return null; // see `tip`
    if (row.kind === "outputs") return `rank ${row.rank}: ${percent(row.lost)} of what the change adds to the layers' outputs is lost`;
    if ("rank" in row) return `${row.module ? `${row.module}, ` : ""}rank ${row.rank}: ${percent(row.lost)} of the energy lost, cosine distance ${figure(cosine(row.lost))}`;
    return `singular value ${row.index}: ${figure(row.value)}`;
  }

  function tip(run, event, row) {
    const box = find("#tip") ?? document.body.appendChild(element("div", "", { id: "tip" }));
    box.hidden = !row;
    if (!row) return;
    box.textContent = "cell" in row ? cellText(run, row.cell) : tipText(row);
    const { width, height } = box.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
    box.style.top = `${event.clientY + 16 + height > innerHeight ? event.clientY - height - 8 : event.clientY + 16}px`;
  }

  // A map of few layers does not spread over the whole page.
  function heatWidth(tall) {
    return tall ? `${70 + 64 * data.modules.length}px` : `${190 + 48 * data.layers.length}px`;
  }

  function legendColumns(place) {
    const longest = Math.max(...data.modules.map((label) => label.length));
    return Math.max(1, Math.floor(place.clientWidth / (26 + Math.min(160, 6.8 * longest))));
  }

  async function draw(place) {
    const name = place.dataset.chart;
    const run = Number(place.dataset.run ?? 0);
    const mine = generation;
    if (place.closest("[hidden]")) return;
    const chart = data.charts[outputs?.has(name) ? outputs.chartName(name) : name === "heat" ? heatName() : name];
    if (name === "heat") place.style.maxWidth = heatWidth(heatName() === "heat_tall");
    const legend = { ...data.chart_config.legend, columns: legendColumns(place) };
    const config = { ...data.chart_config, range: { category: chart.colours }, legend, aria: false };
    const given = outputs?.has(name) ? outputs.signals(name, run) : {};
    const params = chart.definition.params.map((param) => (param.name in given ? { ...param, value: given[param.name] } : param));
    const spec = { ...chart.definition, params, datasets: { ...chart.definition.datasets, ...datasets(name, run) } };
    const { view } = await vegaEmbed(place, spec, {
      mode: "vega-lite", renderer: "svg", ast: true, actions: false, defaultStyle: false, hover: false, config,
      tooltip: (handler, event, item, value) => tip(run, event, value && typeof value === "object" ? item.datum : null),
    });
    if (mine !== generation) return view.finalize();
    place.querySelector("svg").setAttribute("aria-hidden", "true"); // its place says what it shows
    drawn.set(place, view);
    view.addEventListener("click", (event, item) => {
      if (item?.datum && "cell" in item.datum) choose(run, item.datum.cell, { from: name });
    });
    await update(place, view);
  }

  async function update(place, view) {
    view.signal("rank", rank());
    if (place.dataset.chart === "runs") view.signal("shown_run", data.runs[state.shown].label);
    if (place.dataset.chart === "heat") {
      const here = state.cursor?.run === Number(place.dataset.run) ? cellsOf[state.cursor.run][state.cursor.cell] : null;
      view.signal("cursor_layer", here ? here.layer : "").signal("cursor_module", here ? here.module : "");
    }
    await view.runAsync();
  }

  const updateCharts = () => Promise.all([...drawn].map(([place, view]) => update(place, view)));

  async function drawAll() {
    generation += 1;
    for (const [place, view] of drawn) {
      view.finalize();
      place.replaceChildren();
    }
    drawn.clear();
    document.documentElement.dataset.ready = "";
    const mine = generation;
    for (const place of document.querySelectorAll("[data-chart]")) {
      await draw(place);
      if (mine !== generation) return;
    }
    document.documentElement.dataset.ready = "yes";
  }

  // ---- the selected rank --------------------------------------------------------------------------------------
  function showHeadline() {
    const parts = data.headlines[state.rankIndex].map(([text, name]) => (name ? element("em", text) : text));
    find("#headline").replaceChildren(...parts);
    find("#figures").textContent = data.figures[state.rankIndex];
    for (const place of document.querySelectorAll(".at-rank")) place.textContent = rank();
    for (const place of document.querySelectorAll(".activations")) place.textContent = data.runs[place.dataset.run].activation_sentences[state.rankIndex];
    for (const part of document.querySelectorAll("[data-rank-index]")) part.classList.toggle("now", Number(part.dataset.rankIndex) === state.rankIndex);
  }

  function selectRank(index) {
    state.rankIndex = index;
    showHeadline();
    updateCharts();
    showMatrix();
    showTable();
    outputs?.show();
    for (const heat of document.querySelectorAll(".heat")) readOut(heat);
  }

  // ---- the heat map by keyboard -----------------------------------------------------------------------------
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function step(run, from, key) {
    const [across, down] = ARROWS[key];
    const [byLayer, byModule] = heatName() === "heat_tall" ? [down, across] : [across, down];
    const cells = cellsOf[run];
    let layer = data.layers.indexOf(cells[from].layer);
    let module = data.modules.indexOf(cells[from].module);
    for (;;) { // over the gaps, to the next cell
      layer += byLayer;
      module += byModule;
      if (!(layer in data.layers) || !(module in data.modules)) return from;
      const next = cells.findIndex((cell) => cell.layer === data.layers[layer] && cell.module === data.modules[module]);
      if (next >= 0) return next;
    }
  }

  function readOut(heat) {
    const run = Number(heat.dataset.run);
    const here = state.cursor?.run === run ? state.cursor.cell : null;
    heat.parentElement.querySelector(".readout").textContent = here === null ? "" : cellText(run, here);
  }

  function moveTo(run, cell) {
    state.cursor = { run, cell };
    for (const heat of document.querySelectorAll(".heat")) readOut(heat);
    updateCharts();
  }

  function heatKeys(event) {
    const run = Number(event.currentTarget.dataset.run);
    if (!cellsOf[run].length) return;
    const here = state.cursor?.run === run ? state.cursor.cell : 0;
    if (event.key in ARROWS) moveTo(run, state.cursor?.run === run ? step(run, here, event.key) : 0);
    else if (event.key === "Enter" || event.key === " ") choose(run, here, { from: "heat" });
    else return;
    event.preventDefault();
  }

  // ---- one matrix -------------------------------------------------------------------------------------------
  const worstFirst = (run, members) => [...members].sort((a, b) => (lostOf(run, b) ?? -1) - (lostOf(run, a) ?? -1));

  function choose(run, cell, { matrix, from } = {}) {
    const members = data.runs[run].cell_members[cell];
    if (!members.length) return void moveTo(run, cell); // more cells than rows
    Object.assign(state, { run, matrix: matrix ?? worstFirst(run, members)[0] });
    showChoice(members, data.runs[run].cell_matrices[cell]);
    showMatrix();
    moveTo(run, cell);
    if (from === "heat") find("#matrix-name").scrollIntoView({ block: "nearest" });
    else if (from) location.hash = "matrix";
  }

  function showChoice(members, count) {
    const box = find("#matrix-choice");
    box.hidden = members.length < 2;
    if (box.hidden) return;
    const names = data.runs[state.run].matrices.name;
    const listed = members.length < count ? `; the ${members.length} that lose the most` : "";
    box.querySelector("span").textContent = `${whole(count)} in this cell${listed}`;
    const options = worstFirst(state.run, members).map((i) => element("option", `${names[i]}: ${percent(lostOf(state.run, i))} lost`, { value: i }));
    box.querySelector("select").replaceChildren(...options);
    box.querySelector("select").value = state.matrix;
  }

  const points = (shared, split) => (split ? shared[split[0]].map((index, i) => [index, split[1][i]]) : []);

  function matrixData() {
    if (state.matrix === null || !data.runs[state.run].matrices.frobenius[state.matrix]) return { curve: [], spectrum: [], rank_marks: [], references: [] };
    const all = data.runs[state.run].matrices;
    const i = state.matrix;
    const values = points(all.shared_indices, all.spectrum[i]);
    const last = values.length ? values[values.length - 1][0] : 0;
    const references = [["noise edge", all.noise_edge[i]], ["rounding floor", all.floor_level[i]]];
    return {
      curve: points(all.shared_indices, all.curve[i]).map(([at, lost]) => ({ rank: at, lost, is_page_rank: data.ranks.includes(at) })),
      spectrum: values.map(([index, value]) => ({ index, value })),
      rank_marks: [...data.ranks.filter((at) => at <= last).map((index) => ({ index, is_shown: true })), { index: Math.max(1, last), is_shown: false }],
      references: [...references.filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1])
        .map(([name, value], i) => ({ name_above: i ? "" : name, name_below: i ? name : "", value, is_shown: true })),
      { name_above: "", name_below: "", value: values.length ? values[0][1] : 1, is_shown: false }],
    };
  }

  function factsAtRank(all, i, lost) {
    if (lost === null) return [];
    const mse = all.frobenius[i] === null ? "" : figure((lost * all.frobenius[i] ** 2) / all.entries[i]);
    const ofOutputs = all.activation_lost[i]?.[state.rankIndex] ?? null;
    return [["energy kept", kept(lost)], ["energy lost", percent(lost)], ["cosine distance", figure(cosine(lost))],
      ["relative error", figure(Math.sqrt(lost))], ["mean squared error", mse], ["lost of the layer's outputs", ofOutputs === null ? "" : percent(ofOutputs)]];
  }

  function factsAtAnyRank(all, i) {
    const facts = [["shape", all.shape[i]], ["stored as", all.dtype[i]], ["largest possible rank", whole(all.max_rank[i])]];
    if (!all.frobenius[i]) return facts;
    return [...facts, ["share of the change", percent(all.share[i])], ["size of the change, ‖D‖", figure(all.frobenius[i])],
      ["change / weights", percent(all.relative_norm[i])], ["mean |D|", figure(all.mean_abs[i])], ["stable rank", figure(all.stable_rank[i])],
      ["effective rank", figure(all.effective_rank[i]) || "unknown (partial spectrum)"], ["above the noise edge", whole(all.signal_rank[i]) || "all that were computed"],
      ["rounding floor", percent(all.rounding_floor[i])], ["solver", all.solver[i] ?? ""]];
  }

  function showFacts(place, facts) {
    place.replaceChildren(...facts.filter(([, value]) => value !== "").map(([title, value]) => {
      const pair = element("div");
      pair.append(element("dt", title), element("dd", value));
      return pair;
    }));
  }

  function showMatrix() {
    if (state.matrix === null) return;
    const all = data.runs[state.run].matrices;
    const i = state.matrix;
    const whose = several ? `${data.runs[state.run].label}: ` : "";
    find("#matrix-name").textContent = whose + all.name[i];
    const detailed = Boolean(all.curve[i] || all.spectrum[i]);
    const absent = detailed || all.reason[i] ? "" : "This page has the curves and spectra of the largest losses; results.json has all.";
    find("#matrix-reason").textContent = all.reason[i] ?? absent;
    find("#matrix-reason").hidden = !find("#matrix-reason").textContent;
    const lost = lostOf(state.run, i);
    find("#matrix-at").hidden = lost === null;
    showFacts(find("#matrix-at dl"), factsAtRank(all, i, lost));
    showFacts(find("#matrix-figures"), factsAtAnyRank(all, i));
    for (const place of document.querySelectorAll("#matrix [data-chart]")) showMatrixChart(place);
  }

  // Without numbers a logarithmic axis has no ends, so an empty chart is not drawn at all.
  function showMatrixChart(place) {
    const datasets = matrixData();
    const name = place.dataset.chart;
    place.closest("figure").hidden = !datasets[name].length;
    if (!datasets[name].length) return;
    const view = drawn.get(place);
    if (!view) return void (document.documentElement.dataset.ready && draw(place));
    for (const dataset of name === "curve" ? ["curve"] : ["spectrum", "rank_marks", "references"]) view.data(dataset, datasets[dataset]);
    view.runAsync().then(() => view.resize().runAsync());
  }

  // ---- the table --------------------------------------------------------------------------------------------
  // Several runs share a line where their matrices share a name; its figures are then those of each run.
  const lines = (() => {
    const byKey = new Map();
    data.runs.forEach((run, r) => {
      const { name, layer, shape, entries } = run.matrices;
      const cells = [];
      run.cell_members.forEach((members, cell) => members.forEach((i) => (cells[i] = cell)));
      const seen = new Map(); // a broken checkpoint may use a name twice
      cells.forEach((cell, i) => {
        seen.set(name[i], (seen.get(name[i]) ?? 0) + 1);
        const key = `${seen.get(name[i])} ${name[i]}`;
        if (!byKey.has(key)) byKey.set(key, { name: name[i], layer: layer[i], shape: shape[i], entries: entries[i], at: {} });
        byKey.get(key).at[r] = { cell, i };
      });
    });
    return [...byKey.values()];
  })();

  const lostIn = (r) => (line) => (line.at[r] ? lostOf(r, line.at[r].i) : null);
  const own = (field) => (line) => data.runs[state.shown].matrices[field][line.at[state.shown].i];
  const listedRuns = () => (oneAtATime ? [state.shown] : [...data.runs.keys()]);
  const share4 = (share) => (share === null ? "" : share === 0 || share === 1 ? `${100 * share} %` : `${exact(100 * share)} %`);

  function columns() {
    const name = { id: "name", title: "matrix", value: (line) => line.name, text: true };
    const last = [
      { id: "layer", title: "layer", value: (line) => (/^\d+$/.test(line.layer) ? Number(line.layer) : null) },
      { id: "shape", title: "shape", value: (line) => line.entries, show: (_, line) => line.shape },
    ];
    const lost = listedRuns().map((r, i) => ({ id: `lost${i}`, title: `${several ? `${data.runs[r].label}, lost` : "energy lost"} at rank ${rank()}`, value: lostIn(r), show: share4 }));
    if (several) return [name, ...lost, ...last];
    return [name, ...lost,
      { id: "cosine", title: `cosine distance at rank ${rank()}`, value: (line) => cosine(lostIn(state.shown)(line)), show: exact },
      { id: "share", title: "share of the change", value: own("share"), show: share4 },
      { id: "relative_norm", title: "change / weights", value: own("relative_norm"), show: share4 },
      { id: "stable_rank", title: "stable rank", value: own("stable_rank") },
      { id: "effective_rank", title: "effective rank", value: own("effective_rank") },
      { id: "signal_rank", title: "above the noise edge", value: own("signal_rank") },
      { id: "rounding_floor", title: "rounding floor", value: own("rounding_floor"), show: share4 },
      ...last];
  }

  function compare(column) {
    const sign = state.down ? -1 : 1;
    return (a, b) => {
      const [x, y] = [column.value(a), column.value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // unknown comes last, either way
      return sign * (column.text ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    };
  }

  function header(column) {
    const head = element("th", undefined, { scope: "col", ...(column.text ? {} : { class: "number" }) });
    if (column.id === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const button = element("button", column.title, { type: "button", "data-sort": column.id });
    head.append(button);
    return head;
  }

  function tableRow(line, all) {
    const row = element("tr");
    for (const column of all) {
      const value = column.value(line);
      if (column.id === "name") {
        const cell = row.appendChild(element("td", undefined, { class: "name" }));
        const link = cell.appendChild(element("a", line.name, { href: "#matrix" }));
        link.addEventListener("click", () => {
          const r = listedRuns().find((each) => line.at[each]);
          choose(r, line.at[r].cell, { matrix: line.at[r].i });
        });
      } else row.append(element("td", (column.show ?? exact)(value, line), { class: "number" }));
    }
    return row;
  }

  function showTable() {
    const all = columns();
    const focused = document.activeElement?.dataset?.sort;
    const column = all.find(({ id }) => id === state.sort) ?? all[0];
    const word = state.filter.toLowerCase();
    const listed = lines.filter((line) => listedRuns().some((r) => line.at[r]));
    const matching = listed.filter((line) => line.name.toLowerCase().includes(word)).sort(compare(column));
    const shown = state.all ? matching : matching.slice(0, FIRST_ROWS);
    const head = element("tr");
    head.append(...all.map(header));
    find("#matrices thead").replaceChildren(head);
    find("#matrices tbody").replaceChildren(...shown.map((line) => tableRow(line, all)));
    if (focused) find(`[data-sort="${focused}"]`)?.focus();
    const unlisted = listedRuns().reduce((sum, r) => sum + data.runs[r].unlisted_matrices, 0);
    const more = unlisted ? `, those of each cell that lose the most; ${whole(unlisted)} more are in results.json` : "";
    find("#shown").textContent = `${whole(shown.length)} of ${whole(listed.length)}${more}`;
    find("#more").hidden = shown.length === matching.length;
    find("#more").textContent = `Show all ${matching.length.toLocaleString("en-US")}`;
  }

  function sortBy(id) {
    state.down = state.sort === id ? !state.down : id !== "name" && id !== "layer";
    state.sort = id;
    showTable();
  }

  // ---- outputs, where there are any ---------------------------------------------------------------------------
  const outputs = data.runs.some((run) => run.outputs) ? outputsOf({ data, state, rank, rows, element, narrow, several, drawn, draw, showFacts, figure, percent }) : null;

  // ---- begin ------------------------------------------------------------------------------------------------
  function worst() {
    let largest = null;
    listedRuns().forEach((r) => data.runs[r].cell_members.forEach((list, cell) => list.forEach((matrix) => {
      const lost = lostOf(r, matrix) ?? -1;
      if (!largest || lost > largest.lost) largest = { run: r, cell, matrix, lost };
    })));
    return largest;
  }

  function showWorst() {
    const first = worst();
    find("#matrix").hidden = !first;
    if (first) choose(first.run, first.cell, { matrix: first.matrix });
  }

  function showRun(run) {
    state.shown = run;
    for (const part of document.querySelectorAll("[data-of-run]")) part.hidden = Number(part.dataset.ofRun) !== run;
    showWorst();
    showTable();
    outputs?.show();
  }

  function listen() {
    find("#rank-selector .ranks").addEventListener("change", (event) => selectRank(Number(event.target.value)));
    find("#run")?.addEventListener("change", (event) => {
      showRun(Number(event.target.value));
      drawAll();
    });
    for (const heat of document.querySelectorAll(".heat")) heat.addEventListener("keydown", heatKeys);
    find("#matrix-choice select").addEventListener("change", (event) => {
      state.matrix = Number(event.target.value);
      showMatrix();
    });
    find("#matrices thead").addEventListener("click", (event) => {
      const button = event.target.closest("[data-sort]");
      if (button) sortBy(button.dataset.sort);
    });
    find("#filter").addEventListener("input", (event) => {
      state.filter = event.target.value;
      showTable();
    });
    find("#more").addEventListener("click", () => {
      state.all = true;
      showTable();
    });
    narrow.addEventListener("change", drawAll);
  }

  // A browser may keep the selected rank over a reload.
  state.rankIndex = Number(find("#rank-selector input:checked")?.value ?? data.default_rank_index);
  outputs?.begin();
  if (oneAtATime) showRun(Number(find("#run").value));
  else showWorst();
  showHeadline();
  showTable();
  listen();
  window.deltarank = { percent, figure, kept }; // for the tests: results/formatting.py and this page must agree
  drawAll();
})();
