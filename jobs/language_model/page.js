const make = (tag, text, kind) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
};
const choice = answer.choices[0];
const said = make("p");
said.style.whiteSpace = "pre-wrap";
said.append(make("span", request.prompt, "meta"), make("span", choice.text));
element.append(said);
const timing = answer.timing;
element.append(
  make(
    "p",
    `${answer.usage.completion_tokens} tokens, ended by ${choice.finish_reason}; ` +
      `${Math.round(timing.prefill_ms)} ms for the prompt, ` +
      `${Math.round(timing.decode_ms_per_token)} ms a token`,
    "meta",
  ),
);
