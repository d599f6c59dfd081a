const roles = ["customer", "advocate", "system"];
const messages = [];
for (const line of text.split("\n").filter((one) => one.trim())) {
  const found = /^\s*(\w+)\s*:\s*(.*)$/.exec(line);
  const role = found && found[1].toLowerCase();
  if (roles.includes(role)) messages.push({ role, text: found[2] });
  else if (messages.length) messages[messages.length - 1].text += "\n" + line;
  else throw new Error("Begin the first line with customer:, advocate: or system:");
}
if (!messages.length) throw new Error("Write at least one message");
return { ...request, messages };
