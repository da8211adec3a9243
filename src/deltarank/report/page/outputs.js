// The sections about outputs; page.js draws their charts. Not in a page without outputs.
const outputsOf = ({ data, state, rank, rows, element, narrow, several, drawn, draw, showFacts, figure, percent }) => {
  const runs = data.runs.map((run) => run.outputs);
  const STEPS = data.token_steps;
  const CHARTS = { kld: ["points", "names"], tokens: ["tokens", "tokens_base", "statistics"], position: ["position", "position_base"],
    confidence: ["confidence", "confidence_base"], documents: ["documents", "documents_base"], parts: ["parts"], bars: ["parts"], scatter: ["parts"] };
  const FINETUNE_AGAIN = -1;
  const chosen = { candidate: "", again: false, text: null };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const runOf = (place) => Number(place.dataset.run);

  // ---- who and what is looked at ----------------------------------------------------------------------------
  const textOf = (run) => (chosen.text === null ? runs[run].default_text : runs[run].texts.indexOf(chosen.text));
  const shown = (run) => (chosen.candidate === "" ? runs[run].at_rank[state.rankIndex].candidate ?? -1 : runs[run].candidates.indexOf(chosen.candidate));
  const nameOf = (run) => (shown(run) < 0 ? "" : runs[run].candidates[shown(run)]);

  // For a rank that was not measured the nearest one is shown, with a remark.
  function instead(run) {
    if (shown(run) < 0) return "Not measured.";
    if (chosen.candidate !== "" || runs[run].at_rank[state.rankIndex].is_exact) return several ? nameOf(run) : "";
    return `Rank ${rank()} was not measured; ${nameOf(run)} is shown.`;
  }

  // ---- charts -----------------------------------------------------------------------------------------------
  const scored = (run, candidate) => runs[run].by_text[textOf(run)]?.candidates[candidate] ?? null;

  function attribution(run) {
    const all = runs[run].attribution;
    const away = (each) => Math.abs(Math.log(each.rank / rank()));
    return all.length ? all.reduce((best, each) => (away(each) < away(best) ? each : best)) : null;
  }

  function tables(name, run) {
    const table = (columns) => rows(columns ?? {});
    if (name === "kld") return [table(runs[run].by_text[textOf(run)]?.points), table(runs[run].by_text[textOf(run)]?.names)];
    if (CHARTS[name][0] === "parts") return [table(attribution(run)?.parts)];
    const both = [scored(run, shown(run)), scored(run, runs[run].base)];
    return name === "tokens" ? [table(both[0]?.tokens), table(both[1]?.tokens), table(both[0]?.statistics)] : both.map((each) => table(each?.[name]));
  }

  // Charts of one candidate: their axes follow what is shown.
  const AXES = { tokens: ["first", "last", "top"], position: ["low", "high", "ticks"], confidence: ["low", "high", "ticks"], documents: ["low", "high", "ticks"] };

  function signals(name, run) {
    const axes = name in AXES && scored(run, shown(run))?.axes;
    return axes ? Object.fromEntries(AXES[name].map((signal) => [signal, axes[signal]])) : {};
  }

  const datasets = (name, run) => Object.fromEntries(tables(name, run).map((each, i) => [CHARTS[name][i], each]));

  // Without rows a logarithmic axis has no ends, so an empty chart is not drawn at all.
  function empty(name, run) {
    const [first, second] = tables(name, run);
    if (name === "parts") return !attribution(run)?.has_map;
    if (name === "documents") return first.length < 2;
    if (name === "bars") return attribution(run)?.has_map || !first.length;
    return !first.length && !(name === "kld" && second.length);
  }

  async function refill(place) {
    const [name, run] = [place.dataset.chart, runOf(place)];
    place.closest("figure").hidden = empty(name, run);
    if (place.closest("figure").hidden) return;
    const view = drawn.get(place);
    if (!view) return void (document.documentElement.dataset.ready === "yes" && draw(place));
    for (const [signal, value] of Object.entries(signals(name, run))) view.signal(signal, value);
    for (const [dataset, filled] of Object.entries(datasets(name, run))) view.data(dataset, filled);
    await view.runAsync();
  }

  function partText(row) {
    const interval = row.low === null ? "" : ` (95 % interval ${figure(row.low)} to ${figure(row.high)})`;
    return `${row.name}: ${figure(row.kld)} nats per token${interval}, ${percent(row.share_kld)} of the sum; ${percent(row.share_lost)} of what is lost in the weights`;
  }

  // ---- text -------------------------------------------------------------------------------------------------
  const stepOf = (nats) => (nats === null || nats === undefined ? 0 : STEPS.filter((step) => nats >= step).length);

  function showTokens(place) {
    const run = runOf(place);
    const excerpt = runs[run].excerpts[document.querySelector(`.excerpt[data-run="${run}"]`).value];
    const nats = excerpt.kld[shown(run)];
    place.nextElementSibling.textContent = "";
    place.replaceChildren(...excerpt.pieces.map((piece, i) => {
      const value = nats?.[i];
      return element("span", piece, { class: `k${stepOf(value)}`, "data-nats": value ?? "" });
    }));
    if (excerpt.is_cut) place.append(element("i", " …"));
  }

  function readToken(event) {
    const token = event.target.closest(".tokens span");
    if (!token) return;
    const nats = token.dataset.nats === "" ? "not scored" : `${figure(Number(token.dataset.nats))} nats`;
    token.parentElement.nextElementSibling.textContent = `“${token.textContent.replace(/\n/g, "↵")}”: ${nats}`;
  }

  // What lies between the spans that the two have in common is marked, but for the space around it.
  function marked(text, spans, side) {
    const parts = [];
    let from = 0;
    for (const span of [...spans, null]) {
      const different = text.slice(from, span ? span[side] : text.length);
      const start = different.length - different.trimStart().length;
      const end = Math.max(start, different.trimEnd().length);
      if (start) parts.push(different.slice(0, start));
      if (start < end) parts.push(element("mark", different.slice(start, end)));
      if (end < different.length) parts.push(different.slice(end));
      if (!span) break;
      parts.push(text.slice(span[side], span[side + 1]));
      from = span[side + 1];
    }
    return parts;
  }

  function showAnswers(place) {
    const run = runOf(place);
    const sample = runs[run].samples[document.querySelector(`.sample[data-run="${run}"]`).value];
    const who = chosen.again ? FINETUNE_AGAIN : shown(run);
    const other = sample.others[who];
    const { answer: text, shared_spans: spans, same_first_words: same, is_same: isSame } = other ?? {};
    const [left, right] = [...place.children];
    document.querySelector(`.prompt[data-run="${run}"]`).textContent = sample.prompt;
    left.querySelector(".words").replaceChildren(...(other ? marked(sample.answer, spans, 0) : [sample.answer]));
    right.querySelector("h3").textContent = chosen.again ? "finetune again" : nameOf(run) || "not measured";
    right.querySelector(".words").replaceChildren(...(other ? marked(text, spans, 2) : ["No answer was stored."]));
    const first = same === 1 ? "The first word is the same." : same ? `The first ${same} words are the same.` : "";
    document.querySelector(`.similarity[data-run="${run}"]`).textContent = isSame ? "The two answers are identical." : other ? first : "";
  }

  // ---- choices ----------------------------------------------------------------------------------------------
  const unique = (values) => [...new Set(values)];

  function offer(select) {
    const reading = Boolean(select.closest("#reading"));
    const ranks = new Set(runs.flatMap((run) => (run ? run.at_rank.filter(({ is_exact }) => is_exact).map(({ candidate }) => run.candidates[candidate]) : [])));
    const others = unique(runs.flatMap((run) => run?.candidates ?? [])).filter((name) => !ranks.has(name));
    const again = reading && runs.some((run) => run?.samples.some((sample) => FINETUNE_AGAIN in sample.others));
    select.replaceChildren(element("option", "", { value: "" }), ...(again ? [element("option", "finetune again", { value: "again" })] : []),
      ...others.map((name) => element("option", name, { value: `=${name}` })));
  }

  function choose(event) {
    const { target } = event;
    if (target.matches("select.candidate")) {
      chosen.again = target.value === "again";
      chosen.candidate = target.value.startsWith("=") ? target.value.slice(1) : "";
    } else if (target.matches("select.text")) chosen.text = target.value;
    else if (!target.matches("select.excerpt, select.sample")) return;
    show();
  }

  function show() {
    for (const select of all("select.candidate")) {
      select.options[0].textContent = `rank ${rank()} (selected)`;
      select.value = chosen.candidate ? `=${chosen.candidate}` : chosen.again && select.closest("#reading") ? "again" : "";
    }
    for (const select of all("select.text")) if (chosen.text !== null) select.value = chosen.text;
    for (const place of all(".instead")) {
      place.textContent = instead(runOf(place));
      place.hidden = !place.textContent;
    }
    for (const place of all(".facts")) showFacts(place, scored(runOf(place), shown(runOf(place)))?.facts ?? []);
    for (const place of all(".sentence")) place.textContent = attribution(runOf(place)).sentence;
    const sentence = document.querySelector("#outputs-at-rank");
    if (sentence) sentence.textContent = runs[0].rank_sentences[state.rankIndex];
    all(".tokens").forEach(showTokens);
    all(".answers").forEach(showAnswers);
    all("[data-chart]").filter((place) => place.dataset.chart in CHARTS).forEach(refill);
  }

  function begin() {
    all("select.candidate").forEach(offer);
    for (const select of all("select.text")) {
      const names = unique(runs.flatMap((run) => run?.texts ?? []));
      select.replaceChildren(...names.map((name) => element("option", name, { value: name })));
      select.value = names[runs.find(Boolean).default_text];
    }
    document.querySelector("main").addEventListener("change", choose);
    for (const kind of ["pointerover", "click"]) document.querySelector("main").addEventListener(kind, readToken);
    show();
  }

  const NARROW = { kld: "kld_narrow", parts: "parts_tall" };
  const chartName = (name) => (several || narrow.matches ? NARROW[name] ?? name : name);
  const has = (name) => name in CHARTS;
  return { begin, chartName, datasets, has, partText, show, signals };
};
