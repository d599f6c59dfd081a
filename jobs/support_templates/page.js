const chat = make("div");
for (const message of request.messages) {
  const bubble = make("div", undefined, message.role === "customer" ? "bubble" : "bubble right");
  bubble.append(make("small", message.role), document.createTextNode(message.text));
  chat.append(bubble);
}
element.append(chat);
if (answer.abstained) element.append(make("p", "No suggestion: " + answer.abstain_reason.replace("_", " ") + "."));
const table = make("table");
for (const one of answer.suggestions) {
  const row = make("tr");
  const share = make("td");
  const bar = make("div", undefined, "bar");
  bar.style.width = Math.max(1, 100 * one.probability) + "%";
  share.style.width = "40%";
  share.append(bar);
  row.append(make("td", one.rank + "."), make("td", one.title), make("td", (100 * one.probability).toFixed(1) + " %"), share);
  table.append(row);
}
element.append(table);
const kinds = Object.entries(answer.redactions).map(([kind, count]) => `${count} ${kind}`).join(", ");
element.append(make("p", `${answer.context.messages_used} of ${answer.context.messages_total} messages read` + (kinds ? `; replaced before reading: ${kinds}` : ""), "meta"));
