/* Two defenses side by side, board by board, with the test that was computed when the page was made. */
const Compare = (() => {
  const dialog = select("#compare");
  const { table, line, percent } = Drill;
  const pickers = ["one", "other"].map((id) => select(`#${id}`));

  const pairOf = ({ pairs }, b, first, other) => {
    const find = (x, y) => pairs.b.findIndex((at, i) => at === b && pairs.one[i] === x && pairs.other[i] === y);
    const forward = find(first, other);
    const i = forward < 0 ? find(other, first) : forward;
    if (i < 0) return null;
    const sign = forward < 0 ? -1 : 1;
    const [low, high] = sign > 0 ? [pairs.low[i], pairs.high[i]] : [pairs.high[i], pairs.low[i]];
    const [wins, losses] = sign > 0 ? [pairs.wins[i], pairs.losses[i]] : [pairs.losses[i], pairs.wins[i]];
    return {
      mean: sign * pairs.mean[i], low: low === null ? null : sign * low, high: high === null ? null : sign * high,
      p: pairs.p[i], holm: sign > 0 ? pairs.holm[i] : pairs.holm_back[i], wins, ties: pairs.ties[i], losses, n: pairs.n[i],
    };
  };
  const verdict = (pair) => {
    if (pair.low === null) return "too few settings for a test";
    if (pair.low <= 0 && pair.high >= 0) return "not separated";
    return pair.low > 0 ? "one is better" : "other is better";
  };
  const probability = (p) => (p === null ? "—" : p < 0.001 ? "< 0.001" : p.toFixed(3));
  const signed = (value) => (value === null ? "—" : (value / 10).toFixed(1).replace("-", "−"));

  const boardLine = (data, b, d, other) => {
    const pair = pairOf(data, b, d, other);
    if (!pair) return null;
    const range = pair.low === null ? "—" : `${signed(pair.low)} to ${signed(pair.high)}`;
    return line(`Budget ${data.budgets[b]}`, signed(pair.mean), range, probability(pair.p), probability(pair.holm),
      `${pair.wins} / ${pair.ties} / ${pair.losses}`, pair.n, verdict(pair));
  };
  const settingsOf = (data, b, d) => {
    const own = data.rowsOf(d, b);
    return new Map((own.length ? own : data.rowsOf(d, data.budgets.indexOf("0"))).map((i) => [data.rows.s[i], i]));
  };
  const settingLines = (data, b, d, other) => {
    const [first, second] = [settingsOf(data, b, d), settingsOf(data, b, other)];
    return [...first.keys()].filter((s) => second.has(s) && data.rows.score[first.get(s)] !== null && Filter.fits(data.settings[s]))
      .map((s) => {
        const [i, j] = [first.get(s), second.get(s)];
        const { score, acc, asr } = data.rows;
        return line(data.settings[s].label, percent(score[i]), percent(score[j]), signed(score[i] - score[j]),
          `${percent(acc[i])} / ${percent(asr[i])}`, `${percent(acc[j])} / ${percent(asr[j])}`);
      });
  };

  const show = async () => {
    const data = await Data.load();
    const [d, other] = pickers.map((picker) => Number(picker.value));
    State.set({ one: data.defenses[d].name, other: data.defenses[other].name });
    const numbers = data.budgets.map((_, b) => b).filter((b) => pairOf(data, b, d, other));
    const body = select("#compare-body");
    if (d === other || !numbers.length) {
      body.replaceChildren(make("p", {}, "These two share no setting at any budget. Choose two different defenses."));
      return;
    }
    const names = [d, other].map((i) => data.defenses[i].name);
    body.replaceChildren(
      make("p", {}, `Differences of the score, ${names[0]} minus ${names[1]}, paired over settings; sign-flip permutation test. ` +
        "p stands by itself; Holm’s depends on how many defenses are on the board."),
      table(["Board", "Mean difference", "95 % interval", "p", "p, Holm", "Wins / ties / losses", "Settings", "Verdict"],
        numbers.map((b) => boardLine(data, b, d, other)), "Comparison by board"),
      ...numbers.map((b) => {
        const folded = make("details", {}, make("summary", {}, `Budget ${data.budgets[b]}, by setting`));
        folded.addEventListener("toggle", () => folded.append(table(
          ["Setting", ...names.map((name) => `Score, ${name}`), "Difference", ...names.map((name) => `ACC / ASR, ${name}`)],
          settingLines(data, b, d, other), `Budget ${data.budgets[b]}, by setting`)), { once: true });
        return folded;
      }));
  };

  const open = async () => {
    const data = await Data.load();
    pickers.forEach((picker, place) => {
      if (!picker.options.length) {
        picker.append(...data.defenses.map(({ name }, d) => make("option", { value: d }, name)));
        picker.addEventListener("change", show);
      }
      const asked = data.defenses.findIndex(({ name }) => name === State.get(picker.id));
      picker.value = asked < 0 ? Math.min(place, data.defenses.length - 1) : asked;
    });
    await show();
    if (!dialog.open) dialog.showModal();
  };

  const start = () => {
    select("#choose-pair").addEventListener("click", open);
    dialog.addEventListener("close", () => State.set({ one: "", other: "" }));
    State.onApply(() => (State.get("one") ? open() : dialog.close()));
  };
  return { start };
})();
