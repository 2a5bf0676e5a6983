// Anthropic's client for Node, messages.
const Anthropic = require("@anthropic-ai/sdk");
const steps = require("./steps.cjs");

const messages = (baseUrl) =>
  new Anthropic({ baseURL: baseUrl, apiKey: "none", maxRetries: 0, timeout: steps.TIMEOUT_MS }).messages;

const asked = (model, content, limit) => ({
  model,
  messages: [{ role: "user", content }],
  max_tokens: limit,
  temperature: 0,
});

const read = (message) =>
  steps.answer(message.content[0].text, message.stop_reason, message.usage.input_tokens, message.usage.output_tokens);

const whole = async (baseUrl, model) => read(await messages(baseUrl).create(asked(model, steps.QUESTION, steps.LIMIT)));

const streamed = async (baseUrl, model) =>
  read(await messages(baseUrl).stream(asked(model, steps.QUESTION, steps.LIMIT)).finalMessage());

async function stop(baseUrl, model) {
  const stream = messages(baseUrl).stream(asked(model, steps.LONG_QUESTION, steps.LONG));
  let pieces = 0;
  for await (const event of stream) {
    if (event.type === "content_block_delta") pieces += 1;
    if (pieces === steps.PIECES) break;
  }
  stream.abort();
  return pieces;
}

steps.run(whole, streamed, stop);
