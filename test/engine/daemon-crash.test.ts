/**
 * Crashes on the real engine: of the engine under load, again and again; of the daemon; and an engine that lives
 * and answers nothing. What was accepted ends well and once, what comes meanwhile waits, nothing is left behind.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  endDaemons,
  enginePool,
  guardMsMax,
  type RunningDaemon,
  runToEnd,
  type Settings,
  startDaemon,
} from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { isRunning } from "../support/process-probe.ts";
import { waitFor } from "../support/wait.ts";
import {
  Chance,
  health,
  isTerminal,
  type Json,
  moment,
  patienceMs,
  startReference,
  submit,
  submitAndWatch,
  type Viewer,
  watch,
} from "./support.ts";

afterEach(endDaemons, 60_000);

const seed = Number(process.env.CRASH_SEED ?? 20_261_121);
const chance = new Chance(seed);
const kills = 20;
const clients = 8;
const greedy = { temperature: 0 };
const words = readFileSync(join(import.meta.dir, "../../scripts/model/corpus.txt"), "utf8").match(
  /[a-z]{2,}/g,
);

/** A small set, so that each answer can be compared with what an engine that never crashed says. */
const questions = Array.from({ length: 8 }, (_, at) => ({
  prompt: (words ?? []).slice(at * 11, at * 11 + 3 + at * 12).join(" "),
  max_tokens: 10 + at * 15,
}));

async function answersOfAnEngineAlone(): Promise<Map<string, string>> {
  const alone = await startReference(testModel("demo"), ["-c", "2048"]);
  const answers = new Map<string, string>();
  try {
    for (const { prompt, max_tokens } of questions)
      answers.set(prompt, await alone.complete({ prompt, n_predict: max_tokens, ...greedy }));
  } finally {
    await alone.stop();
  }
  return answers;
}

/** Quick restarts: the backoff's growth is tested in the domain. */
const restart: Settings = { backoff_ms: 20, backoff_max_ms: 100 };

async function theReplica(daemon: RunningDaemon, poolId: string) {
  const [replica] = (await health(daemon, poolId)).replicas;
  if (replica === undefined) throw new Error("the pool has no replica");
  return replica;
}

/** The engine's pid once it is ready and not the one that was killed. */
function nextEngine(daemon: RunningDaemon, poolId: string, before: number | null): Promise<number> {
  return waitFor(
    async () => {
      const { state, pid } = await theReplica(daemon, poolId);
      return (state === "ready" || state === "busy") && pid !== before && pid;
    },
    patienceMs,
    "the replica is back",
  );
}

