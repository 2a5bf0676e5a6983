// What a client is put through at one address, as ../python/steps.py does it:
//     node PROGRAM BASE_URL MODEL [FULL_URL]
const QUESTION = "What is the capital of France?";
const LONG_QUESTION = "Write a long story of a river, in 20 chapters.";
const LONG = 1800;
const LIMIT = 12;
const PIECES = 3;
const TIMEOUT_MS = 60000;

const answer = (text, finish, prompt, completion) => ({ text, finish, usage: [prompt, completion] });

async function refusal(ask, baseUrl, model) {
  try {
    await ask(baseUrl, model);
  } catch (error) {
    return { error: error.constructor.name, message: error.message };
  }
  return { error: "none" };
}

async function run(whole, streamed, stop) {
  const [baseUrl, model, fullUrl] = process.argv.slice(2);
  const report = {};
  report.whole = await whole(baseUrl, model);
  report.streamed = await streamed(baseUrl, model);
  report.refused = await refusal(whole, baseUrl, "no-such-model");
  report.refused_stream = await refusal(streamed, baseUrl, "no-such-model");
  report.stopped = await stop(baseUrl, model);
  report.after = await whole(baseUrl, model);
  if (fullUrl) {
    report.full = await refusal(whole, fullUrl, model);
    report.full_stream = await refusal(streamed, fullUrl, model);
  }
  console.log(JSON.stringify(report));
}

module.exports = { QUESTION, LONG_QUESTION, LONG, LIMIT, PIECES, TIMEOUT_MS, answer, run };
