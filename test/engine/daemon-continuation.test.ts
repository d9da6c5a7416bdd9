/**
 * Tasks that go on where a killed engine stopped (ORCHD-ATT-1, ORCHD-ATT-2): the same bytes as a run that
 * nothing cut, numbered without gaps, `started` once, and `end` says how it was done. The engine is killed as soon as
 * a few new tokens were seen, again and again until all tasks have ended.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import { Chance, health, type Json, patienceMs, submitAndWatch, type Viewer } from "./support.ts";

const seed = Number(process.env.CONTINUATION_SEED ?? 20_261_121);
const chance = new Chance(seed);
const tokens = 256;
const greedy: Json = { temperature: 0 };
let daemon: RunningDaemon;

beforeAll(async () => {
  console.info(`continuation: seed ${seed}`);
  // Without an end token a task is as long as it was asked to be. Quick restarts: their backoff is tested elsewhere.
  const pools = [enginePool("chat", testModel("demo"), { slots: 4, ctx: 2048, args: ["--ignore-eos"] })];
  daemon = await startDaemon({ settings: { restart: { backoff_ms: 20, backoff_max_ms: 100 }, pools } });
}, 60_000);

afterAll(endDaemons, 60_000);

async function uncut(request: Json): Promise<Viewer> {
  const viewer = await (await submitAndWatch(daemon, request)).finished();
  expect(viewer.terminal).toMatchObject({ type: "end", data: { continuations: 0, exact: "yes" } });
  return viewer;
}

/** Kills the engine, whichever it is by then, until all have ended; says how often. */
async function killedUntilEnded(viewers: readonly Viewer[], tokensBetween: number): Promise<number> {
  const ended = () => viewers.every((viewer) => viewer.ended);
  const said = () => viewers.reduce((sum, viewer) => sum + viewer.tokens.length, 0);
  const engine = async () => (await health(daemon, "chat")).replicas[0]?.pid ?? null;
  for (let kills = 0; ; kills++) {
    const enough = said() + chance.between(1, tokensBetween);
    await waitFor(() => ended() || said() >= enough, patienceMs, "new tokens");
    if (ended()) return kills;
    const pid = await engine();
    if (pid === null) throw new Error("tokens without an engine");
    process.kill(pid, "SIGKILL");
    // What the dead one said may still be on its way: only what comes behind this is the next one's.
    const isNew = (next: number | null) => next !== null && next !== pid;
    await waitFor(async () => ended() || isNew(await engine()), patienceMs, "the next engine");
  }
}

/** All requests at once under kills, each compared with what it says uncut. */
async function cutAndCompared(name: string, requests: readonly Json[], tokensBetween: number) {
  const wholes: Viewer[] = [];
  for (const request of requests) wholes.push(await uncut(request));
  const viewers: Viewer[] = [];
  const fromMs = performance.now();
  for (const request of requests) viewers.push(await submitAndWatch(daemon, request));
  const kills = await killedUntilEnded(viewers, tokensBetween);
  for (const viewer of viewers) await viewer.finished();
  const ends = viewers.map(({ terminal }) => terminal.data);
  const continuations = ends.map((end) => Number(end.continuations));
  console.info(
    `continuation, ${name}: ${kills} kills in ${Math.round(performance.now() - fromMs)} ms,`,
    `continuations ${continuations}, exact ${ends.map(({ exact }) => exact)}`,
  );
  for (const [at, viewer] of viewers.entries()) {
    const whole = wholes[at] as Viewer;
    expect(viewer.terminal.type).toBe("end");
    expect(Buffer.from(viewer.text).equals(Buffer.from(whole.text))).toBe(true);
    expect(viewer.tokens.map(({ data }) => data.i)).toEqual(viewer.tokens.map((_token, i) => i));
    expect(viewer.events.filter(({ type }) => type === "started")).toHaveLength(1);
    const { tokens_in, tokens_out, finish_reason } = whole.terminal.data;
    expect(viewer.terminal.data).toMatchObject({ tokens_in, tokens_out, finish_reason });
  }
  // Of each, nearly always; one may slip through between two kills on a loaded machine.
  expect(Math.max(...continuations)).toBeGreaterThan(0);
  return ends;
}

test("four greedy streams, by prefix", async () => {
  const prompts = ["The harbour", "Once upon a time", "Two friends", "The baker said farewell"];
  const requests = prompts.map((prompt) => ({ prompt, max_tokens: tokens, sampling: greedy }));
  const ends = await cutAndCompared("greedy", requests, 120);
  for (const { exact, finish_reason } of ends) {
    expect(["unverified", "yes"]).toContain(String(exact));
    expect(finish_reason).toBe("length");
  }
}, 20_000);

test("two sampled and strict streams, by replay", async () => {
  const requests = [7, 42].map((one) => ({
    ...{ prompt: "The baker said farewell", max_tokens: tokens, sampling: { temperature: 0.8 } },
    ...{ determinism: "strict", seed: one },
  }));
  const ends = await cutAndCompared("strict", requests, 60);
  for (const { exact } of ends) expect(exact).toBe("yes");
}, 20_000);

test("prompts beyond ASCII, and stop strings", async () => {
  const plain = ["Zoë said «", "😀 東京 → ", "Once upon a time"].map((prompt) => ({
    ...{ prompt, max_tokens: tokens, sampling: greedy },
  }));
  const stopped: Json[] = [];
  for (const request of plain) {
    const { text } = await uncut(request);
    // The last place that nothing before it resembles, so that there is something to cut; and one that begins often.
    let from = Math.floor(text.length * 0.9);
    while (from > 0 && text.indexOf(text.slice(from, from + 24)) < from) from--;
    const stop = [text.slice(from, from + 24), `${text.slice(10, 12)}\u0001`];
    stopped.push({ ...request, sampling: { ...greedy, stop } });
  }
  const ends = await cutAndCompared("stop strings", [...stopped, plain[0] as Json], 60);
  expect(ends.map(({ finish_reason }) => finish_reason)).toEqual(["stop", "stop", "stop", "length"]);
  for (const { exact } of ends) expect(["unverified", "yes"]).toContain(String(exact));
}, 20_000);
