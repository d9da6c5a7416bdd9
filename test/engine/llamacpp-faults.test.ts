/**
 * The llama.cpp client against an engine that lies, and how soon the real one frees a slot after an abort.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readlinkSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { limits } from "../../src/domain/limits.ts";
import type { PoolSpec } from "../../src/domain/pool.ts";
import { LlamaCppAdapter } from "../../src/infra/engines/llamacpp.ts";
import { launch } from "../../src/infra/engines/llamacpp-launch.ts";
import { SlotWatch } from "../../src/infra/engines/slot-watch.ts";
import { EngineError, type EngineErrorKind, type SlotSnapshot } from "../../src/ports/engine.ts";
import {
  clock,
  entropy,
  failureOf,
  llamaPool,
  never,
  RecordingSink,
  request,
  type StartedWhen,
  startLlamaCpp,
  testModel,
  within,
} from "../support/engine.ts";
import { writeLyingServer } from "../support/lying-llama-server.ts";
import { VirtualClock } from "../support/virtual-clock.ts";
import { waitFor } from "../support/wait.ts";

const cleanups: (() => Promise<void> | void)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function startLying(lies: string, more: Partial<PoolSpec> = {}, until: StartedWhen = "healthy") {
  const folder = mkdtempSync(join(tmpdir(), "orchd-lying-"));
  cleanups.push(() => rmSync(folder, { recursive: true }));
  const engine = await startLlamaCpp(
    { engineBin: writeLyingServer(folder, lies), ctx: 2048, ...more },
    { until },
  );
  cleanups.push(engine.stop);
  return engine;
}

describe("a lying engine", () => {
  test("honest: it is good enough for the client to call it ready", async () => {
    const { client } = await startLying("");
    expect(await client.identity(never)).toMatchObject({
      engineVersion: "b0-lying",
      slots: 2,
      ctxPerSlot: 2048,
    });
    expect((await client.warmUp(never)).decodeTps).toBeGreaterThan(0);
    const sink = new RecordingSink();
    const result = await client.generate(request({ maxTokens: 5 }), sink, never);
    expect(sink.text).toBe(" word1 word2 word3 word4 word5");
    expect(result).toMatchObject({ finishReason: "length", tokensOut: 5, tokensIn: 5 });
    expect(await client.countTokens("abc", never)).toBe(4);
  });

  const lies: [lie: string, kind: string, pieces: number][] = [
    ["wrong-status=502", "protocol", 0],
    ["wrong-status=503", "unavailable", 0],
    ["not-http", "protocol", 0],
    ["error-frame", "context", 2],
    ["torn-frame", "connection", 2],
    ["early-end", "connection", 2],
    ["drop-mid-stream", "connection", 2],
    ["crash-mid-stream", "connection", 2],
    ["garbage", "protocol", 2],
    ["endless-frame", "protocol", 2],
  ];
  for (const [lie, kind, pieces] of lies) {
    test(`${lie} is told as ${kind}, never as a success`, async () => {
      const { client } = await startLying(lie);
      const sink = new RecordingSink();
      const call = client.generate(request(), sink, never);
      expect(await within(10_000, lie, failureOf(call))).toBe(kind);
      expect(sink.pieces).toHaveLength(pieces);
    });
  }

  test("a completion that hangs ends by its signal, and its slot is known free", async () => {
    const { client } = await startLying("hang-completion");
    const abort = new AbortController();
    const sink = new RecordingSink(() => abort.abort());
    expect(await within(5_000, "the abort", failureOf(client.generate(request(), sink, abort.signal)))).toBe(
      "aborted",
    );
    await within(1_000, "the slot is free", client.awaitSlotFree(0, never));
    expect(sink.prompts).toHaveLength(1);
  });

  test("without lines in its log, /slots tells that a slot is free", async () => {
    const { client } = await startLying("hang-completion,silent-logs,keep-slots");
    const abort = new AbortController();
    await failureOf(client.generate(request(), new RecordingSink(() => abort.abort()), abort.signal));
    await within(limits.slotPollMs * 2, "the slot is free", client.awaitSlotFree(0, never));
  });

  test("a wedged engine is healthy and answers nothing else; close ends the wait", async () => {
    const { client } = await startLying("wedge");
    expect(await client.health(never)).toBe("ok");
    const hanging = failureOf(client.slots(never));
    client.close();
    expect(await within(1_000, "the closed call", hanging)).toBe("aborted");
  });

  test("an engine that is open without its key is not accepted", async () => {
    const { client } = await startLying("open-slots");
    expect(await failureOf(client.identity(never))).toBe("protocol");
  });

  for (const lie of ["says-slots=0", "says-slots=1.5", "says-ctx=0", "says-ctx=-1"]) {
    test(`${lie} is no identity`, async () => {
      const { client } = await startLying(lie);
      expect(await failureOf(client.identity(never))).toBe("protocol");
    });
  }

  test("a connection that it keeps open after the final frame is closed from our side", async () => {
    const { client, pid } = await startLying("keep-open");
    const sockets = () =>
      readdirSync(`/proc/${pid}/fd`).filter((fd) => {
        try {
          return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith("socket:");
        } catch {
          // Closed between the two looks.
          return false;
        }
      }).length;
    await client.generate(request(), new RecordingSink(), never);
    const before = await waitFor(() => sockets());
    for (let i = 0; i < 20; i++) await client.generate(request(), new RecordingSink(), never);
    await waitFor(() => sockets() <= before, 5_000, "the connections are closed");
  });

  test("a dead one: a slot that was free before is not called free, and nothing reached it", async () => {
    const { client, pid, exited } = await startLying("");
    await client.generate(request(), new RecordingSink(), never);
    await client.awaitSlotFree(0, never);
    process.kill(-pid, "SIGKILL");
    await exited;
    expect(await failureOf(client.countTokens("x", never))).toBe("unreachable");
    expect(await within(5_000, "the wait ends", failureOf(client.awaitSlotFree(0, never)))).toBe(
      "unreachable",
    );
  });

  test("without a free descriptor the engine is unavailable, not gone", async () => {
    const script = join(import.meta.dir, "../support/starved-client.ts");
    const starved = Bun.spawn(["/bin/sh", "-c", 'ulimit -n 128; exec "$0" "$@"', process.execPath, script], {
      stdout: "pipe",
      stderr: "inherit",
    });
    expect(await new Response(starved.stdout).text()).toBe("unavailable\n");
    expect(await starved.exited).toBe(0);
  });

  test("while it loads, it says so", async () => {
    const { client } = await startLying("never-ready", {}, "listens");
    expect(await client.health(never)).toBe("loading");
    expect(await failureOf(client.generate(request(), new RecordingSink(), never))).toBe("unavailable");
    expect(await failureOf(client.identity(never))).toBe("unavailable");
  });
});

describe("launch plan", () => {
  const adapter = new LlamaCppAdapter({
    clock,
    entropy,
    log: { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined },
  });
  const pool = () =>
    llamaPool({
      engineBin: "/opt/llama-server",
      modelPath: testModel("demo"),
      args: ["--mlock"],
      env: { A: "b" },
    });

  test("keeps its key out of argv and environment, a new one for every start", () => {
    const [first, second] = [
      adapter.plan(pool(), "real-0", "/run/orchd"),
      adapter.plan(pool(), "real-0", "/run/orchd"),
    ];
    const key = first.secretFiles[0]?.content.trim() ?? "";
    expect(key.length).toBeGreaterThan(40);
    expect(JSON.stringify([first.command, first.env])).not.toContain(key);
    expect(second.secretFiles[0]?.content).not.toBe(first.secretFiles[0]?.content);
    expect(first.socketPaths).toEqual(["/run/orchd/real-0.sock"]);
    expect(first.command.at(-1)).toBe("--mlock");
    expect(first.env.A).toBe("b");
  });

  const input = (more: Partial<Parameters<typeof launch>[0]> = {}) => ({
    pool: pool(),
    replicaId: "real-0",
    runDir: "/run/orchd",
    header: null,
    env: {
      PATH: "/bin",
      ORCHD_KEY: "secret",
      LLAMA_ARG_PORT: "1",
      CUDA_VISIBLE_DEVICES: "0",
      AWS_SECRET: "x",
    },
    hardwareThreads: 8,
    accelerated: false,
    setpriv: null,
    ...more,
  });
  const flag = (command: readonly string[], name: string) => command[command.indexOf(name) + 1];

  test("the engine sees a part of the environment, and none of its own overrides", () => {
    expect(launch(input()).env).toEqual({
      PATH: "/bin",
      CUDA_VISIBLE_DEVICES: "0",
      GGML_NO_BACKTRACE: "1",
      A: "b",
    });
  });

  test("threads, batches and context follow the machine, the pool and the model", () => {
    const plain = launch(input()).command;
    expect([flag(plain, "-t"), flag(plain, "-b"), flag(plain, "-c"), flag(plain, "-np")]).toEqual([
      "7",
      "64",
      "8192",
      "2",
    ]);
    expect(flag(launch(input({ hardwareThreads: 1, accelerated: true })).command, "-t")).toBe("1");
    expect(flag(launch(input({ accelerated: true })).command, "-b")).toBe("512");
    const asked = launch(input({ pool: { ...pool(), args: ["--threads", "3"], slots: 100 } })).command;
    expect(asked).not.toContain("-t");
    expect(flag(asked, "-b")).toBe("100");
    expect(launch(input({ setpriv: "/usr/bin/setpriv" })).command.slice(0, 5)).toEqual([
      "/usr/bin/setpriv",
      "--pdeathsig",
      "SIGKILL",
      "--",
      "/opt/llama-server",
    ]);
  });

  test("one workload a process", () => {
    const of = (workloads: readonly ("completion" | "embedding" | "rerank")[]) =>
      launch(input({ pool: { ...pool(), workloads } }));
    expect(of(["embedding"]).command).toContain("--embeddings");
    expect(of(["rerank"]).command).toContain("--rerank");
    expect(of(["completion", "embedding"]).command).not.toContain("--embeddings");
  });

  test("a run folder too deep for a socket: loopback, at the port that the engine says", async () => {
    const deep = launch(input({ runDir: `/run/${"x".repeat(120)}` }));
    expect(deep.socketPath).toBeNull();
    expect(flag(deep.command, "--host")).toBe("127.0.0.1");
    const folder = mkdtempSync(join(tmpdir(), `orchd-${"y".repeat(90)}-`));
    cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
    const engine = await startLlamaCpp({ modelPath: testModel("demo") }, { runDir: join(folder, "run") });
    cleanups.push(engine.stop);
    expect(engine.plan.socketPaths).toEqual([]);
    const result = await engine.client.generate(request({ maxTokens: 2 }), new RecordingSink(), never);
    expect(result.tokensOut).toBe(2);
  });
});

describe("slot watch", () => {
  const line = (what: string, slot: number) => `{"msg":"slot ${what}: id  ${slot} | task 4 | and so on"}`;
  const start = (answers: (SlotSnapshot[] | EngineErrorKind)[]) => {
    const virtual = new VirtualClock();
    const polledMs: number[] = [];
    const watch = new SlotWatch(virtual, async () => {
      polledMs.push(virtual.nowMs());
      const answer = answers[polledMs.length - 1] ?? [];
      if (typeof answer === "string") throw new EngineError(answer, "scripted");
      return answer;
    });
    return { virtual, polledMs, watch };
  };
  const busy = (slot: number): SlotSnapshot => ({ slot, busy: true, tokensCached: 0 });
  const free = (slot: number): SlotSnapshot => ({ slot, busy: false, tokensCached: 0 });

  test("a release line frees at once, but not the one of the generation before", async () => {
    const { virtual, polledMs, watch } = start([]);
    watch.begin(0);
    watch.onLogLine(line("     release", 0));
    watch.onLogLine(line("launch_slot_", 0));
    let isFree = false;
    const waiting = watch.waitFree(0, never).then(() => {
      isFree = true;
    });
    watch.onLogLine(line("     release", 1));
    await virtual.advance(0);
    expect(isFree).toBe(false);
    watch.onLogLine(line("     release", 0));
    await waiting;
    await watch.waitFree(0, never);
    expect(polledMs).toEqual([]);
    expect(virtual.pendingTimers).toBe(0);
  });

  test("silence: one poll for all waiters, never two within the pace", async () => {
    const { virtual, polledMs, watch } = start([[busy(0), busy(1)], [free(0), busy(1)], [free(1)]]);
    watch.begin(0);
    watch.begin(1);
    const fromMs = virtual.nowMs();
    const first = watch.waitFree(0, never);
    const second = watch.waitFree(1, never);
    await virtual.advance(limits.slotPollMs * 3);
    await Promise.all([first, second]);
    const gaps = polledMs.map((atMs, i) => atMs - (polledMs[i - 1] ?? fromMs));
    expect(gaps).toHaveLength(3);
    expect(gaps.slice(1).every((gap) => gap >= limits.slotPollMs)).toBe(true);
    expect(virtual.pendingTimers).toBe(0);
  });

  test("in doubt neither memory nor a line frees a slot, only an answer", async () => {
    const { virtual, polledMs, watch } = start([[busy(0)], [free(0)]]);
    watch.begin(0);
    watch.onLogLine(line("launch_slot_", 0));
    watch.onLogLine(line("     release", 0));
    watch.doubt();
    let isFree = false;
    const waiting = watch.waitFree(0, never).then(() => {
      isFree = true;
    });
    watch.onLogLine(line("     release", 0));
    await virtual.advance(limits.slotPollMs / 2);
    expect([isFree, polledMs.length]).toEqual([false, 1]);
    await virtual.advance(limits.slotPollMs);
    await waiting;
    expect(polledMs).toHaveLength(2);
    expect(virtual.pendingTimers).toBe(0);
  });

  test.each([["unavailable"], ["timeout"], ["unreachable"]] as const)(
    "one poll that fails as %s is asked again",
    async (kind) => {
      const { virtual, polledMs, watch } = start([kind, [free(0)]]);
      watch.begin(0);
      const waiting = watch.waitFree(0, never);
      await virtual.advance(limits.slotPollMs * 2);
      await waiting;
      expect(polledMs).toHaveLength(2);
    },
  );

  test.each([
    ["connection", 1],
    ["unreachable", 2],
  ] as const)("%s is an engine that is gone, after %d polls", async (kind, polls) => {
    const { virtual, polledMs, watch } = start([kind, kind, kind]);
    watch.begin(0);
    const waiting = failureOf(watch.waitFree(0, never));
    await virtual.advance(limits.slotPollMs * 3);
    expect(await waiting).toBe(kind);
    expect(polledMs).toHaveLength(polls);
    expect(virtual.pendingTimers).toBe(0);
  });

  test("gives up in time, by its signal, and at the close", async () => {
    const { virtual, watch } = start(Array.from({ length: 100 }, () => [busy(0)]));
    watch.begin(0);
    const late = failureOf(watch.waitFree(0, never));
    await virtual.advance(limits.slotConfirmMsMax);
    expect(await late).toBe("timeout");
    const abort = new AbortController();
    const aborted = failureOf(watch.waitFree(0, abort.signal));
    abort.abort();
    expect(await aborted).toBe("aborted");
    const closed = failureOf(watch.waitFree(0, never));
    watch.close();
    expect(await closed).toBe("aborted");
    expect(virtual.pendingTimers).toBe(0);
  });
});

describe("the real engine: how soon a slot is free after an abort", () => {
  test("0.3 s while decoding, 1.5 s in the prompt phase, beside other work too", async () => {
    const engine = await startLlamaCpp({ modelPath: testModel("slow"), ctx: 2048 });
    cleanups.push(engine.stop);
    const { client } = engine;
    const prompt = "the small river runs to the old sea and ".repeat(30);

    async function freeAfterMs(
      options: Parameters<typeof request>[0],
      isTime: (sink: RecordingSink) => boolean,
    ) {
      const abort = new AbortController();
      let abortedMs = 0;
      const sink = new RecordingSink((now) => {
        if (abortedMs > 0 || !isTime(now)) return;
        abortedMs = clock.nowMs();
        abort.abort();
      });
      await failureOf(
        client.generate(request({ cachePrompt: false, maxTokens: 900, ...options }), sink, abort.signal),
      );
      await within(20_000, "the slot is free", client.awaitSlotFree(0, never));
      expect(abortedMs).toBeGreaterThan(0);
      return Math.round(clock.nowMs() - abortedMs);
    }
    // On a machine that other work slows down, what counts is the engine's own step: it looks for gone clients
    // between two batches of 64 prompt tokens, and at each decoded token.
    const round = async (name: string) => {
      const speed = await client.warmUp(never);
      const decoding = await freeAfterMs({}, (sink) => sink.pieces.length === 2);
      const reading = await freeAfterMs({ prompt }, (sink) => sink.prompts.length === 1);
      if (process.env.SHOW_LATENCIES !== undefined) console.info({ name, ...speed, decoding, reading });
      expect(decoding).toBeLessThan(Math.max(300, 8_000 / speed.decodeTps));
      expect(reading).toBeLessThan(Math.max(1_500, (4 * 64_000) / speed.prefillTps));
    };

    await round("alone");
    const other = new AbortController();
    const beside = failureOf(
      client.generate(request({ slot: 1, maxTokens: 1800 }), new RecordingSink(), other.signal),
    );
    await round("beside another stream");
    other.abort();
    expect(await beside).toBe("aborted");
  }, 60_000);

  test("its socket is in a folder of our own", async () => {
    const engine = await startLlamaCpp({ modelPath: testModel("demo") });
    cleanups.push(engine.stop);
    const folder = join(engine.plan.socketPaths[0] ?? "", "..");
    expect(statSync(folder).mode & 0o777).toBe(0o700);
  });
});
