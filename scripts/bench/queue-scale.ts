/**
 * What a long queue costs. First the daemon: CPU for each accepted task with few and with many waiting, and the memory
 * that they take. Then the scheduler alone, in this process: an admission with its promise, and a task that ends so that
 * the next one starts, with few and with many waiting. Ratios are the figures.
 *
 * `bun scripts/bench/queue-scale.ts --tasks 100000`; writes bench-results/queue-scale.json.
 */
import { admit, createScheduler, decide, type SchedulerState } from "../../src/domain/scheduler.ts";
import type { Lease, Command as SchedulerCommand } from "../../src/domain/scheduler-protocol.ts";
import { daemonBench, writeFigures } from "./files.ts";
import { Connection } from "./http-client.ts";
import { cpuUs, rssBytes, startDaemon } from "./processes.ts";
import { median } from "./statistics.ts";
import { daemonTarget } from "./targets.ts";

const options = daemonBench("queue-scale")
  .option("--tasks <n>", "tasks that wait in the end", "100000")
  .parse()
  .opts<{ tasks: string; binary: string }>();
const many = Number(options.tasks);
const few = 100;
const clients = 64;

async function measureDaemon() {
  const daemon = await startDaemon(options.binary, {
    limits: { rate: { per_second: 1_000_000, burst: 1_000_000 } },
    shutdown: { drain_deadline_ms: 100 },
    pools: [
      {
        id: "waits",
        engine: "mock",
        model: "mock:words",
        slots: 1,
        queue: { capacity: 1_000_000 },
        // The first task holds the only slot until it is canceled.
        mock: { token_ms: 0, prefill_ms_per_token: 0, faults: [{ kind: "stall", nth: 1 }] },
        timeouts: { first_token_ms: 3_600_000, inter_token_ms: 3_600_000 },
      },
    ],
  });
  try {
    const target = daemonTarget(daemon, "/v1/tasks", "application/json");
    const open = await Promise.all(Array.from({ length: clients }, () => Connection.open(target)));
    let sent = 0;
    const headers = { "X-API-Key": daemon.key, "Content-Type": "application/json" };
    const url = `http://${daemon.host}:${daemon.port}/v1`;
    const first = await fetch(`${url}/tasks`, {
      method: "POST",
      headers,
      body: '{"prompt":"holds the slot"}',
    });
    const { task_id } = (await first.json()) as { task_id: string };
    const done = async (): Promise<number> => {
      const health = (await (await fetch(`${url}/pools/waits/health`, { headers })).json()) as {
        metrics: { tasks_done: number };
      };
      return health.metrics.tasks_done;
    };
    /** CPU for each task that ends while the next one starts, from `from` ended ones on. */
    const drained = async (from: number, count: number): Promise<number> => {
      while ((await done()) < from) await Bun.sleep(20);
      const [began, beganUs] = [await done(), cpuUs(daemon.pid)];
      while ((await done()) < from + count) await Bun.sleep(20);
      const [ended, endedUs] = [await done(), cpuUs(daemon.pid)];
      return (endedUs - beganUs) / (ended - began);
    };
    const submit = async (count: number): Promise<number> => {
      const beganUs = cpuUs(daemon.pid);
      let left = count;
      await Promise.all(
        open.map(async (connection) => {
          while (left-- > 0) {
            const body = `{"prompt":"task ${sent++} of many that wait here","priority":"batch","max_tokens":1}`;
            const status = await connection.post(target, body);
            if (status !== 202) throw new Error(`a task was answered with ${status}`);
          }
        }),
      );
      return (cpuUs(daemon.pid) - beganUs) / count;
    };
    // What the runtime compiles first is not what is measured; those tasks wait too.
    await submit(8_000);
    await Bun.sleep(4_000);
    const rssBefore = rssBytes(daemon.pid);
    const waitingBefore = sent;
    const rounds = 5;
    const early: number[] = [];
    for (let n = 0; n < rounds; n++) early.push(await submit(2_000));
    await submit(many - sent - rounds * 2_000);
    const late: number[] = [];
    for (let n = 0; n < rounds; n++) late.push(await submit(2_000));
    await Bun.sleep(6_000);
    const added = rssBytes(daemon.pid) - rssBefore;
    for (const connection of open) connection.close();
    await fetch(`${url}/tasks/${task_id}/cancel`, { method: "POST", headers });
    // The first ones warm up what ends and starts.
    const deepUs = await drained(5_000, 10_000);
    const shallowUs = await drained(sent - 12_000, 10_000);
    const figures = {
      deepUs,
      shallowUs,
      drainRatio: deepUs / shallowUs,
      waitingEarly: waitingBefore,
      waitingLate: sent,
      earlyUs: median(early),
      lateUs: median(late),
      ratio: median(late) / median(early),
      bytesPerTask: added / (sent - waitingBefore),
      rssAddedBytes: added,
    };
    return figures;
  } finally {
    await daemon.stop();
  }
}

