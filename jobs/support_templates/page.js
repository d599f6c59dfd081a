const chat = make("div");
const places = { customer: "bubble", advocate: "bubble right", system: "bubble middle" };
for (const message of request.messages) {
  const bubble = make("div", undefined, places[message.role]);
  if (message.role !== "system") bubble.append(make("small", message.role));
  bubble.append(document.createTextNode(message.text));
  chat.append(bubble);
}
element.append(chat);
const reasons = {
  holdout: "this advocate and case are in the holdout, where nobody sees suggestions",
  low_confidence: "no template is probable enough",
  all_masked: "every template is retired or used already",
};
if (answer.abstained) element.append(make("p", "No suggestion: " + reasons[answer.abstain_reason] + "."));
else element.append(make("h3", "Suggested replies, with the probability of each"));
const table = make("table");
for (const one of answer.suggestions) {
  const row = make("tr");
  const place = make("td");
  const bar = make("div", undefined, "bar");
  const filled = make("div");
  filled.style.width = 100 * one.probability + "%";
  bar.append(filled);
  place.style.width = "35%";
  place.append(bar);
  row.append(make("td", one.rank + ".", "number"), make("td", one.title), make("td", (100 * one.probability).toFixed(1) + " %", "number"), place);
  table.append(row);
}
element.append(table);
const kinds = Object.entries(answer.redactions).map(([kind, count]) => `${count} ${kind.toLowerCase()}`).join(", ");
const used = answer.context.messages_used, total = answer.context.messages_total;
element.append(make("p", `the model read ${used === total ? "all " + total : "the last " + used + " of " + total} messages` + (kinds ? `; hidden from it: ${kinds}` : ""), "meta"));
