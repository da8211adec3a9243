"use strict";
// One pair is opened at a time, and only then are its texts in the document. The page does not know who wrote them.
(() => {
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const source = find("#data");
  const data = JSON.parse(source.textContent);
  source.remove();
  const utf8 = (text) => new TextEncoder().encode(text);

  // ---- SHA-256 (FIPS 180-4): `crypto.subtle` is missing where a page is opened as a file in some browsers --------
  const PRIMES = [];
  for (let n = 2; PRIMES.length < 64; n += 1) if (PRIMES.every((prime) => n % prime)) PRIMES.push(n);
  const fraction = (root) => Math.floor((root - Math.floor(root)) * 2 ** 32);
  const ROUNDS = PRIMES.map((prime) => fraction(Math.cbrt(prime)));
  const FIRST = PRIMES.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));
  const turn = (x, n) => (x >>> n) | (x << (32 - n));

  function sha256(bytes) {
    const padded = new Uint8Array((((bytes.length + 8) >> 6) + 1) << 6);
    padded.set(bytes);
    padded[bytes.length] = 128;
    const view = new DataView(padded.buffer);
    view.setUint32(padded.length - 8, Math.floor(bytes.length / 2 ** 29));
    view.setUint32(padded.length - 4, bytes.length << 3);
    const hash = [...FIRST];
    const w = new Array(64);
    for (let block = 0; block < padded.length; block += 64) {
      for (let i = 0; i < 64; i += 1) {
        if (i < 16) {
          w[i] = view.getUint32(block + 4 * i) | 0;
        } else {
          const [x, y] = [w[i - 15], w[i - 2]];
          w[i] = (w[i - 16] + (turn(x, 7) ^ turn(x, 18) ^ (x >>> 3)) + w[i - 7] + (turn(y, 17) ^ turn(y, 19) ^ (y >>> 10))) | 0;
        }
      }
      let [a, b, c, d, e, f, g, h] = hash;
      for (let i = 0; i < 64; i += 1) {
        const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]) | 0;
        const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
      }
      [a, b, c, d, e, f, g, h].forEach((value, i) => { hash[i] = (hash[i] + value) | 0; });
    }
    return hash.map((value) => value >>> 0);
  }

  const hex = (words) => words.map((word) => word.toString(16).padStart(8, "0")).join("");

  // ---- the order of the pairs and the sides, as in presentation.py ----------------------------------------------
  function shuffled(items, seed) {
    const result = [...items];
    for (let i = result.length - 1; i > 0; i -= 1) {
      const j = sha256(utf8(`${seed}:${i}`))[0] % (i + 1);
      [result[i], result[j]] = [result[j], result[i]];
    }
    return result;
  }

  function screensOf(voter) {
    return ["abx", "preference"].flatMap((question) => {
      const pairs = data.pairs.filter((pair) => pair.question === question);
      const sides = shuffled(pairs.map((_, i) => 1 + (i % 2)), `${voter}:${question}:sides`);
      return shuffled(pairs, `${voter}:${question}:order`).map((pair, i) => ({ pair, a: sides[i] }));
    });
  }

  // ---- one pair, opened -----------------------------------------------------------------------------------------
  function opened(pair) {
    const bytes = Uint8Array.from(atob(pair.sealed), (character) => character.charCodeAt(0));
    for (let block = 0; 32 * block < bytes.length; block += 1) {
      sha256(utf8(`${data.test}:${pair.id}:${block}`)).forEach((word, i) => {
        for (let j = 0; j < 4; j += 1) bytes[32 * block + 4 * i + j] ^= (word >>> (24 - 8 * j)) & 255;
      });
    }
    return JSON.parse(new TextDecoder().decode(bytes));
  }

  // ---- what this person has answered ----------------------------------------------------------------------------
  const PLACE = `deltarank-blind-${data.test}`;
  let keeps = true;
  let person = null;
  let screens = [];

  function keep() {
    try {
      localStorage.setItem(PLACE, JSON.stringify(person));
    } catch {
      keeps = false;
    }
  }

  function kept() {
    try {
      localStorage.setItem(`${PLACE}-try`, "");
      localStorage.removeItem(`${PLACE}-try`);
      return JSON.parse(localStorage.getItem(PLACE));
    } catch {
      keeps = false;
      return null;
    }
  }

  const newPerson = () => ({ voter: hex([...crypto.getRandomValues(new Uint32Array(4))]), name: "", started: "", votes: [] });

  function isWhole(state) {
    const isText = (value) => typeof value === "string";
    if (!state || ![state.voter, state.name, state.started].every(isText) || !Array.isArray(state.votes)) return false;
    if (!/^[0-9a-f]{32}$/.test(state.voter)) return false;
    const order = screensOf(state.voter);
    return state.votes.length <= order.length && state.votes.every((vote, i) => vote && vote.a === order[i].a && isAnswer(vote, order[i].pair));
  }

  function isAnswer({ pair, choice, confidence }, { id, question }) {
    const isChoice = question === "abx" ? ["a", "b"].includes(choice) && [1, 2, 3].includes(confidence) : ["a", "b", "equal"].includes(choice) && confidence === null;
    return pair === id && isChoice;
  }

  function load(state) {
    person = isWhole(state) ? state : newPerson();
    screens = screensOf(person.voter);
  }

  function exported() {
    const { voter, name, started, votes } = person;
    const content = { format_version: 1, test: data.test, key_sha256: data.key_sha256, voter, name, started, votes };
    return `${JSON.stringify({ ...content, checksum: hex(sha256(utf8(JSON.stringify(content)))) }, null, 1)}\n`;
  }

  // ---- screens --------------------------------------------------------------------------------------------------
  const QUESTIONS = { abx: ["Who wrote X: A or B?", "Who wrote X?"], preference: ["Which do you like better?", "Which do you like better?"] };
  let here = "";

  function go(screen) {
    here = screen;
    for (const section of all("main > section")) section.hidden = section.id !== screen;
    find("#where").hidden = screen === "start";
    find("#count").textContent = `${person.votes.length} of ${screens.length} answered`;
    Object.assign(find("#progress"), { max: screens.length, value: person.votes.length });
    find("#unsaved").hidden = keeps || screen === "start";
    for (const button of all(".undo")) button.disabled = !person.votes.length;
    for (const id of ["#prompt", "#text-a", "#text-b", "#text-x"]) find(id).textContent = "";
    ({ start: showStart, pair: showPair, end: showEnd })[screen]();
    const heading = find(`#${screen} h1`);
    heading.focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  function showStart() {
    const left = screens.length - person.votes.length;
    find("#keeps").textContent = keeps
      ? "You can stop at any time: your answers stay in this browser, and you go on where you stopped."
      : "This browser does not keep your answers: do not close or reload this page before you have saved them.";
    find("#begin").textContent = person.votes.length ? (left ? `Go on with pair ${person.votes.length + 1}` : "Go to the end") : "Begin";
    find("#start .restart").hidden = !person.votes.length;
    find("#name").value = person.name;
  }

  function showPair() {
    const { pair, a } = screens[person.votes.length];
    const { prompt, texts, x } = opened(pair);
    const [title, ask] = QUESTIONS[pair.question];
    find("#question").textContent = `Pair ${person.votes.length + 1} of ${screens.length}. ${title}`;
    find("#ask").textContent = ask;
    find("#prompt").textContent = prompt;
    find("#text-a").textContent = texts[a - 1];
    find("#text-b").textContent = texts[2 - a];
    find("#text-x").textContent = x ?? "";
    find("#x").hidden = x === null;
    for (const part of all("#answers [data-question]")) part.hidden = part.dataset.question !== pair.question;
  }

  function showEnd() {
    const isAll = person.votes.length === screens.length;
    find("#thanks").textContent = isAll ? "Thank you! That was the last pair." : `Thank you! You have answered ${person.votes.length} of ${screens.length}.`;
    find("#what-now").textContent = isAll
      ? "Save your answers as a file, and send it to the person who sent you this page."
      : `Save your answers as a file, and send it to the person who sent you this page. You can also go on${keeps ? ", now or later" : " now"}: then send only the file that you save last.`;
    find("#resume").hidden = isAll;
    for (const id of ["#as-text", "#sure"]) find(id).hidden = true;
    find("#done").textContent = "";
  }

  const next = () => go(person.votes.length < screens.length ? "pair" : "end");

  // ---- actions --------------------------------------------------------------------------------------------------
  function vote(button) {
    const { pair, a } = screens[person.votes.length];
    const confidence = button.dataset.confidence ? Number(button.dataset.confidence) : null;
    person.votes.push({ pair: pair.id, a, choice: button.dataset.choice, confidence });
    keep();
    next();
  }

  function undo() {
    if (!person.votes.length) return;
    person.votes.pop();
    keep();
    go("pair");
  }

  function begin() {
    // Half of a surrogate pair has no UTF-8.
    person.name = find("#name").value.replace(/\p{Surrogate}/gu, "").trim();
    person.started ||= new Date().toISOString();
    keep();
    next();
  }

  // Another tab of this browser may have voted meanwhile: this one goes on from there.
  function follow() {
    const state = kept();
    if (!isWhole(state)) return;
    load(state);
    if (here === "pair" && person.started) next();
    else go(person.started ? here : "start");
  }

  function restart() {
    person = newPerson();
    screens = screensOf(person.voter);
    keep();
    go("start");
  }

  function askToRestart() {
    if (here !== "end") go("end");
    find("#sure").hidden = false;
    find("#no").focus();
  }

  function save() {
    const link = document.createElement("a");
    const address = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
    const name = person.name.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "");
    link.href = address;
    link.download = `votes-${name ? `${name}-` : ""}${person.voter.slice(0, 6)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    showText();
    find("#done").textContent = `The file is called ${link.download}. Look for it among your downloads.`;
  }

  function showText() {
    find("#as-text").hidden = false;
    find("#text").value = exported();
  }

  async function copy() {
    showText();
    try {
      await navigator.clipboard.writeText(exported());
      find("#done").textContent = "Copied. Paste it into a message.";
    } catch {
      find("#text").select();
      find("#done").textContent = "The text is selected below: copy it, and paste it into a message.";
    }
  }

  function pressed(event) {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, textarea")) return;
    if (event.key.toLowerCase() === "u" && (here === "pair" || here === "end")) undo();
    else if (here === "pair" && /^[1-6]$/.test(event.key)) {
      const button = all("#answers .choices:not([hidden]) button")[Number(event.key) - 1];
      if (button) vote(button);
    } else return;
    event.preventDefault();
  }

  // The second click of a double click would be on the next pair.
  const on = (selector, action) => all(selector).forEach((button) => button.addEventListener("click", (event) => event.detail < 2 && action(button)));
  on("#answers button", vote);
  on(".undo", undo);
  on("#begin", begin);
  on("#pause", () => go("end"));
  on("#resume", next);
  on(".restart", askToRestart);
  on("#yes", restart);
  on("#no", () => { find("#sure").hidden = true; find("#save").focus(); });
  on("#save", save);
  on("#copy", copy);
  find("#name").addEventListener("keydown", (event) => event.key === "Enter" && begin());
  addEventListener("keydown", pressed);
  addEventListener("beforeunload", (event) => !keeps && person.votes.length && event.preventDefault());

  addEventListener("storage", (event) => event.key === PLACE && follow());
  addEventListener("pageshow", (event) => event.persisted && follow()); // by the back button

  load(kept());
  go("start");
})();
