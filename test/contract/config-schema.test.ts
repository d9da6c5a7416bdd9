/**
 * contracts/schemas/config.schema.json is what the daemon validates with, and orchestratord.example.yaml is a
 * valid file by both: the daemon's own reader and an independent validator of JSON Schema.
 */
import { describe, expect, test } from "bun:test";
import Ajv from "ajv";
import { parse } from "yaml";
import { schemaPath, schemaText } from "../../scripts/generate-config-schema.ts";
import { formatProblem } from "../../src/app/config-problems.ts";
import { compileText } from "../support/config-files.ts";

const committed = await Bun.file(schemaPath).text();
const template = await Bun.file(new URL("../../orchestratord.example.yaml", import.meta.url)).text();
const example = template.replace("REPLACE-WITH-THE-SHA256-OF-YOUR-KEY", "ab".repeat(32));
/** The example with the pools that it only shows. */
const whole = example.replace(/^ {2}# {1,5}(- id: [a-z-]+|[ ]{2}\w+: )/gm, (line) => line.replace("# ", ""));

const ajv = new Ajv({ strict: true, allErrors: true, allowUnionTypes: true });
for (const keyword of ["x-later", "x-expected"]) ajv.addKeyword(keyword);
const validate = ajv.compile(JSON.parse(committed));
const disk = { "/home/ada/.cache/models": [], "/home/ada/.cache/models/qwen3-8b-q4_k_m.gguf": "GGUF" };
const problemsOf = (text: string): string[] => {
  const result = compileText(text, { disk });
  return result.ok ? [] : result.problems.map(formatProblem);
};

test("the committed schema is the generated one", () => {
  // Differs: run `bun scripts/generate-config-schema.ts`.
  expect(committed).toBe(schemaText());
});

describe("orchestratord.example.yaml", () => {
  test("is refused until the key is replaced, and for nothing else", () => {
    expect(problemsOf(template)).toEqual([
      expect.stringContaining("auth.keys[0].sha256: found a text of 35 characters"),
    ]);
    expect(validate(parse(template))).toBe(false);
  });

  test.each([
    ["as it is", example],
    ["with the pools that it only shows", whole],
  ])("is valid %s", (_, text) => {
    expect(problemsOf(text)).toEqual([]);
    expect(validate(parse(text))).toBe(true);
  });

  test("shows real pools", () => {
    const result = compileText(whole, { disk });
    expect(result.ok && result.config.pools.map(({ id, engine }) => [id, engine])).toEqual([
      ["dry-run", "mock"],
      ["chat", "llamacpp"],
      ["gpu-box", "openai"],
    ]);
  });

  test("names every key that works", () => {
    const named = new Set(example.match(/[a-z_0-9]+(?=:)/g));
    const known = keysOf(JSON.parse(committed));
    const faults = ["kind", "nth", "after_tokens", "delay_ms"];
    expect(known.filter((key) => !named.has(key) && !faults.includes(key))).toEqual([]);
  });
});

interface Schema {
  readonly "x-later"?: readonly string[];
  readonly const?: unknown;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly items?: Schema;
  readonly anyOf?: readonly Schema[];
}

/** Names of the keys that take more than one value; a section counts where anything in it does. */
function keysOf(schema: Schema): string[] {
  const inner = [...(schema.items === undefined ? [] : [schema.items]), ...(schema.anyOf ?? [])].flatMap(
    keysOf,
  );
  const own = Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    const isLater =
      property["x-later"] !== undefined && property.anyOf?.every((member) => "const" in member) !== true;
    if (isLater) return [];
    const below = keysOf(property);
    return property.properties !== undefined && below.length === 0 ? [] : [name, ...below];
  });
  return [...own, ...inner];
}

describe("the schema and the daemon agree", () => {
  const table: [string, boolean][] = [
    ["{}", true],
    ["addr: 127.0.0.1:1", true],
    ["adr: x", false],
    ["pools: [{ id: a, engine: mock, model: mock:words }]", true],
    ['pools: [{ id: a, engine: openai, model: x, base_url: "http://gpu:8000/v1", server: vllm }]', true],
    ['pools: [{ id: a, engine: openai, model: x, base_url: "http://gpu:8000/v1", server: mine }]', false],
    ["pools: [{ id: a, engine: mock, model: mock:words, rpc: [gpu] }]", false],
    ["pools: [{ id: a, engine: mock, model: mock:words, preempt: true }]", true],
    ["pools: [{ id: a, engine: mock, model: mock:words, preempt: { max_wait_ms: 0, max_cuts: 1 } }]", true],
    ["pools: [{ id: a, engine: mock, model: mock:words, preempt: { max_cuts: 0 } }]", false],
    ["pools: [{ id: a, engine: mock, model: mock:words, preempt: { enabled: true } }]", false],
    ["pools: [{ id: a, engine: mock, model: mock:words, preempt: null }]", false],
    ["pools: [{ id: a, engine: mock, model: mock:words, timeouts: { task_ms: 1000 } }]", true],
    ["pools: [{ id: a, engine: mock, model: mock:words, timeouts: { task_ms: 0 } }]", false],
    ["pools: [{ id: a, engine: mock, model: mock:words, workloads: [rerank, rerank] }]", false],
    ["storage: { durability: power }", true],
    ["storage: { durability: none }", false],
    ["storage: null", true],
    ["sessions: { budget: { cost: 0.5 } }", true],
    ["sessions: { budget: { tokens: 0 } }", false],
    [
      `auth: { keys: [{ id: a, sha256: "${"ab".repeat(32)}", budget: { tokens: 1, window_ms: 1000 } }] }`,
      true,
    ],
    [`auth: { keys: [{ id: a, sha256: "${"ab".repeat(32)}", budget: { tokens: 1 } }] }`, false],
    ["pools: [{ id: a, engine: mock, model: mock:words, queue: { full_policy: drop-lru } }]", true],
    ["pools: [{ id: a, engine: mock, model: mock:words, devices: [0] }]", false],
    ["limits: { rate: { per_second: 0, burst: 1 } }", false],
    ["tasks: null", false],
  ];
  test.each(table)("%s", (text, isValid) => {
    expect(validate(parse(text))).toBe(isValid);
    expect(problemsOf(text).length === 0).toBe(isValid);
  });
});
