/**
 * A task that crashes its engine at each of its attempts, beside fifteen that are well, on the real engine (ORCHD-ATT-1,
 * ORCHD-ATT-3): it fails with what its attempts died of, the last of them alone, and the others end with the bytes of
 * an uncut run. The crash is a kill as soon as the task is seen to run, while its long prompt is read.
 */
import { afterEach, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { TaskViewBody } from "../../src/api/schema/tasks.ts";
import { endDaemons, enginePool, type RunningDaemon, startDaemon } from "../support/daemon.ts";
import { testModel } from "../support/engine.ts";
import { waitFor } from "../support/wait.ts";
import { health, type Json, patienceMs, submitAndWatch, type Viewer } from "./support.ts";

afterEach(endDaemons, 60_000);

const attempts = 3;
const others = 15;
const sampling: Json = { temperature: 0 };
const words = readFileSync(join(import.meta.dir, "../../scripts/model/corpus.txt"), "utf8").match(
  /[a-z]{2,}/g,
);
const prompts = ["The harbour", "Once upon a time", "Zoë said «"];

const theReplica = async (daemon: RunningDaemon) => (await health(daemon, "chat")).replicas[0];

/** Kills each engine on which the task runs, until the task has ended; says how many that were. */
async function crashEachEngine(daemon: RunningDaemon, poison: Viewer): Promise<number> {
  let killed: number | null = null;
  // The one that was killed may still be named, and be given tasks, until its end is noticed.
  const nextWithPoison = async (): Promise<number | null> => {
    const { pid = null } = (await theReplica(daemon)) ?? {};
    const { state } = await daemon.json<TaskViewBody>(`/v1/tasks/${poison.taskId}`);
    return state === "running" && pid !== killed ? pid : null;
  };
  for (let kills = 0; ; kills++) {
    const next = async () => (poison.ended ? "ended" : await nextWithPoison());
    const pid = await waitFor(next, patienceMs, `attempt on engine ${kills + 1}`);
    if (pid === "ended") return kills;
    process.kill(pid, "SIGKILL");
    killed = pid;
  }
}

test("a task that crashes every engine fails alone; fifteen others are none the worse for it", async () => {
  // Without an end token a task is as long as it was asked to be.
  const args = ["--ignore-eos", "-t", "1"];
  const daemon = await startDaemon({
    settings: {
      log: { level: "info" },
      restart: { backoff_ms: 20, backoff_max_ms: 100 },
      tasks: { max_attempts: attempts },
      pools: [enginePool("chat", testModel("demo"), { slots: others + 1, ctx: 4096, args })],
    },
  });
  const requests = prompts.map((prompt): Json => ({ prompt, max_tokens: 160, sampling }));
  const wholes: string[] = [];
  for (const request of requests)
    wholes.push((await (await submitAndWatch(daemon, request)).finished()).text);

  const good: Viewer[] = [];
  const fromMs = performance.now();
  for (let at = 0; at < others; at++)
    good.push(await submitAndWatch(daemon, requests[at % requests.length] as Json));
  for (const viewer of good) await viewer.hasTokens(1);
  const prompt = (words ?? []).join(" ");
  // Far more tokens than it can say before it is seen to run.
  const poison = await submitAndWatch(daemon, { prompt, max_tokens: 1_500, sampling });
  const kills = await crashEachEngine(daemon, poison);
  const failedMs = performance.now() - fromMs;
  // Not always as many as attempts: the next one may meet the dying engine, and one that said something is no loss.
  expect(kills).toBeGreaterThan(1);

  await poison.finished();
  expect(poison.outcome).toBe("WORKER_RESET");
  expect(poison.terminal.data).toMatchObject({ retriable: true });
  const view = await daemon.json<TaskViewBody>(`/v1/tasks/${poison.taskId}`);
  expect(view.state).toBe("failed");
  expect(view.attempts).toBeGreaterThanOrEqual(attempts);

  for (const [at, viewer] of good.entries()) {
    await viewer.finished();
    expect(viewer.outcome).toBe("length");
    expect(viewer.text).toBe(wholes[at % wholes.length] ?? "");
    expect(viewer.events.filter(({ type }) => type === "started")).toHaveLength(1);
  }
  const continuations = good.map(({ terminal }) => terminal.data.continuations);
  console.info(
    `poison: failed after ${Math.round(failedMs)} ms, all ended after ${Math.round(performance.now() - fromMs)} ms;`,
    `continuations of the others ${continuations}`,
  );
  expect(Math.max(...good.map(({ terminal }) => Number(terminal.data.continuations)))).toBeGreaterThan(0);
  const lines = await waitFor(
    () => daemon.lines.some(({ event }) => event === "task_failed") && daemon.lines,
    patienceMs,
    "the failure is in the log",
  );
  const last = lines.findLastIndex(
    ({ event, task_id }) => event === "task_started" && task_id === poison.taskId,
  );
  const cuts = lines.flatMap(({ event, task_id }, at) =>
    event === "task_requeued" ? [{ at, task_id }] : [],
  );
  // The last crash is the poisonous one's own.
  expect(cuts.filter(({ at }) => at > last)).toEqual([]);
  for (const { taskId, terminal } of good) {
    const seen = cuts.filter(({ task_id }) => task_id === taskId).length;
    expect(Number(terminal.data.continuations)).toBeLessThanOrEqual(seen);
  }

  // The engine is back.
  const next = await (await submitAndWatch(daemon, requests[0] as Json)).finished();
  expect(next.text).toBe(wholes[0] ?? "");
  expect(await theReplica(daemon)).toMatchObject({ restarts: kills, last_error: { cause: "crashed" } });
  expect(await daemon.stop()).toBe(143);
}, 90_000);