class Load {
  readonly state: SchedulerState;
  private readonly running: { taskId: string; lease: Lease }[] = [];
  private sent = 0;

  constructor(fair: "fifo" | "per-key") {
    this.state = createScheduler({ attemptsMax: 3, batchMaxWaitMs: 1e9, fair }, [
      { id: "p", capacity: 1e9, fullPolicy: "reject" },
    ]);
    const ready = { type: "replica_ready" as const, poolId: "p", replicaId: "p-0", incarnation: 1, slots: 4 };
    this.take(decide(this.state, ready, 0));
  }

  admit(): void {
    const n = this.sent++;
    const admission = admit(
      this.state,
      {
        taskId: `task-${n}`,
        poolId: "p",
        keyId: `key-${n % 8}`,
        sessionId: null,
        priority: n % 3 === 0 ? "batch" : "interactive",
        expectedMs: 50 + (n % 97),
        exclusive: false,
        prefix: [],
      },
      n,
    );
    if (admission.kind === "accepted") this.take(admission.commands);
  }

  /** One ends, the next starts. */
  end(): void {
    const first = this.running.shift();
    if (first === undefined) throw new Error("nothing runs");
    const { taskId, lease } = first;
    this.take(
      decide(
        this.state,
        {
          type: "attempt_ended",
          taskId,
          poolId: "p",
          lease,
          outcome: { kind: "finished" },
          slotFree: true,
        },
        this.sent,
      ),
    );
  }

  private take(commands: readonly SchedulerCommand[]): void {
    for (const command of commands)
      if (command.type === "start_attempt")
        this.running.push({ taskId: command.taskId, lease: command.lease });
  }
}

/** Microseconds for one admission and one end with the next start, the depth staying as it is. */
function cycleUs(load: Load, cycles: number): number {
  const beganNs = Bun.nanoseconds();
  for (let n = 0; n < cycles; n++) {
    load.admit();
    load.end();
  }
  return (Bun.nanoseconds() - beganNs) / cycles / 1000;
}

function measureScheduler(fair: "fifo" | "per-key") {
  const fewLoad = new Load(fair);
  const manyLoad = new Load(fair);
  for (let n = 0; n < few; n++) fewLoad.admit();
  for (let n = 0; n < many; n++) manyLoad.admit();
  const samples: { few: number[]; many: number[] } = { few: [], many: [] };
  for (let round = -3; round < 15; round++) {
    const one = cycleUs(fewLoad, 5_000);
    const other = cycleUs(manyLoad, 5_000);
    if (round < 0) continue;
    samples.few.push(one);
    samples.many.push(other);
  }
  const [fewUs, manyUs] = [median(samples.few), median(samples.many)];
  return { fair, few, many, fewUs, manyUs, ratio: manyUs / fewUs };
}

const daemon = await measureDaemon();
console.log(
  `daemon      CPU for an accepted task: ${daemon.earlyUs.toFixed(0)} us with ${daemon.waitingEarly} waiting, ` +
    `${daemon.lateUs.toFixed(0)} us with ${daemon.waitingLate}: ratio ${daemon.ratio.toFixed(2)}`,
);
console.log(
  `            CPU for an end and the next start: ${daemon.shallowUs.toFixed(0)} us with few waiting, ${daemon.deepUs.toFixed(0)} us with ${daemon.waitingLate - 10_000}: ratio ${daemon.drainRatio.toFixed(2)}`,
);
console.log(
  `memory      ${daemon.bytesPerTask.toFixed(0)} bytes a waiting task, ${((daemon.bytesPerTask * 100_000) / 1e6).toFixed(1)} MB for 100,000`,
);
const scheduler = [measureScheduler("fifo"), measureScheduler("per-key")];
for (const { fair, fewUs, manyUs, ratio } of scheduler)
  console.log(
    `scheduler   ${fair}: admission, end and next start ${fewUs.toFixed(2)} us with ${few} waiting, ${manyUs.toFixed(2)} us with ${many}: ratio ${ratio.toFixed(2)}`,
  );
writeFigures("queue-scale", { daemon, scheduler });
