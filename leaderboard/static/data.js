/* The packed data behind the numbers: settings and cells, unpacked when first asked for. */
const Data = (() => {
  let promise = null;

  const unpack = async () => {
    const packed = atob(select("#payload").textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const text = await new Response(stream).text();
    return { text, ...index(JSON.parse(text)) };
  };

  /* Rows and cells as objects would take too much memory: they stay columns, found by number. */
  const index = (data) => {
    const rowAt = new Map();
    data.rows.d.forEach((_, i) => {
      const key = `${data.rows.d[i]} ${data.rows.b[i]}`;
      if (!rowAt.has(key)) rowAt.set(key, []);
      rowAt.get(key).push(i);
    });
    const rowsOf = (d, b) => rowAt.get(`${d} ${b}`) ?? [];
    const cellsOf = (d, b, s) => {
      const { cells } = data;
      const found = [];
      for (let i = 0; i < cells.d.length; i += 1) {
        if (cells.d[i] === d && cells.b[i] === b && cells.s[i] === s) found.push(i);
      }
      return found;
    };
    const victimOf = (s, seed) =>
      data.victims.s.findIndex((at, i) => at === s && data.victims.seed[i] === seed);
    return { ...data, rowsOf, cellsOf, victimOf };
  };

  const load = () => (promise ??= unpack());

  /* Numbers are thousandths; a score of 100 is 1000. */
  const percent = (value) => (value == null ? "—" : (value / 10).toFixed(1));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  return { load, percent, mean };
})();