describe("an engine that crashes", () => {
  test(`kill -9 ${kills} times under ${clients} clients: each task ends as if nothing had been`, async () => {
    console.info(`crash: seed ${seed}`);
    const answers = await answersOfAnEngineAlone();
    const daemon = await startDaemon({
      settings: {
        restart,
        // Kills come whatever a task has said by then: three in a row may leave it no time for a token.
        tasks: { max_attempts: 10 },
        pools: [enginePool("chat", testModel("demo"), { slots: 4, ctx: 2048 })],
      },
    });
    const viewers: { viewer: Viewer; prompt: string }[] = [];
    let enough = false;
    const ask = async () => {
      const { prompt, max_tokens } = chance.pick(questions);
      const priority = chance.pick(["interactive", "interactive", "batch"]);
      const viewer = await submitAndWatch(daemon, { prompt, max_tokens, priority, sampling: greedy });
      viewers.push({ viewer, prompt });
      return viewer;
    };
    const client = async () => {
      while (!enough) await (await ask()).finished();
    };
    const running = Promise.all(Array.from({ length: clients }, client));

    let pid: number | null = null;
    for (let kill = 1; kill <= kills; kill++) {
      pid = await nextEngine(daemon, "chat", pid);
      await moment(chance.unit() * 250);
      expect(daemon.engines()).toEqual([pid]);
      process.kill(pid, "SIGKILL");
      await waitFor(async () => !(await health(daemon, "chat")).ready, patienceMs, "the crash is noticed");
      // Nothing can run it now: it waits.
      void (await ask());
    }
    expect(await nextEngine(daemon, "chat", pid)).not.toBe(pid);
    enough = true;
    await running;
    for (const { viewer } of viewers) await viewer.finished();

    const outcomes = Map.groupBy(viewers, ({ viewer }) => viewer.outcome);
    const counts = Object.fromEntries([...outcomes].map(([outcome, of]) => [outcome, of.length]));
    console.info(`crash: ${viewers.length} tasks`, JSON.stringify(counts));
    expect(Object.keys(counts).filter((reason) => !["length", "stop"].includes(reason))).toEqual([]);
    let continuations = 0;
    for (const { viewer, prompt } of viewers) {
      const { type, data } = viewer.terminal;
      expect(type).toBe("end");
      expect(viewer.text).toBe(answers.get(prompt) ?? "no answer");
      // "yes" behind a cut, too: where nothing but the engine's last word was lost.
      expect(data.continuations === 0 ? ["yes"] : ["unverified", "yes"]).toContain(String(data.exact));
      continuations += Number(data.continuations);
    }
    console.info(`crash: ${continuations} continuations`);
    expect(continuations).toBeGreaterThan(0);
    const replica = await theReplica(daemon, "chat");
    expect(replica).toMatchObject({
      restarts: kills,
      slots_busy: 0,
      last_error: { cause: "crashed", signal: "SIGKILL" },
    });
    const restarts = /^replica_restarts_total\{.*\} (\d+)$/m.exec(
      await (await daemon.fetch("/metrics")).text(),
    );
    expect(restarts?.[1]).toBe(String(kills));
    for (const state of ["queued", "running", "suspended"])
      expect((await daemon.json<{ tasks: unknown[] }>(`/v1/tasks?state=${state}`)).tasks).toEqual([]);
    expect(daemon.engines()).toHaveLength(1);
    expect(await daemon.stop()).toBe(143);
  }, 90_000);

  test("one that is alive and answers nothing is found, replaced, and all goes on", async () => {
    const timeouts = { first_token_ms: 800, inter_token_ms: 400 };
    const daemon = await startDaemon({
      settings: {
        restart,
        pools: [
          enginePool("chat", testModel("demo"), { slots: 2, timeouts, args: ["--ignore-eos"] }),
          enginePool("embedding", testModel("embedding"), { slots: 2, timeouts }),
        ],
      },
    });
    const task = (max_tokens: number): Json => ({ prompt: "The harbour", max_tokens, sampling: greedy });
    const uncut = await (await submitAndWatch(daemon, task(1_500))).finished();
    const running = [await submitAndWatch(daemon, task(1_500)), await submitAndWatch(daemon, task(1_400))];
    for (const viewer of running) await viewer.hasTokens(3);
    const waiting = [await submitAndWatch(daemon, task(20)), await submitAndWatch(daemon, task(20))];
    const stopped = daemon.engines();
    expect(stopped).toHaveLength(2);
    const fromMs = performance.now();
    for (const pid of stopped) process.kill(pid, "SIGSTOP");
    const embedding = await submitAndWatch(daemon, { inputs: ["The harbour"] });

    // What was written before the stop is here by the time that the watchdog bites.
    await moment(timeouts.inter_token_ms);
    for (const viewer of running) await viewer.hasTokens(viewer.tokens.length + 1);
    const goesOnMs = performance.now() - fromMs;
    for (const viewer of [...running, ...waiting, embedding]) await viewer.finished();
    console.info(
      `wedged: going on after ${Math.round(goesOnMs)} ms, all done after ${Math.round(performance.now() - fromMs)} ms`,
    );
    for (const viewer of running) {
      expect(viewer.outcome).toBe("length");
      expect(viewer.terminal.data).toMatchObject({ continuations: 1, exact: "unverified" });
      expect(uncut.text).toStartWith(viewer.text);
    }
    expect(running.map(({ terminal }) => terminal.data.tokens_out)).toEqual([1_500, 1_400]);
    expect(waiting.map(({ outcome, tokens }) => [outcome, tokens.length > 0])).toEqual([
      ["length", true],
      ["length", true],
    ]);
    expect(embedding.terminal.type).toBe("end");
    for (const poolId of ["chat", "embedding"])
      expect(await theReplica(daemon, poolId)).toMatchObject({
        restarts: 1,
        last_error: { cause: "wedged", message: expect.stringContaining("timeouts.inter_token_ms") },
      });
    expect(stopped.filter(isRunning)).toEqual([]);
    // The watchdog, the time in which the engine may still free the slot, and a start.
    expect(goesOnMs).toBeLessThan(15_000);
  }, 60_000);
});

const longPool = enginePool("chat", testModel("demo"), { slots: 2, args: ["--ignore-eos"] });
const long = { prompt: "The harbour", max_tokens: 3_500 };

