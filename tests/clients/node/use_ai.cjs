// Vercel's AI SDK with its provider for OpenAI's protocol, chat completions.
const { generateText, streamText } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const steps = require("./steps.cjs");

const asked = (baseUrl, model, prompt, limit) => ({
  model: createOpenAICompatible({ name: "gate", baseURL: `${baseUrl}/v1`, apiKey: "none", includeUsage: true })(model),
  prompt,
  maxOutputTokens: limit,
  temperature: 0,
  maxRetries: 0,
});

const read = async (result) => {
  const usage = await result.usage;
  return steps.answer(await result.text, await result.finishReason, usage.inputTokens, usage.outputTokens);
};

const whole = async (baseUrl, model) =>
  read(await generateText(asked(baseUrl, model, steps.QUESTION, steps.LIMIT)));

async function streamed(baseUrl, model) {
  let failure;
  const onError = ({ error }) => (failure = error);
  const result = streamText({ ...asked(baseUrl, model, steps.QUESTION, steps.LIMIT), onError });
  await result.consumeStream();
  if (failure) throw failure;
  return read(result);
}

async function stop(baseUrl, model) {
  const abort = new AbortController();
  const question = asked(baseUrl, model, steps.LONG_QUESTION, steps.LONG);
  const result = streamText({ ...question, abortSignal: abort.signal });
  let pieces = 0;
  for await (const _ of result.textStream) {
    pieces += 1;
    if (pieces === steps.PIECES) break;
  }
  abort.abort();
  return pieces;
}

steps.run(whole, streamed, stop);
