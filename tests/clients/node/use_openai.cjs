// OpenAI's client for Node, responses.
const OpenAI = require("openai");
const steps = require("./steps.cjs");

const create = (baseUrl, model, input, limit, more = {}) =>
  new OpenAI({ baseURL: `${baseUrl}/v1`, apiKey: "none", maxRetries: 0, timeout: steps.TIMEOUT_MS }).responses.create({
    model,
    input,
    max_output_tokens: limit,
    temperature: 0,
    ...more,
  });

const read = (response) => {
  const { input_tokens, output_tokens } = response.usage;
  return steps.answer(response.output_text, response.status, input_tokens, output_tokens);
};

const whole = async (baseUrl, model) => read(await create(baseUrl, model, steps.QUESTION, steps.LIMIT));

async function streamed(baseUrl, model) {
  let text = "";
  let last;
  for await (last of await create(baseUrl, model, steps.QUESTION, steps.LIMIT, { stream: true }))
    if (last.type === "response.output_text.delta") text += last.delta;
  return { ...read(last.response), text };
}

async function stop(baseUrl, model) {
  let pieces = 0;
  // Leaving the loop aborts the request.
  for await (const event of await create(baseUrl, model, steps.LONG_QUESTION, steps.LONG, { stream: true })) {
    if (event.type === "response.output_text.delta") pieces += 1;
    if (pieces === steps.PIECES) break;
  }
  return pieces;
}

steps.run(whole, streamed, stop);
