/**
 * Why the real llama-server did not start, or ended, told apart from what it really writes (ORCHD-POOL-3): files that are
 * missing, cut or foreign, flags, memory that the system refuses, signals. What only a change can mend is not started
 * again before there is one. What graphics cards say is in test/domain/failure-cause.test.ts; a wedge in daemon-crash.test.ts.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PoolSpec, ReplicaSnapshot } from "../../src/domain/pool.ts";
import { BunProcessHost } from "../../src/infra/bun-process.ts";
import { LlamaCppAdapter } from "../../src/infra/engines/llamacpp.ts";
import { Supervisor } from "../../src/services/supervisor.ts";
import {
  clock,
  engineBin,
  entropy,
  failureOf,
  never,
  RecordingSink,
  request,
  testModel,
} from "../support/engine.ts";
import { RecordingListener, RecordingLog, RestartMetrics } from "../support/fakes-supervisor.ts";
import { poolSpec } from "../support/replicas.ts";
import { startRpcServer } from "../support/rpc-server.ts";
import { waitFor } from "../support/wait.ts";
import { patienceMs } from "./support.ts";

let folder: string;
let modelPath: string;
let supervisor: Supervisor;
let listener: RecordingListener;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "orchd-causes-"));
  modelPath = join(folder, "m.gguf");
  const runDir = join(folder, "run");
  listener = new RecordingListener();
  const log = new RecordingLog();
  supervisor = new Supervisor({
    clock,
    entropy,
    processes: new BunProcessHost({ runDir, guardCommand: null, log }),
    adapters: new Map([["llamacpp", new LlamaCppAdapter({ clock, entropy, log })]]),
    log,
    metrics: new RestartMetrics().asMetrics(),
    runDir,
    restart: { backoffMs: 20, backoffMaxMs: 100, breakerFailures: 2, breakerWindowMs: 600_000 },
  });
});
afterEach(async () => {
  supervisor.forceStop();
  await supervisor.stop();
  rmSync(folder, { recursive: true, force: true });
});

const replica = (): ReplicaSnapshot => {
  const [first] = supervisor.snapshots("chat");
  if (first === undefined) throw new Error("the pool has a replica");
  return first;
};
const until = (state: ReplicaSnapshot["state"], incarnation: number): Promise<ReplicaSnapshot> =>
  waitFor(
    () => (replica().state === state && replica().incarnation === incarnation ? replica() : null),
    patienceMs,
    `${state} of start ${incarnation}`,
  );

function begin(more: Partial<PoolSpec> = {}): void {
  const pool = poolSpec({
    ...{ id: "chat", engine: "llamacpp", modelRef: "file:m.gguf", modelPath, engineBin: engineBin() },
    ...{ slots: 1, ctx: 512 },
    timeouts: { loadMs: 30_000, firstTokenMs: 1_000, interTokenMs: 1_000, stopGraceMs: 1_000 },
    ...more,
  });
  supervisor.start([pool], listener);
}

/** The bytes of the small model with others in place of the first occurrence of some. */
function changed(from: string, to: string): Buffer {
  const bytes = readFileSync(testModel("demo"));
  const at = bytes.indexOf(from);
  if (at < 0 || from.length !== to.length) throw new Error(`${from} is not there`);
  bytes.write(to, at, "latin1");
  return bytes;
}
const architecture = (name: string): string => `general.architecture\u0008\0\0\0\u0005\0\0\0\0\0\0\0${name}`;

describe("a file", () => {
  const files: [name: string, write: () => void, cause: string, message: RegExp][] = [
    ["that is not there", () => undefined, "model_missing", /m\.gguf does not exist/],
    [
      "cut in its tensors",
      () => {
        copyFileSync(testModel("demo"), modelPath);
        truncateSync(modelPath, 300_000);
      },
      "model_corrupt",
      /not within the file bounds.*fetch it again/,
    ],
    [
      "cut in its header",
      () => {
        copyFileSync(testModel("demo"), modelPath);
        truncateSync(modelPath, 3_000);
      },
      "model_corrupt",
      /failed to read key-value pairs/,
    ],
    ["that is empty", () => writeFileSync(modelPath, ""), "model_corrupt", /failed to read magic/],
    [
      "of another kind",
      () => writeFileSync(modelPath, "hello world"),
      "model_corrupt",
      /invalid magic characters/,
    ],
    [
      "of an unknown architecture",
      () => writeFileSync(modelPath, changed(architecture("llama"), architecture("xlama"))),
      "model_corrupt",
      /unknown model architecture: 'xlama'/,
    ],
    [
      "of a later format",
      () => writeFileSync(modelPath, changed("GGUF\u0003", "GGUF\u0063")),
      "model_corrupt",
      /version 99.*newer build/,
    ],
  ];
  for (const [name, write, cause, message] of files) {
    test(`${name}: ${cause}, and a second start once it has changed`, async () => {
      write();
      begin();
      const first = await until("circuit_open", 1);
      expect(first.lastError?.cause).toBe(cause as never);
      expect(first.lastError?.message).toMatch(message);
      copyFileSync(testModel("demo"), `${modelPath}.part`);
      renameSync(`${modelPath}.part`, modelPath);
      await until("ready", 2);
    }, 60_000);
  }

  test("that a flag names and that is not there is the one that is told", async () => {
    const lora = join(folder, "style.gguf");
    begin({ modelPath: testModel("demo"), args: ["--lora", lora] });
    const { lastError } = await until("circuit_open", 1);
    expect(lastError?.cause).toBe("model_missing");
    expect(lastError?.message).toBe(
      `the file ${lora} does not exist: correct "args" of pool chat or put the file there`,
    );
  }, 60_000);
});

