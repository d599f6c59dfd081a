const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const table = make("table");
const head = make("tr");
for (const name of ["scheme", "log n", "loss, nats", "accuracy", "largest position", ""]) {
  head.append(make("th", name));
}
table.append(head);
const best = Math.min(...answer.rows.map((row) => row.loss_nats));
for (const row of answer.rows) {
  const line = make("tr");
  const settings = Object.entries(row.scheme)
    .filter(([name, value]) => value !== null && name !== "name" && name !== "log_n")
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
  const flags = [];
  if (row.loss_nats === best) flags.push("lowest loss");
  if (row.extrapolating) flags.push("positions never trained");
  if (row.window_not_recommended) flags.push("window too wide");
  for (const cell of [
    `${row.scheme.name}${settings ? " (" + settings + ")" : ""}`,
    row.scheme.log_n,
    row.loss_nats.toFixed(3),
    row.accuracy.toFixed(3),
    String(row.max_relative_position),
    flags.join(", "),
  ]) {
    line.append(make("td", cell));
  }
  table.append(line);
}
element.append(table);
element.append(make("p", `${answer.n_tokens} tokens, ${answer.elapsed_ms.toFixed(0)} ms`, "meta"));
