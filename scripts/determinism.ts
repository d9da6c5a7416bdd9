/**
 * Counts how often the same request with the same seed says the same bytes, setting by setting, on real engines: the
 * table of docs/determinism.md. The texts that all are compared with are those of the same requests, strict and one
 * after the other, on the same engine. What is promised (strict) and differs ends it with 1.
 *
 * bun scripts/determinism.ts [--runs N] [--cuts N] [--tokens N] [--seed N] [--models demo,random-q4k] [--daemon FILE]
 *                            [--others]              engines with other flags, strict on them
 *                            [--other-engine FILE]   a llama-server of another build or instruction set, the same
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import {
  type Ask,
  asksOf,
  compare,
  makeRandomModels,
  onePool,
  pool,
  poolsOf,
  Runs,
  replicasOf,
  restartSettings,
  type Said,
  type Tally,
  twoPool,
} from "../test/engine/determinism-runs.ts";
import { endDaemons, type RunningDaemon, sourceCommand, startDaemon } from "../test/support/daemon.ts";
import { testModel } from "../test/support/engine.ts";
import { quantile } from "./bench/statistics.ts";

const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "256" },
    cuts: { type: "string", default: "64" },
    tokens: { type: "string", default: "128" },
    seed: { type: "string", default: "20261121" },
    models: { type: "string", default: "demo,random-f32,random-q4k" },
    daemon: { type: "string" },
    others: { type: "boolean", default: false },
    "other-engine": { type: "string" },
  },
});

function count(name: "runs" | "cuts" | "tokens" | "seed"): number {
  const value = Number(values[name]);
  if (Number.isSafeInteger(value) && value > 0) return value;
  console.error(`--${name} must be a whole number above 0, not "${values[name]}"`);
  process.exit(2);
}

const [runsMax, cutsMax, tokens, seed] = [count("runs"), count("cuts"), count("tokens"), count("seed")];
const strict = { determinism: "strict" };
const restartEach = 16;

/** Engines that an operator starts otherwise: each says what it says, and the reference is the plain one's. */
const otherEngines: Readonly<Record<string, readonly string[]>> = {
  // Asleep instead of spinning while they wait for each other: on a busy machine that is a hundred times slower.
  "2 threads": ["-t", "2", "--poll", "0"],
  "batches of 32": ["-b", "32"],
  "flash attention off": ["--flash-attn", "off"],
  "context as f32": ["--cache-type-k", "f32", "--cache-type-v", "f32"],
};
const unified = "unified";

let broken = 0;

function row(model: string, setting: string, tally: Tally, promised: boolean): void {
  const { runs, equal, firstDifferences: at, exact } = tally;
  const first = at.length === 0 ? "" : `${at[0]} / ${Math.round(quantile(at, 0.5))} / ${at[at.length - 1]}`;
  const ends = Object.entries(exact).map(([word, times]) => `${word} ${times}`);
  console.log(`| ${model} | ${setting} | ${runs} | ${equal} | ${first} | ${ends.join(", ")} |`);
  broken += tally.wrongYes + (promised ? runs - equal : 0);
}

/** Of the cut ones only those that were. */
function cutOnly(reference: readonly Said[], said: readonly Said[]): Tally {
  const cut = said.flatMap((one, at) => (one.continuations > 0 ? [at] : []));
  const of = (all: readonly Said[]): Said[] => cut.map((at) => all[at] as Said);
  return compare(of(reference), of(said));
}

async function strictRows(runs: Runs, model: string, asks: readonly Ask[]): Promise<Said[]> {
  const one = onePool(model);
  const two = twoPool(model);
  const whole = await runs.strict(one, asks);
  const say = (setting: string, said: readonly Said[]) =>
    row(model, `strict, ${setting}`, compare(whole.slice(0, said.length), said), true);
  say("again", await runs.strict(one, asks));
  say("among others", await runs.strictAmongOthers(one, asks));
  for (const [at, replica] of replicasOf(two).entries())
    say(`replica ${at + 1} of 2 of another pool`, await runs.onReplica(two, replica, asks));
  say(`engine killed every ${restartEach}`, await runs.overRestarts(one, asks, restartEach));
  const cut = await runs.cut(one, asks.slice(0, cutsMax), strict);
  row(model, "strict, cut: replay", cutOnly(whole.slice(0, cutsMax), cut), true);
  return whole;
}

