/* From a number to its settings, from a setting to its seeds: status, record, log, command. */
const Drill = (() => {
  const dialog = select("#drill");
  const body = select("#drill-body");
  const { percent } = Data;

  const table = (heads, rows, label) => make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label },
    make("table", {},
      make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", class: i ? null : "left" }, head)))),
      make("tbody", {}, ...rows)));
  const line = (first, ...rest) => make("tr", {}, make("th", { scope: "row" }, first),
    ...rest.map((value) => make("td", {}, value instanceof Node ? value : `${value ?? "—"}`)));
  const figure = (data, name, i) => {
    const [low, high] = ["low", "high"].map((end) => data.rows[`${name}_${end}`][i]);
    const range = low === null ? null : make("small", {}, `${percent(low)}–${percent(high)}`);
    return make("span", {}, percent(data.rows[name][i]), range);
  };

  /* One defense at one budget: a line per setting. */
  const showSettings = (data, d, b) => {
    const rows = [...data.rowsOf(d, b)].sort((i, j) => data.rows.s[i] - data.rows.s[j]);
    const shown = Filter.narrowed() ? rows.filter((i) => Filter.fits(data.settings[data.rows.s[i]])) : rows;
    const left = rows.length - shown.length;
    body.replaceChildren(
      make("p", {}, `${shown.length} settings, clean twins included${left ? `; ${left} more are hidden by the filter` : ""}. Means over seeds; below them 95 % intervals.`),
      table(["Setting", "Score", "ACC", "ASR", "RA", "Worst ASR", "Seeds", "Cells ok"], shown.map((i) => line(
        make("button", { type: "button", onclick: () => open(d, b, data.rows.s[i]) }, data.settings[data.rows.s[i]].label),
        ...["score", "acc", "asr", "ra", "worst_asr"].map((name) => figure(data, name, i)),
        data.rows.seeds[i], `${data.rows.ok[i]}/${data.rows.of[i]}`)), "Settings"));
  };

  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const plugin = (origin) => (/^(file|module):/.test(origin) ? ["--plugin", quote(origin.replace(/^\w+:/, ""))] : []);
  /* One line per record: the stored victim, defended and judged again. */
  const repeats = (data, d, keys) => keys
    .map((key) => ["bench", "repro", key, ...plugin(data.defenses[d].origin)].join(" ")).join("\n");
  const command = (data, d, b, s, seeds) => {
    const { name, origin } = data.defenses[d];
    const words = ["bench", "run", "--root", "again", "--profile", quote(data.profile || "PROFILE")];
    words.push(...plugin(origin));
    words.push(...data.settings[s].options.map(quote));
    words.push("--defense", quote(name), "--budget", quote(data.budgets[b]), "--seeds", [...new Set(seeds)].join(","));
    return words.join(" ");
  };
  const copyable = (text) => {
    const shown = make("pre", { tabindex: 0 }, make("code", {}, text));
    const button = make("button", { type: "button", onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        announce("Copied");
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(shown); /* no access to the clipboard: ready for Ctrl+C */
        announce("Selected: copy it with the keyboard");
      }
    } }, "Copy");
    return make("div", { class: "command" }, shown, button);
  };

  const seedLine = (data, s, i) => {
    const { cells } = data;
    const v = data.victimOf(s, cells.seed[i]);
    const victim = v < 0 ? "—" : `${percent(data.victims.acc[v])} / ${percent(data.victims.asr[v])}`;
    const count = data.settings[s].strengths.length;
    return line(`${cells.seed[i]}${cells.again[i] ? ` / ${cells.again[i]}` : ""}`,
      data.statuses[cells.status[i]], percent(cells.score[i]), percent(cells.acc[i]),
      ...Array.from({ length: count }, (_, n) => percent(cells[`asr${n}`][i])),
      ...Array.from({ length: count }, (_, n) => percent(cells[`ra${n}`][i])),
      victim, cells.seconds[i] ?? "—",
      make("span", { class: "path" }, `${cells.key[i]}…`));
  };
  const trouble = (data, i) => {
    const { cells } = data;
    if (cells.reason[i] < 0 && cells.log[i] < 0) return null;
    const log = cells.log[i] < 0 ? null : make("pre", { tabindex: 0 }, data.logs[cells.log[i]]);
    return make("details", { open: true }, make("summary", {}, `Seed ${cells.seed[i]}: ${data.statuses[cells.status[i]]}`),
      cells.reason[i] < 0 ? null : make("p", {}, data.reasons[cells.reason[i]]), log);
  };

  /* One defense at one budget in one setting: a line per seed. */
  const showSeeds = (data, d, b, s) => {
    const found = data.cellsOf(d, b, s);
    const { cells } = data;
    const strengths = data.settings[s].strengths;
    const folder = data.defenses[d].folder;
    body.replaceChildren(
      make("p", { class: "boxes" }, make("button", { type: "button", onclick: () => open(d, b) }, "← All settings"), data.settings[s].label),
      table(["Seed", "Status", "Score", "ACC", ...strengths.map((name) => `ASR ${name}`), ...strengths.map((name) => `RA ${name}`),
        "Victim’s ACC / ASR", "Seconds", "Record"], found.map((i) => seedLine(data, s, i)), "Seeds"),
      make("p", {}, "A cell that failed counts with the undefended model. Records: ",
        make("span", { class: "path" }, `records/${folder}/KK/KEY.json`), ", KK the first two digits of the key."),
      make("h3", {}, "Run it again"),
      copyable(repeats(data, d, found.map((i) => cells.key[i]))),
      make("p", {}, "On the stored victims; says REPRODUCED or DRIFTED. From nothing, with victims trained anew:"),
      copyable(command(data, d, b, s, found.map((i) => cells.seed[i]))),
      data.profile ? "" : make("p", {}, "PROFILE: the profile that the records were made with."),
      ...found.map((i) => trouble(data, i)).filter(Boolean));
  };

  const open = async (d, b, s = -1) => {
    const data = await Data.load();
    const name = data.defenses[d].name;
    select("#drill-title").textContent = `${name} · budget ${data.budgets[b]}`;
    if (s < 0) showSettings(data, d, b);
    else showSeeds(data, d, b, s);
    State.set({ cell: name, budget: data.budgets[b], setting: s < 0 ? "" : data.settings[s].label });
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };

  const restore = async () => {
    if (!State.get("cell")) return dialog.close();
    const data = await Data.load();
    const d = data.defenses.findIndex(({ name }) => name === State.get("cell"));
    const b = data.budgets.indexOf(State.get("budget"));
    const s = data.settings.findIndex(({ label }) => label === State.get("setting"));
    if (d < 0 || b < 0) return announce("This page does not hold the cell of the link");
    return open(d, b, s);
  };

  /* What a cell of a table stands for: its row knows the defense, its table or column the rest. */
  const target = (cell) => {
    const row = cell.parentElement;
    const grid = cell.closest("table");
    if (!("d" in row.dataset) || cell.colSpan > 1 || cell.matches(".void, .remarks, .within")) return null;
    const header = grid.tHead.rows[0].cells[cell.cellIndex];
    const b = row.dataset.b ?? header.dataset.own ?? header.dataset.b ?? grid.dataset.b;
    return [row.dataset.d, cell.dataset.b ?? b, header.dataset.s ?? row.dataset.s ?? -1].map(Number);
  };
  /* A number that opens something is a button, for the keyboard too; made when it can be seen. */
  const addButtons = (grid) => {
    if ("ready" in grid.dataset) return;
    grid.dataset.ready = "";
    const every = grid.matches(".matrix");
    for (const cell of selectAll("tbody td", grid)) {
      if ((every || cell.cellIndex === 1) && target(cell)) {
        const first = cell.firstChild;
        const button = make("button", { type: "button", "aria-haspopup": "dialog" });
        cell.replaceChild(button, first);
        button.append(first);
      }
    }
  };

  const start = () => {
    for (const grid of selectAll("table[data-b], table.ladder")) {
      const folded = grid.closest("details");
      if (folded) folded.addEventListener("toggle", () => addButtons(grid), { once: true });
      else addButtons(grid);
    }
    document.addEventListener("click", (event) => {
      const cell = event.target.closest("table[data-b] td, table.ladder td");
      const found = cell && !event.target.closest("a") && target(cell);
      if (found) open(...found);
    });
    dialog.addEventListener("close", () => State.set({ cell: "", budget: "", setting: "" }));
    State.onApply(restore);
  };
  return { start, table, line, percent };
})();
