/**
 * Owns the checks of the models that scripts/make-demo-model.ts makes, on the real llama-server. Every other
 * test that runs an engine relies on what is asserted here: same bytes every time, words that depend on the
 * whole context, greedy text that does not depend on how the prompt was processed.
 * Called by `bun test`. Always holds: every engine is ended and awaited, and the folder of models is removed.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildModel, type Shape } from "../../scripts/make-demo-model.ts";
import { writeGguf } from "../../scripts/model/gguf-writer.ts";

const root = join(import.meta.dir, "..", "..");
const enginePath = process.env.ORCHD_LLAMA_SERVER ?? join(root, ".engine/bin/llama-server");
const folder = mkdtempSync(join(tmpdir(), "orchd-model-"));
const engines: { child: ChildProcess; exited: Promise<void> }[] = [];

interface Completion {
  readonly content: string;
  readonly tokens: number[];
  readonly stop_type: string;
}

/** Starts llama-server on a free port and resolves to its URL once it listens; both pipes stay drained. */
function startEngine(model: string, args: readonly string[]): Promise<string> {
  if (!existsSync(enginePath)) throw new Error(`no engine at ${enginePath}: run \`npm run setup\` first`);
  const child = spawn(
    enginePath,
    ["-m", model, "--host", "127.0.0.1", "--port", "0", "--no-ui", "--offline", "-t", "1", ...args],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  child.stdout.resume();
  const exited = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  engines.push({ child, exited });
  return new Promise((resolve, reject) => {
    let log = "";
    child.stderr.on("data", (chunk: Buffer) => {
      log = (log + chunk.toString("utf8")).slice(-20_000);
      const url = /listening on (http:\/\/\S+)/.exec(log)?.[1];
      if (url !== undefined) resolve(url);
    });
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the engine ended with ${code}:\n${log}`)));
  });
}

async function post<T>(url: string, path: string, body: unknown): Promise<T> {
  const response = await fetch(url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Connection: "close" },
    body: JSON.stringify(body),
  });
  const answer = await response.text();
  if (!response.ok) throw new Error(`${path}: ${response.status} ${answer}`);
  return JSON.parse(answer) as T;
}

/** Greedy completion of a text or of token ids. */
function complete(
  url: string,
  prompt: string | number[],
  n_predict: number,
  more: object = {},
): Promise<Completion> {
  return post(url, "/completion", { prompt, n_predict, temperature: 0, return_tokens: true, ...more });
}

async function tokenize(url: string, content: string, add_special = true): Promise<number[]> {
  return (await post<{ tokens: number[] }>(url, "/tokenize", { content, add_special })).tokens;
}

async function make(shape: Shape): Promise<{ path: string; sha256: string; bytes: number }> {
  const path = join(folder, `${shape}.gguf`);
  return { path, ...(await writeGguf(path, buildModel(shape))) };
}

const corpus = readFileSync(join(root, "scripts/model/corpus.txt"), "utf8");
const knownWords = new Set(corpus.toLowerCase().match(/[\p{L}'-]+/gu));
const promptWords = corpus.match(/\b[a-z]{2,}\b/g)?.slice(0, 240) ?? [];

afterAll(async () => {
  // SIGKILL: nothing here needs a clean end, and llama-server may ignore SIGTERM while it generates.
  for (const { child } of engines) child.kill("SIGKILL");
  await Promise.all(engines.map(({ exited }) => exited));
  rmSync(folder, { recursive: true, force: true });
});

describe("the demo model", () => {
  let url = "";
  let model = { path: "", sha256: "", bytes: 0 };

  beforeAll(async () => {
    model = await make("demo");
    url = await startEngine(model.path, ["-np", "4", "-c", "16384"]);
  });

  test("is the same file on every run of the command", async () => {
    const path = join(folder, "again.gguf");
    const command = Bun.spawn([process.execPath, join(root, "scripts/make-demo-model.ts"), "--out", path], {
      stdout: "pipe",
      stderr: "inherit",
    });
    expect(await new Response(command.stdout).text()).toBe(`${path} ${model.bytes} ${model.sha256}\n`);
    expect(await command.exited).toBe(0);
    expect(new Bun.CryptoHasher("sha256").update(readFileSync(path)).digest("hex")).toBe(model.sha256);
    expect(model.bytes).toBeGreaterThan(8e6);
    expect(model.bytes).toBeLessThan(24e6);
  });

  test("describes itself", async () => {
    const models = (await (await fetch(`${url}/v1/models`)).json()) as {
      data: { meta: { n_ctx_train: number; n_params: number; size: number } }[];
    };
    const meta = models.data[0]?.meta;
    expect(meta?.n_ctx_train).toBe(4096);
    expect(meta?.n_params).toBeGreaterThan(2e6);
    expect(meta?.size).toBeLessThan(model.bytes);
  });

  test("writes words of the corpus, some not ASCII, up to the limit and in no loop", async () => {
    const { content, tokens, stop_type } = await complete(url, "The harbour", 1500);
    expect(stop_type).toBe("limit");
    expect(tokens.length).toBe(1500);
    const unknown = (content.toLowerCase().match(/[\p{L}'-]+/gu) ?? []).filter(
      (word) => !knownWords.has(word),
    );
    expect(unknown).toEqual([]);
    expect(content).toContain("\n");
    expect(content).toMatch(/café|naïve|–|→|θάλασσα|港/u);
    // A picture character is several byte tokens.
    const picture = /[🙂⚓]/u.exec(content)?.[0] ?? "";
    expect((await tokenize(url, picture, false)).length).toBeGreaterThan(2);
    const phrases = tokens.slice(0, -8).map((_, start) => tokens.slice(start, start + 8).join());
    expect(new Set(phrases).size).toBeGreaterThan(phrases.length / 2);
  });

  test("continues differently when one early token is another one", async () => {
    const ids = await tokenize(url, promptWords.join(" "));
    expect(ids.length).toBeGreaterThan(200);
    const reference = await complete(url, ids, 64);
    const [other = 0] = await tokenize(url, "café", false);
    const positions = [1, 2, 5, 9, 17, 33, 60, 90, 120, 150];
    const changed = await Promise.all(positions.map((at) => complete(url, ids.with(at, other), 64)));
    expect(changed.filter(({ content }) => content === reference.content)).toEqual([]);
    expect(new Set(changed.map(({ content }) => content)).size).toBe(positions.length);
  });

  test("continues the same from its own tokens, with and without a cached prefix", async () => {
    const ids = await tokenize(url, promptWords.slice(0, 60).join(" "));
    const whole = await complete(url, ids, 128, { cache_prompt: false });
    for (const k of [1, 17, 64, 127]) {
      for (const cache_prompt of [false, true]) {
        const rest = await complete(url, [...ids, ...whole.tokens.slice(0, k)], 128 - k, { cache_prompt });
        expect(rest.tokens).toEqual(whole.tokens.slice(k));
      }
    }
  });

  test("writes the same text in other batches and beside other streams", async () => {
    const prompts = [3, 40, 110, 240].map((length) => promptWords.slice(0, length).join(" "));
    const together = await Promise.all(prompts.map((prompt) => complete(url, prompt, 96)));
    const other = await startEngine(model.path, ["-np", "1", "-c", "4096", "-b", "50", "-ub", "7"]);
    for (const [index, prompt] of prompts.entries()) {
      expect((await complete(other, prompt, 96)).content).toBe(together[index]?.content ?? "");
    }
  });

  test("tokenizes any script, and its own text back to the same tokens", async () => {
    const { content, tokens } = await complete(url, "海辺の町 🦑 Привет, naïve café", 100);
    expect(content).not.toContain("\uFFFD");
    expect(content).toStartWith(" ");
    // The tokenizer puts this space before a text by itself.
    expect(await tokenize(url, content.slice(1), false)).toEqual(tokens);
  });

  test("has a chat template and an end token that can be provoked", async () => {
    const messages = [
      { role: "system", content: "Be kind." },
      { role: "user", content: "What does the wind bring?" },
    ];
    const { prompt } = await post<{ prompt: string }>(url, "/apply-template", { messages });
    expect(prompt).toBe("<|system|>\nBe kind.</s>\n<|user|>\nWhat does the wind bring?</s>\n<|assistant|>\n");
    const chat = await post<{ choices: { message: { content: string }; finish_reason: string }[] }>(
      url,
      "/v1/chat/completions",
      { messages, max_tokens: 40, temperature: 0 },
    );
    expect(chat.choices[0]?.finish_reason).toBe("length");
    expect(chat.choices[0]?.message.content).toMatch(/^\p{Lu}\p{L}*/u);
    expect((await complete(url, "The baker said farewell", 40)).stop_type).toBe("eos");
  });
});

test("the slow model writes words", async () => {
  const { path, bytes } = await make("slow");
  expect(bytes).toBeGreaterThan(180e6);
  const url = await startEngine(path, ["-np", "1", "-c", "1024"]);
  const { content } = await complete(url, "The harbour", 8);
  expect((content.toLowerCase().match(/[\p{L}'-]+/gu) ?? []).every((word) => knownWords.has(word))).toBe(
    true,
  );
});

test("the embedding model puts similar texts near each other", async () => {
  const url = await startEngine((await make("embedding")).path, ["--embeddings", "--pooling", "mean"]);
  const input = [
    "The boats come home to the harbour.",
    "A boat is in the harbour.",
    "Ada reads a letter.",
    "",
  ];
  const { data } = await post<{ data: { embedding: number[] }[] }>(url, "/v1/embeddings", { input });
  const vectors = data.map(({ embedding }) => embedding);
  const similarity = (a: number, b: number) =>
    (vectors[a] ?? []).reduce((sum, value, k) => sum + value * (vectors[b]?.[k] ?? 0), 0);
  for (let i = 0; i < input.length; i++) expect(similarity(i, i)).toBeCloseTo(1, 3);
  expect(similarity(0, 1)).toBeGreaterThan(similarity(0, 2) + 0.2);
  expect(similarity(0, 1)).toBeGreaterThan(similarity(1, 2) + 0.2);
});

test("the rerank model prefers documents that share words with the query", async () => {
  const url = await startEngine((await make("rerank")).path, ["--rerank"]);
  const documents = [
    "The baker sells warm rolls, bread and cheese.",
    "The clock in the workshop.",
    "",
    "Ada mended the clock four times, and the clock was late.",
  ];
  const { results } = await post<{ results: { index: number; relevance_score: number }[] }>(
    url,
    "/v1/rerank",
    {
      query: "Who mends the clock in the workshop?",
      documents,
    },
  );
  const scores = new Map(results.map(({ index, relevance_score }) => [index, relevance_score]));
  expect(scores.get(1)).toBeGreaterThan(scores.get(3) ?? 1);
  expect(scores.get(3)).toBeGreaterThan((scores.get(0) ?? 1) + 0.1);
  expect(scores.get(3)).toBeGreaterThan((scores.get(2) ?? 1) + 0.1);
});
