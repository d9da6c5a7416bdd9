/**
 * What the daemon alone costs: tasks accepted per second on the mock engine, RSS when idle, RSS with many idle
 * viewers. The client is a process of its own, so that the daemon's figures are the daemon's.
 */
import type { BenchFiles } from "./files.ts";
import { Connection } from "./http-client.ts";
import { rssBytes, startDaemon, untilReady } from "./processes.ts";
import { median, quantile } from "./statistics.ts";
import { daemonTarget } from "./targets.ts";

export interface LoadOptions extends BenchFiles {
  readonly rounds: number;
  readonly tasks: number;
  readonly clients: number;
  readonly viewers: number;
}

export interface LoadFigures {
  readonly acceptedPerSecond: number;
  readonly acceptedPerSecondMin: number;
  readonly acceptP50Ms: number;
  readonly acceptP99Ms: number;
  readonly clients: number;
  readonly rssIdleBytes: number;
  readonly viewers: number;
  readonly rssViewersBytes: number;
  readonly rssAddedByViewersBytes: number;
}

const generous = { rate: { per_second: 1_000_000, burst: 1_000_000 }, streams_per_key: 20_000 };
const mockPool = { id: "mock", engine: "mock", model: "mock:words", slots: 64, preload: true };

export async function measureLoad(options: LoadOptions): Promise<LoadFigures> {
  const accepted = await measureAccepted(options);
  const memory = await measureMemory(options);
  return { ...accepted, ...memory };
}

async function measureAccepted({ binary, rounds, tasks, clients }: LoadOptions) {
  const daemon = await startDaemon(binary, {
    limits: generous,
    pools: [{ ...mockPool, queue: { capacity: 1_000_000 }, mock: { token_ms: 0, prefill_ms_per_token: 0 } }],
  });
  try {
    await untilReady(daemon);
    const target = daemonTarget(daemon, "/v1/tasks", "application/json");
    const open = await Promise.all(Array.from({ length: clients }, () => Connection.open(target)));
    const rates: number[] = [];
    const latenciesMs: number[] = [];
    for (let round = -1; round < rounds; round++) {
      let left = tasks;
      const startedMs = performance.now();
      await Promise.all(
        open.map(async (connection) => {
          while (left-- > 0) {
            const sentMs = performance.now();
            const status = await connection.post(target, '{"prompt":"hello there","max_tokens":4}');
            if (round >= 0) latenciesMs.push(performance.now() - sentMs);
            if (status !== 202) throw new Error(`a task was answered with ${status}`);
          }
        }),
      );
      if (round >= 0) rates.push((tasks * 1000) / (performance.now() - startedMs));
    }
    for (const connection of open) connection.close();
    return {
      acceptedPerSecond: median(rates),
      acceptedPerSecondMin: Math.min(...rates),
      acceptP50Ms: median(latenciesMs),
      acceptP99Ms: quantile(latenciesMs, 0.99),
      clients,
    };
  } finally {
    await daemon.stop();
  }
}

async function measureMemory({ binary, engineBin, model, viewers }: LoadOptions) {
  const stalled = { token_ms: 0, prefill_ms_per_token: 0, faults: [{ kind: "stall" }] };
  const daemon = await startDaemon(binary, {
    limits: generous,
    engines: { llamacpp: { bin: engineBin } },
    shutdown: { drain_deadline_ms: 100 },
    pools: [
      { id: "real", engine: "llamacpp", model: `file:${model}`, slots: 4, ctx: 1024, preload: true },
      { ...mockPool, mock: stalled, timeouts: { first_token_ms: 600_000 } },
    ],
  });
  try {
    await untilReady(daemon);
    // Loaded and waiting: what it costs a machine that does something else.
    const rssIdleBytes = await settledRss(daemon.pid);
    const real = daemonTarget(daemon, "/v1/tasks", "text/event-stream");
    const one = await Connection.open(real);
    await one.stream(real, '{"prompt":"The harbour","max_tokens":64,"model_ref":"real"}');
    one.close();
    const made = await fetch(`http://${daemon.host}:${daemon.port}/v1/tasks`, {
      method: "POST",
      headers: { "X-API-Key": daemon.key, "Content-Type": "application/json" },
      body: '{"prompt":"wait","model_ref":"mock"}',
    });
    const { stream_url } = (await made.json()) as { stream_url: string };
    const watched = daemonTarget(daemon, stream_url, "text/event-stream");
    const rssBeforeBytes = await settledRss(daemon.pid);
    const open = await Promise.all(
      Array.from({ length: viewers }, async () => {
        const connection = await Connection.open(watched);
        const head = await connection.watch(watched);
        if (!head.startsWith("HTTP/1.1 200")) throw new Error(`no stream: ${head.slice(0, 200)}`);
        return connection;
      }),
    );
    const rssViewersBytes = await settledRss(daemon.pid);
    for (const connection of open) connection.close();
    return {
      rssIdleBytes,
      viewers,
      rssViewersBytes,
      rssAddedByViewersBytes: rssViewersBytes - rssBeforeBytes,
    };
  } finally {
    await daemon.stop();
  }
}

/** The daemon gives memory back after two quiet seconds: four are waited for. */
async function settledRss(pid: number): Promise<number> {
  await Bun.sleep(4_000);
  return rssBytes(pid);
}
