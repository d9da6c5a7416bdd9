/**
 * determinism strict on the real engine (ORCHD-TASK-11): the task has its replica to itself, whatever comes before and
 * behind it, reuses no cached context, and says the same bytes every time. The order of starts and ends is that of the
 * daemon's log, which is the order of its decisions.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import { Chance, health, type Json, patienceMs, slotsBusy, submitAndWatch, type Viewer } from "./support.ts";

const seed = Number(process.env.STRICT_SEED ?? 20_261_121);
const chance = new Chance(seed);
const slots = 4;
let daemon: RunningDaemon;

beforeAll(async () => {
  // Without an end token a task is as long as it was asked to be.
  const args = ["--ignore-eos"];
  const pools = [enginePool("chat", testModel("demo"), { slots, ctx: 2048, args })];
  daemon = await startDaemon({ settings: { log: { level: "info" }, pools } });
}, 60_000);

afterAll(endDaemons, 60_000);

const ask = (max_tokens: number, more: Json = {}): Promise<Viewer> =>
  submitAndWatch(daemon, { prompt: "The harbour", max_tokens, sampling: { temperature: 0.8 }, ...more });

const started = ({ events }: Viewer): Json => events.find(({ type }) => type === "started")?.data ?? {};

/** Starts and ends of these tasks, as they came: +0 is the start of the first one, -0 its end. */
async function orderOf(viewers: readonly Viewer[]): Promise<string[]> {
  const at = new Map<unknown, number>(viewers.map(({ taskId }, index) => [taskId, index]));
  const signs: Readonly<Record<string, string>> = { task_started: "+", task_done: "-" };
  return await waitFor(
    () => {
      const seen = daemon.lines.flatMap(({ event, task_id }) => {
        const [index, sign] = [at.get(task_id), signs[String(event)]];
        return index === undefined || sign === undefined ? [] : [`${sign}${index}`];
      });
      return seen.length >= 2 * viewers.length && seen;
    },
    patienceMs,
    "all starts and ends are in the log",
  );
}

/** Short and long tasks of all kinds until told to stop. */
function noise(): { readonly seen: Viewer[]; stop(): Promise<void> } {
  const seen: Viewer[] = [];
  let enough = false;
  const client = async (): Promise<void> => {
    while (!enough) {
      const more = {
        prompt: `${chance.between(0, 9)} noise`,
        priority: chance.pick(["interactive", "batch"]),
      };
      const viewer = await ask(chance.between(1, 60), more);
      seen.push(viewer);
      await viewer.finished();
    }
  };
  const running = Promise.all(Array.from({ length: slots + 2 }, client));
  return {
    seen,
    stop: async () => {
      enough = true;
      await running;
    },
  };
}

describe("a strict task", () => {
  test("waits for those before it, runs alone, and those behind it wait", async () => {
    const viewers = [await ask(300), await ask(150)];
    for (const viewer of viewers) await viewer.hasTokens(1);
    viewers.push(await ask(200, { determinism: "strict" }));
    const strict = viewers[2] as Viewer;
    // Two slots are free, and stay so.
    for (const priority of ["interactive", "batch", "interactive"]) viewers.push(await ask(5, { priority }));
    expect((await health(daemon, "chat")).queue).toMatchObject({ interactive: 3, batch: 1 });
    await strict.hasTokens(1);
    expect(await slotsBusy(daemon, "chat")).toBe(1);
    for (const viewer of viewers) await viewer.finished();

    const order = await orderOf(viewers);
    const [from, to] = [order.indexOf("+2"), order.indexOf("-2")];
    expect(order.slice(0, from).sort()).toEqual(["+0", "+1", "-0", "-1"]);
    expect(to).toBe(from + 1);
    expect(order.slice(to + 1).sort()).toEqual(["+3", "+4", "+5", "-3", "-4", "-5"]);
    expect(started(strict)).toMatchObject({ determinism: "strict", kv_warmth: false });
    for (const viewer of viewers.filter((one) => one !== strict))
      expect(started(viewer).determinism).toBe("best_effort");
  }, 30_000);

  test("says the same bytes again, with others before, between and behind", async () => {
    console.info(`strict: seed ${seed}`);
    const seeds = [1, 7, 42, 4_294_967_294];
    const texts = new Map<number, Set<string>>(seeds.map((one) => [one, new Set()]));
    const stricts: Viewer[] = [];
    const others = noise();
    for (let round = 0; round < 4; round++)
      for (const one of seeds) {
        await waitFor(async () => (await slotsBusy(daemon, "chat")) > 1, patienceMs, "others run");
        const viewer = await ask(120, {
          determinism: "strict",
          seed: one,
          prompt: "The baker said farewell",
        });
        await viewer.finished();
        expect(started(viewer)).toMatchObject({ determinism: "strict", kv_warmth: false, seed: one });
        expect(viewer.terminal.data).toMatchObject({ tokens_out: 120, finish_reason: "length" });
        texts.get(one)?.add(viewer.text);
        stricts.push(viewer);
      }
    await others.stop();
    for (const [one, said] of texts) expect({ seed: one, texts: said.size }).toEqual({ seed: one, texts: 1 });
    expect(new Set([...texts.values()].flatMap((said) => [...said])).size).toBe(seeds.length);

    const all = [...stricts, ...others.seen];
    const order = await orderOf(all);
    for (const at of stricts.keys()) {
      const from = order.indexOf(`+${at}`);
      expect(order[from + 1]).toBe(`-${at}`);
      // Whoever started before has ended.
      const before = order.slice(0, from);
      expect(before.filter((mark) => mark.startsWith("+")).length * 2).toBe(before.length);
    }
    console.info(`strict: ${stricts.length} strict tasks among ${others.seen.length} others`);
  }, 60_000);
});
