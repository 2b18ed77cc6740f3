
{
  const data = JSON.parse($("data").textContent);
  // Fields of a result, as page.py writes them.
  const METHOD = 0, BUDGET = 1, PREDICTION = 2, SCORE = { em: 3, f1: 4, sub_em: 5 }, STATUS = 6, TOKENS = 7, VIEW = 8, TEXT = 9, SHOWN = 10, DETAIL = 11;
  const READ = ["OK", "TRUNCATED", "MISSING_GLYPHS"];
  const PAGE = 100;
  const OUTCOMES = [
    ["any", "any"], ["right", "right everywhere"], ["wrong", "wrong everywhere"],
    ["mixed", "right and wrong"], ["failed", "not read or scored"],
  ];
  const make = (parent, tag, className, text) => {
    const node = parent.appendChild(document.createElement(tag));
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const name = (budget) => (budget === null ? "–" : String(budget));
  const percent = (share) => (100 * share).toFixed(1) + " %";

  const fill = (id, values) => {
    for (const [value, label] of values) {
      const option = make($(id), "option", "", label);
      option.value = value;
    }
  };
  const unique = (values) => [...new Set(values)];
  const withAll = (values) => [["", "all"], ...values.map((v) => [v, v])];
  fill("f-dataset", withAll(unique(data.rows.map((row) => row.d))));
  fill("f-length", withAll(unique(data.rows.map((row) => row.l))));
  fill("f-method", withAll(data.methods));
  fill("f-budget", withAll(data.budgets.map(String)));
  fill("f-outcome", OUTCOMES);

  let sort = { by: "place", down: false }, shown = [], drawn = 0;
  const state = () => ({
    dataset: $("f-dataset").value, length: $("f-length").value, method: $("f-method").value, budget: $("f-budget").value,
    outcome: $("f-outcome").value, metric: $("f-metric").value, text: $("f-text").value.trim().toLowerCase(),
  });
  const right = (result, s) => result[SCORE[s.metric]] >= 0.5;
  // What is chosen of a row's results. A method without a budget stays whatever budget is asked for.
  const chosen = (row, s) => row.r.filter((r) =>
    (!s.method || r[METHOD] === s.method) && (!s.budget || r[BUDGET] === null || String(r[BUDGET]) === s.budget));
  const measure = (row, s) => {
    const results = chosen(row, s);
    const rights = results.filter((r) => right(r, s));
    const budgets = rights.map((r) => r[BUDGET]).filter((b) => b !== null);
    return {
      row, results,
      score: results.length ? rights.length / results.length : 0,
      least: budgets.length ? Math.min(...budgets) : Infinity,
      failed: results.some((r) => !READ.includes(r[STATUS])),
    };
  };
  const fits = (item, s) => {
    const { row, score } = item;
    if ((s.dataset && row.d !== s.dataset) || (s.length && row.l !== s.length) || !item.results.length) return false;
    if (s.outcome === "right" && score < 1) return false;
    if (s.outcome === "wrong" && score > 0) return false;
    if (s.outcome === "mixed" && (score === 0 || score === 1)) return false;
    if (s.outcome === "failed" && !item.failed) return false;
    if (!s.text) return true;
    const texts = [row.q, row.id, ...row.a, ...item.results.map((r) => r[PREDICTION] ?? "")];
    return texts.some((text) => text.toLowerCase().includes(s.text));
  };
  const KEYS = {
    place: (i) => i.row.o, dataset: (i) => [i.row.d, i.row.l, ...i.row.o], question: (i) => [i.row.q.toLowerCase()],
    tokens: (i) => [i.row.n], score: (i) => [i.score], least: (i) => [i.least],
  };
  const compare = (a, b) => {
    for (let k = 0; k < Math.min(a.length, b.length); k++) {
      if (a[k] < b[k]) return -1;
      if (a[k] > b[k]) return 1;
    }
    return 0;
  };

  const mark = (parent, result, s, label) => {
    const failed = !READ.includes(result[STATUS]);
    const node = make(parent, "i", "mark " + (failed ? "none" : right(result, s) ? "yes" : "no"), label);
    node.title = `${result[METHOD]}, budget ${name(result[BUDGET])}: ${failed ? result[STATUS] : right(result, s) ? "right" : "wrong"}`;
    return node;
  };
  const zoom = (row, result, view) => {
    const box = $("zoom").querySelector("div");
    box.replaceChildren();
    make(box, "b", "", `${result[METHOD]}, budget ${name(result[BUDGET])}: ${result[TOKENS]} tokens, ${view[1]} x ${view[2]} px`);
    const image = make(box, "img", view[1] >= 400 ? "sharp" : "");
    image.src = view[0];
    image.alt = "the page as the model saw it";
    const question = make(box, "p", "", row.q);
    question.dir = "auto";
    $("zoom").showModal();
  };
  $("close").onclick = () => $("zoom").close();
  $("zoom").onclick = (event) => { if (event.target === $("zoom")) $("zoom").close(); };

  const side = (parent, row, result, s) => {
    const figure = make(parent, "figure", "side");
    const caption = make(figure, "figcaption");
    mark(caption, result, s, !READ.includes(result[STATUS]) ? "–" : right(result, s) ? "✓" : "✗");
    make(caption, "b", "", result[BUDGET] === null ? "no budget" : "budget " + result[BUDGET]);
    const view = result[VIEW] === null ? null : data.views[result[VIEW]];
    const size = view ? `${result[TOKENS]} tokens, ${view[1]} x ${view[2]} px` : result[TOKENS] !== null ? `${result[TOKENS]} tokens` : result[SHOWN] !== null ? `${result[SHOWN].toLocaleString("en")} tokens of text` : "";
    make(caption, "span", "dim", size);
    if (result[STATUS] !== "OK") {
      const status = make(caption, "span", "status", result[STATUS]);
      if (result[DETAIL]) status.title = result[DETAIL];
    }
    if (view) {
      if (view[1] >= 212) figure.classList.add("sharp");
      const frame = make(figure, "div", "frame");
      const image = make(frame, "img");
      image.src = view[0];
      image.alt = "the page as the model saw it";
      image.style.setProperty("--true", view[1] + "px");
      image.onclick = () => zoom(row, result, view);
    }
    const answer = make(figure, "div", result[PREDICTION] === null ? "answer dim" : "answer", result[PREDICTION] ?? "nothing boxed");
    answer.dir = "auto";
    if (s.metric === "f1") make(figure, "small", "", "F1 " + result[SCORE.f1].toFixed(2));
    if (result[TEXT] !== null) {
      const whole = make(figure, "details", "prompt");
      make(whole, "summary", "", "whole answer");
      make(make(whole, "pre", "text"), "bdi", "", result[TEXT]);
    }
  };
  const open = (body, item, s) => {
    const { row } = item;
    const golds = make(body, "div", "golds", "gold ");
    row.a.forEach((answer) => make(golds, "bdi", "gold", answer));
    if (!row.a.length) make(golds, "span", "dim", "none");
    make(golds, "span", "dim", ` ${row.id}, sample ${row.o[2]}, document of ${row.n.toLocaleString("en")} tokens`);
    for (const method of unique(item.results.map((r) => r[METHOD]))) {
      const part = make(body, "div", "method");
      make(part, "h4", "", method);
      const sides = make(part, "div", "sides");
      item.results.filter((r) => r[METHOD] === method).forEach((result) => side(sides, row, result, s));
    }
    if (row.m) {
      const memory = make(body, "details", "more");
      make(memory, "summary", "", "Memory as written");
      make(make(memory, "pre", "text"), "bdi", "", row.m);
    }
  };
  const entry = (item, s) => {
    const { row } = item;
    const node = make($("list"), "details", "entry");
    const head = make(node, "summary");
    make(head, "span", "num", String(row.o[1] + 1) + (data.rows.some((r) => r.o[2] > 0) ? "." + (row.o[2] + 1) : ""));
    const set = make(head, "span", "set");
    make(set, "bdi", "", row.d);
    make(set, "small", "", row.l);
    const ask = make(head, "span", "ask");
    make(make(ask, "b"), "bdi", "", row.q);
    const strip = make(ask, "span", "strip");
    for (const method of unique(item.results.map((r) => r[METHOD]))) {
      const part = make(strip, "span");
      make(part, "small", "name", method);
      item.results.filter((r) => r[METHOD] === method).forEach((r) => mark(part, r, s, name(r[BUDGET])));
    }
    make(head, "span", "num", row.n.toLocaleString("en"));
    make(head, "span", "score", percent(item.score));
    make(head, "span", "num", item.least === Infinity ? "–" : String(item.least));
    node.ontoggle = () => {
      if (node.open && node.children.length === 1) open(make(node, "div", "body"), item, s);
    };
    return node;
  };
  const drawMore = () => {
    const s = state();
    shown.slice(drawn, drawn + PAGE).forEach((item) => entry(item, s));
    drawn = Math.min(shown.length, drawn + PAGE);
    $("more").hidden = drawn >= shown.length;
    $("more").textContent = `Show more (${shown.length - drawn} left)`;
  };
  const draw = () => {
    const s = state();
    shown = data.rows.map((row) => measure(row, s)).filter((item) => fits(item, s));
    const key = KEYS[sort.by];
    shown.sort((a, b) => (sort.down ? -1 : 1) * compare(key(a), key(b)) || compare(a.row.o, b.row.o));
    const results = shown.flatMap((item) => item.results);
    const share = results.filter((r) => right(r, s)).length / results.length;
    $("count").replaceChildren();
    make($("count"), "b", "", shown.length.toLocaleString("en"));
    $("count").append(` of ${data.rows.length.toLocaleString("en")} · ${results.length.toLocaleString("en")} answers`);
    if (results.length) $("count").append(`, ${percent(share)} right`);
    for (const head of document.querySelectorAll(".heads button")) {
      if (head.dataset.sort === sort.by) head.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    $("list").replaceChildren();
    drawn = 0;
    drawMore();
    if (!shown.length) make($("list"), "p", "empty", "No question fits.");
  };
  for (const head of document.querySelectorAll(".heads button")) {
    head.onclick = () => {
      sort = { by: head.dataset.sort, down: sort.by === head.dataset.sort ? !sort.down : false };
      draw();
    };
  }
  for (const node of document.querySelectorAll(".filters select, .filters input")) node.oninput = draw;
  $("reset").onclick = () => {
    for (const node of document.querySelectorAll(".filters select")) node.selectedIndex = 0;
    $("f-text").value = "";
    sort = { by: "place", down: false };
    draw();
  };
  $("more").onclick = drawMore;
  $("size").onclick = (event) => {
    const on = document.body.classList.toggle("true-size");
    event.currentTarget.setAttribute("aria-pressed", on);
  };
  draw();
}