describe("the end of the daemon", () => {
  test("kill -9: engines and guard are gone within 3 s, and the next daemon takes over", async () => {
    const daemon = await startDaemon({ settings: { pools: [longPool] } });
    for (let at = 0; at < 3; at++) await submitAndWatch(daemon, long);
    const offspring = daemon.offspring();
    expect(daemon.engines()).toHaveLength(1);
    expect(offspring.length).toBeGreaterThan(1);
    const goneMs = await daemon.kill9();
    console.info(`kill -9 of the daemon: nothing left after ${Math.round(goneMs)} ms`);
    expect(goneMs).toBeLessThan(guardMsMax);
    expect(offspring.filter(isRunning)).toEqual([]);

    const next = await startDaemon({ settings: { pools: [longPool] }, folder: daemon.folder });
    const viewer = await submitAndWatch(next, { ...long, max_tokens: 10 });
    expect((await viewer.finished()).outcome).toBe("length");
    expect(await next.stop()).toBe(143);
  }, 60_000);

  test("kill -9 while an engine loads", async () => {
    const pools = [enginePool("slow", testModel("slow"))];
    const daemon = await startDaemon({ settings: { pools }, until: "listening" });
    await waitFor(() => daemon.engines().length > 0, patienceMs, "the engine is there");
    expect(await daemon.kill9()).toBeLessThan(guardMsMax);
  });

  test("SIGTERM: what runs finishes within the drain deadline, what waits is kept, nothing new is taken", async () => {
    const daemon = await startDaemon({ settings: { pools: [longPool] } });
    // Two run, one waits; all of them were accepted.
    const viewers: Viewer[] = [];
    for (const max_tokens of [700, 900, 100])
      viewers.push(await submitAndWatch(daemon, { ...long, max_tokens, on_disconnect: "continue" }));
    const [first, second, waiting] = viewers as [Viewer, Viewer, Viewer];
    await first.hasTokens(1);
    await second.hasTokens(1);
    daemon.signal("SIGTERM");
    await drains(daemon);
    const refused = await submit(daemon, long);
    expect(refused.status).toBe(503);
    expect(refused.body).toMatchObject({ code: "POOL_UNREADY", retriable: true });
    for (const viewer of [first, second]) expect((await viewer.finished()).outcome).toBe("length");
    expect(await daemon.exited).toBe(143);
    await daemon.assertNothingLeft();
    await isToldToReturn(waiting);
    expect(waiting.events).toEqual([]);

    const next = await startDaemon({ settings: { pools: [longPool] }, folder: daemon.folder });
    const rest = await (await watch(next, waiting.taskId)).finished();
    expect([rest.outcome, rest.terminal.data.tokens_out]).toEqual(["length", 100]);
    expect(await next.stop()).toBe(143);
  }, 30_000);

  test("SIGTERM: what runs longer is cut at the deadline, its viewers are told to come back", async () => {
    const shutdown = { drain_deadline_ms: 300 };
    const daemon = await startDaemon({ settings: { shutdown, pools: [longPool] } });
    const viewer = await submitAndWatch(daemon, long);
    const other = await watch(daemon, viewer.taskId, "?observe=1");
    await other.hasTokens(1);
    const fromMs = performance.now();
    expect(await daemon.stop()).toBe(143);
    expect(performance.now() - fromMs).toBeLessThan(10_000);
    for (const one of [viewer, other]) await isToldToReturn(one);
  }, 30_000);

  test("a second SIGTERM ends it at once", async () => {
    const daemon = await startDaemon({ settings: { pools: [longPool] } });
    const viewer = await submitAndWatch(daemon, long);
    await viewer.hasTokens(1);
    daemon.signal("SIGTERM");
    await drains(daemon);
    expect(viewer.ended).toBe(false);
    const fromMs = performance.now();
    expect(await daemon.stop()).toBe(143);
    expect(performance.now() - fromMs).toBeLessThan(2_000);
    await waitFor(() => viewer.ended, patienceMs, "the stream is closed");
  }, 30_000);
});

describe("a start that cannot be", () => {
  test("on a port in use, and on the state folder of another daemon: exit 1 that says why", async () => {
    const pools: Settings[] = [{ id: "words", engine: "mock", model: "mock:words" }];
    const first = await startDaemon({ settings: { pools } });
    const addr = new URL(first.url).host;
    const onPort = await runToEnd({ settings: { pools, addr } });
    expect(onPort.code).toBe(1);
    expect(onPort.stderr).toContain(`orchestratord: address in use: ${addr}; stop what listens there`);
    expect(onPort.stderr).not.toContain("    at ");

    const state_dir = join(first.folder, "state");
    const onState = await runToEnd({ settings: { pools, state_dir } });
    expect(onState.code).toBe(1);
    expect(onState.stderr).toContain(
      `orchestratord: another orchestratord (pid ${first.pid}) uses the state folder ${state_dir}`,
    );
    // The first one is none the worse for it.
    const viewer = await submitAndWatch(first, { prompt: "hello", max_tokens: 3 });
    expect((await viewer.finished()).terminal.type).toBe("end");
    expect(await first.stop()).toBe(143);
  }, 30_000);
});

/** Resolves when the daemon has heard the signal. */
const drains = (daemon: RunningDaemon) =>
  waitFor(async () => (await daemon.fetch("/readyz")).status === 503, patienceMs, "it drains");

/** Its stream was closed without a terminal event, behind the word when to try again (ORCHD-CLI-4). */
async function isToldToReturn(viewer: Viewer): Promise<void> {
  await waitFor(() => viewer.ended, patienceMs, "the stream is closed");
  expect(viewer.failure).toBeNull();
  expect(viewer.stream.sse.retryMs).toBe(1000);
  expect(viewer.events.filter(isTerminal)).toEqual([]);
}