describe("a flag", () => {
  const flags: [args: string[], message: RegExp][] = [
    [["--frobnicate"], /does not know the flag --frobnicate: correct "args"/],
    [["--cache-type-k", "q9_9"], /value of --cache-type-k \(Unsupported cache type: q9_9\)/],
    [["--threads"], /value of --threads \(expected value for argument\)/],
    [["-fa", "off", "-ctv", "q4_0"], /quantized V cache requires flash_attn.*correct "args"/],
  ];
  for (const [args, message] of flags) {
    test(`${args.join(" ")}: bad_flag, at the first start`, async () => {
      begin({ modelPath: testModel("demo"), args });
      const { lastError } = await until("circuit_open", 1);
      expect(lastError?.cause).toBe("bad_flag");
      expect(lastError?.message).toMatch(message);
    }, 60_000);
  }

  test("a device that is not there is tried again: its driver may be late", async () => {
    begin({ modelPath: testModel("demo"), args: ["--device", "CUDA7"] });
    const { lastError } = await until("circuit_open", 2);
    expect(lastError?.cause).toBe("device_failed");
    expect(lastError?.message).toMatch(/has no device CUDA7.*--list-devices/);
  }, 60_000);

  test("a program that is not there is started once it is", async () => {
    const program = join(folder, "llama-server");
    begin({ modelPath: testModel("demo"), engineBin: program });
    expect((await until("circuit_open", 1)).lastError?.cause).toBe("spawn_failed");
    writeFileSync(program, `#!/bin/sh\nexec '${engineBin()}' "$@"\n`, { mode: 0o755 });
    await until("ready", 2);
  }, 60_000);
});

describe("memory that the system refuses", () => {
  /** The engine with so much address space. */
  const confined = (kib: number): string => {
    const program = join(folder, "llama-server");
    writeFileSync(program, `#!/bin/sh\nulimit -v ${kib}\nexec '${engineBin()}' "$@"\n`);
    chmodSync(program, 0o755);
    return program;
  };

  test("for the cache: out_of_host_memory, tried again until the breaker opens", async () => {
    begin({ modelPath: testModel("demo"), engineBin: confined(600_000), args: ["-c", "400000"] });
    const { lastError } = await until("circuit_open", 2);
    expect(lastError?.cause).toBe("out_of_host_memory");
    expect(lastError?.message).toMatch(
      /the machine ran out of memory .*: lower "ctx" or "slots" of pool chat/,
    );
  }, 60_000);

  test("for the file: out_of_host_memory, and no damaged model", async () => {
    begin({ modelPath: testModel("slow"), engineBin: confined(200_000) });
    const { lastError } = await until("circuit_open", 2);
    expect(lastError?.cause).toBe("out_of_host_memory");
    expect(lastError?.message).toMatch(/Cannot allocate memory/);
  }, 60_000);
});

describe("an rpc-server", () => {
  test("that is not there is unreachable, and asked again", async () => {
    const server = await startRpcServer();
    await server.kill();
    begin({ modelPath: testModel("demo"), rpc: [server.address] });
    const { lastError } = await until("circuit_open", 2);
    expect(lastError?.cause).toBe("unreachable");
    expect(lastError?.message).toBe(
      `the rpc-server ${server.address} does not answer: start it, or correct "rpc" of pool chat`,
    );
  }, 60_000);

  test("that dies takes the engine with it, and is named", async () => {
    const server = await startRpcServer();
    try {
      begin({ modelPath: testModel("demo"), rpc: [server.address] });
      await until("ready", 1);
      await server.kill();
      const [ready] = listener.ready;
      if (ready === undefined) throw new Error("it was told ready");
      // What it answers with: the engine is gone in the middle of this.
      await failureOf(ready.client.generate(request(), new RecordingSink(), never));
      const { lastError } = await waitFor(
        () => (replica().lastError === null ? null : replica()),
        patienceMs,
      );
      expect(lastError).toMatchObject({ cause: "unreachable", signal: "SIGABRT" });
      expect(lastError?.message).toContain(server.address);
    } finally {
      await server.kill();
    }
  }, 60_000);
});

describe("a signal from outside", () => {
  for (const [signal, message] of [
    ["SIGSEGV", /SIGSEGV while it was serving \(a fault of its own/],
    ["SIGKILL", /killed from outside by SIGKILL while it was serving/],
    ["SIGABRT", /SIGABRT while it was serving/],
  ] as const) {
    test(`${signal} is a crash; the next start comes after the backoff`, async () => {
      begin({ modelPath: testModel("demo") });
      const { pid } = await until("ready", 1);
      if (pid === null) throw new Error("it has a process");
      process.kill(pid, signal);
      const { lastError, restarts } = await until("ready", 2);
      expect(lastError).toMatchObject({ cause: "crashed", signal, exitCode: null });
      expect(lastError?.message).toMatch(message);
      expect(restarts).toBe(1);
    }, 60_000);
  }
});
