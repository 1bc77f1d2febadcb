/* Filters hide rows and settings. They never change a figure or a rank: means over what is left
   stand in columns of their own. */
const Filter = (() => {
  const form = select("#controls");
  const FIELDS = ["q", "dataset", "attack", "needs", "kind"];
  const value = (name) => State.get(name);
  const narrowed = () => Boolean(value("dataset") || value("attack"));
  const fits = (setting) =>
    (!value("dataset") || setting.dataset === value("dataset")) &&
    (!value("attack") || setting.attack === value("attack"));

  const wanted = (row) => {
    const words = value("q").toLowerCase().split(/\s+/).filter(Boolean);
    const text = row.cells[0].textContent.toLowerCase();
    return words.every((word) => text.includes(word)) &&
      (!value("needs") || row.dataset.needs === value("needs")) &&
      (!value("kind") || row.dataset.kind === value("kind"));
  };

  const hideRows = () => {
    const total = new Set();
    const left = new Set();
    for (const row of selectAll("tr[data-d]")) {
      row.hidden = !wanted(row);
      total.add(row.dataset.d);
      if (!row.hidden) left.add(row.dataset.d);
    }
    return [left.size, total.size];
  };

  const hideSettings = () => {
    const attack = value("attack");
    for (const grid of selectAll(".grid")) {
      const columns = Tables.heads(select("table", grid));
      const gone = columns.map((header) => Boolean(attack && "s" in header.dataset && header.dataset.attack !== attack));
      const attacks = columns.filter((header) => "s" in header.dataset);
      const other = value("dataset") && grid.dataset.dataset !== value("dataset");
      grid.hidden = Boolean(other || (attack && gone.filter(Boolean).length === attacks.length));
      for (const row of select("table", grid).rows) for (const cell of row.cells) cell.hidden = gone[cell.cellIndex];
    }
    for (const row of selectAll("#papers tbody tr")) row.hidden = !fits(row.dataset);
    const lines = selectAll("#zoo tbody tr");
    for (const row of lines) row.hidden = !fits(row.dataset);
    return [lines.filter((row) => !row.hidden).length, lines.length];
  };

  const say = (defenses, settings) => {
    const parts = [`${defenses[0]} of ${defenses[1]} defenses`];
    if (narrowed()) parts.push(`${settings[0]} of ${settings[1]} settings`);
    select("#count").textContent = parts.join(", ");
    const names = [value("dataset"), value("attack")].filter(Boolean).join(", ");
    select("#scope").hidden = !narrowed();
    select("#scope").textContent = narrowed()
      ? `Filter: ${names}. Ranks, scores and every other figure still cover all ${settings[1]} settings; ` +
        `only the columns “within filter” cover the ${settings[0]} that are left.`
      : "";
  };

  /* Two columns after the score, made when they are first needed. */
  const within = async () => {
    if (!narrowed()) {
      for (const cell of selectAll(".within")) cell.hidden = true;
      return;
    }
    const data = await Data.load();
    for (const table of Tables.boards) {
      const header = Tables.heads(table).find((candidate) => candidate.dataset.key === "score");
      if (!select("th.within", table)) addWithin(table, header);
      for (const row of table.tBodies[0].rows) fillWithin(row, table, data);
    }
    for (const cell of selectAll(".within")) cell.hidden = false;
    Tables.showColumns();
  };
  const addWithin = (table, header) => {
    const titles = [["Score", "within filter"], ["ASR", "within filter"]];
    header.after(...titles.map(([title, small]) =>
      make("th", { scope: "col", class: "within" }, title, make("small", {}, small))));
    for (const row of table.tBodies[0].rows) {
      if (row.cells[1].colSpan > 1) row.cells[1].dataset.span = row.cells[1].colSpan += 2;
      else row.cells[header.cellIndex].after(make("td", { class: "within" }), make("td", { class: "within" }));
    }
  };
  const fillWithin = (row, table, data) => {
    const cells = selectAll("td.within", row);
    const rows = data.rowsOf(Number(row.dataset.d), Number(row.dataset.b ?? table.dataset.b))
      .filter((i) => data.rows.score[i] !== null && fits(data.settings[data.rows.s[i]]));
    ["score", "asr"].forEach((name, place) => {
      if (!cells[place]) return;
      const values = rows.map((i) => data.rows[name][i]);
      cells[place].textContent = values.length ? Data.percent(Data.mean(values)) : "—";
      if (place === 0 && values.length) cells[0].append(make("small", {}, `${values.length} settings`));
    });
  };

  const apply = () => {
    for (const name of FIELDS) {
      form.elements[name].value = value(name);
      form.elements[name].classList.toggle("active", Boolean(value(name)));
    }
    select("#reset").hidden = !["sort", "hide", "show", ...FIELDS].some((name) => value(name));
    say(hideRows(), hideSettings());
    /* What a link leads to must not end up behind the bar. */
    document.documentElement.style.scrollPaddingTop = `${form.offsetHeight + 12}px`;
    return within();
  };

  const start = () => {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (!FIELDS.includes(event.target.name)) return;
      State.set({ [event.target.name]: event.target.value });
      apply();
    });
    select("#reset").addEventListener("click", () => { State.clear(); form.elements.q.focus(); });
    State.onApply(apply);
  };
  return { start, fits, narrowed };
})();