async function looseRows(
  runs: Runs,
  model: string,
  kind: string,
  asks: readonly Ask[],
  whole: readonly Said[],
) {
  const one = onePool(model);
  const say = (setting: string, said: readonly Said[]) =>
    row(model, `${kind}, ${setting}`, compare(whole, said), false);
  for (const kv_hint of ["cold", "reuse"]) {
    const context = kv_hint === "cold" ? "" : ", context reused";
    say(`alone${context}`, await runs.alone(one, asks, { kv_hint }));
    say(`16 at once${context}`, await runs.together(one, asks, { kv_hint }));
  }
  const cut = await runs.cut(one, asks.slice(0, cutsMax), { kv_hint: "cold" });
  row(model, `${kind}, cut: prefix`, cutOnly(whole.slice(0, cutsMax), cut), false);
}

async function otherRows(runs: Runs, model: string, asks: readonly Ask[], whole: readonly Said[]) {
  for (const name of Object.keys(otherEngines))
    row(
      model,
      `strict, engine with ${name}`,
      compare(whole, await runs.strict(poolId(model, name), asks)),
      false,
    );
  const id = poolId(model, unified);
  const alone = await runs.strict(id, asks);
  row(model, "strict, slots share one cache: again", compare(alone, await runs.strict(id, asks)), false);
  const among = await runs.strictAmongOthers(id, asks);
  row(model, "strict, slots share one cache: among others", compare(alone, among), false);
}

const poolId = (model: string, name: string): string => `${model}-${name.replaceAll(/[^a-z0-9]+/g, "-")}`;

function poolsWithOthers(model: string, path: string) {
  const others = Object.entries(otherEngines).map(([name, args]) =>
    pool(poolId(model, name), path, {}, args),
  );
  if (!values.others) return poolsOf(model, path);
  return [...poolsOf(model, path), ...others, pool(poolId(model, unified), path, {}, ["--kv-unified"])];
}

/** Resolves with what the strict and sampled ones said. */
async function measure(daemon: RunningDaemon, model: string): Promise<Said[]> {
  const runs = new Runs(daemon, seed);
  const sampled = asksOf(runsMax, 0.8, tokens);
  const whole = await strictRows(runs, model, sampled);
  await looseRows(runs, model, "sampled", sampled, whole);
  const greedy = asksOf(runsMax, 0, tokens);
  const greedyWhole = await runs.strict(onePool(model), greedy);
  await looseRows(runs, model, "greedy", greedy, greedyWhole);
  const cut = await runs.cut(onePool(model), greedy.slice(0, cutsMax), strict);
  row(model, "greedy and strict, cut: replay", cutOnly(greedyWhole.slice(0, cutsMax), cut), true);
  if (values.others) await otherRows(runs, model, sampled, whole);
  return whole;
}

async function otherEngineRow(daemon: RunningDaemon, model: string, whole: readonly Said[]): Promise<void> {
  const said = await new Runs(daemon, seed).strict(onePool(model), asksOf(runsMax, 0.8, tokens));
  row(model, "strict, another engine", compare(whole, said), false);
}

const folder = mkdtempSync(join(tmpdir(), "orchd-determinism-"));
try {
  const paths: Record<string, string> = { demo: testModel("demo"), ...(await makeRandomModels(folder)) };
  const command = values.daemon === undefined ? sourceCommand : [resolve(values.daemon)];
  console.log(`runs ${runsMax}, cuts ${cutsMax}, tokens ${tokens}, seed ${seed}`);
  console.log(
    "| model | setting | runs | byte-equal | first difference, tokens (min / median / max) | exact |",
  );
  console.log("|---|---|---|---|---|---|");
  for (const model of values.models.split(",")) {
    const path = paths[model];
    if (path === undefined) throw new Error(`no model ${model}; there are ${Object.keys(paths).join(", ")}`);
    const settings = { restart: restartSettings, pools: poolsWithOthers(model, path) };
    const whole = await measure(await startDaemon({ settings, command }), model);
    await endDaemons();
    const other = values["other-engine"];
    if (other === undefined) continue;
    const engines = { llamacpp: { bin: resolve(other) } };
    const pools = [pool(onePool(model), path)];
    await otherEngineRow(await startDaemon({ settings: { engines, pools }, command }), model, whole);
    await endDaemons();
  }
} finally {
  await endDaemons();
  rmSync(folder, { recursive: true, force: true });
}
console.log(broken === 0 ? "what is promised held" : `${broken} broke what is promised`);
process.exitCode = broken === 0 ? 0 : 1;
