/**
 * Starts engines for tests that need a client and no supervisor: a LaunchPlan run by Bun.spawn, both pipes
 * drained into the client, the group killed and awaited at the end. Also the bounded wait that every such test
 * uses: it fails by time, it never sleeps.
 */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { PoolSpec } from "../../src/domain/pool.ts";
import type { Sampling, Workload } from "../../src/domain/task.ts";
import { LlamaCppAdapter } from "../../src/infra/engines/llamacpp.ts";
import { SystemClock, SystemEntropy } from "../../src/infra/system-clock.ts";
import type { EngineClient, GenerateRequest, GenerateSink, LaunchPlan } from "../../src/ports/engine.ts";
import { poolSpec } from "./replicas.ts";

const root = resolve(import.meta.dir, "../..");

/** The real engine; a test that needs it fails without it, it is never skipped. */
export function engineBin(): string {
  return setUp(process.env.ORCHD_LLAMA_SERVER ?? join(root, ".engine/bin/llama-server"));
}

export type TestModel = "demo" | "slow" | "embedding" | "rerank";

export function testModel(name: TestModel): string {
  const folder = process.env.TEST_MODELS_DIR;
  if (folder !== undefined) return setUp(join(folder, `${name}.gguf`));
  return setUp(join(root, name === "demo" ? ".engine/models/demo.gguf" : `.engine/test-models/${name}.gguf`));
}

function setUp(path: string): string {
  if (!existsSync(path)) throw new Error(`${path} is missing: run \`npm run setup\``);
  return path;
}

export const clock = new SystemClock();
export const entropy = new SystemEntropy();
const silentLog = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
};

/** A signal that nobody raises. */
export const never = new AbortController().signal;

/** Fails when `promise` has not settled in `ms`; leaves no timer behind. */
export async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  let late: (() => void) | undefined;
  const timeout = new Promise<never>((_, reject) => {
    const timer = clock.setTimer(ms, () => reject(new Error(`${what}: not within ${ms} ms`)));
    late = () => timer.cancel();
  });
  try {
    return await Promise.race([promise, timeout]);
  } finally {
    late?.();
  }
}

export interface StartedEngine {
  readonly client: EngineClient;
  readonly plan: LaunchPlan;
  readonly pid: number;
  readonly lines: readonly string[];
  readonly exited: Promise<number>;
  /** Closes the client, kills the process group, awaits its end, removes its folder. Idempotent. */
  stop(): Promise<void>;
}

export const llamaPool = (more: Partial<PoolSpec>): PoolSpec =>
  poolSpec({ id: "real", engine: "llamacpp", modelRef: "file:demo.gguf", slots: 2, ctx: null, ...more });

/** healthy: it takes requests. listens: it answers, and may still be loading. */
export type StartedWhen = "healthy" | "listens";

export interface StartOptions {
  readonly until?: StartedWhen;
  /** Made and removed by this helper; default: a new one under the system's temporary folder. */
  readonly runDir?: string;
}

const startMsMax = 20_000;

/** Starts the pool's engine by the real adapter's plan and waits for it. */
export async function startLlamaCpp(
  more: Partial<PoolSpec> = {},
  options: StartOptions = {},
): Promise<StartedEngine> {
  const pool = llamaPool({
    engineBin: more.engineBin ?? engineBin(),
    modelPath: more.modelPath ?? testModel("demo"),
    ...more,
  });
  const runDir = options.runDir ?? mkdtempSync(join(tmpdir(), "orchd-engine-"));
  mkdirSync(runDir, { recursive: true });
  chmodSync(runDir, 0o700);
  const adapter = new LlamaCppAdapter({ clock, entropy, log: silentLog });
  const engine = startPlan(adapter.plan(pool, `${pool.id}-0`, runDir), runDir);
  try {
    await within(startMsMax, "the engine is there", answering(engine, options.until ?? "healthy"));
  } catch (error) {
    await engine.stop();
    throw new Error(`the engine did not start: ${String(error)}\n${engine.lines.slice(-20).join("\n")}`);
  }
  return engine;
}

export interface StartedServer {
  /** With the path of its OpenAI API. */
  readonly url: string;
  /** SIGKILL; resolves once it is reaped. Idempotent. */
  kill(): Promise<void>;
  stop(): Promise<void>;
}

/** A llama-server that nobody supervises, on a free port of this machine: for tests that take it for one elsewhere. */
export async function startLlamaServer(
  modelPath: string,
  workload: Workload,
  key: string,
  port = 0,
): Promise<StartedServer> {
  const runDir = mkdtempSync(join(tmpdir(), "orchd-server-"));
  const keyPath = join(runDir, "key");
  writeFileSync(keyPath, `${key}\n`, { mode: 0o600 });
  const slots = workload === "completion" ? 2 : 1;
  const flags = {
    completion: ["-b", "64"],
    embedding: ["--embeddings", "--pooling", "mean"],
    rerank: ["--rerank"],
  };
  const child = Bun.spawn(
    [
      ...[
        engineBin(),
        "-m",
        modelPath,
        "--host",
        "127.0.0.1",
        "--port",
        String(port),
        "--api-key-file",
        keyPath,
      ],
      ...[
        "--no-ui",
        "--offline",
        "-np",
        String(slots),
        "--no-kv-unified",
        "-c",
        String(slots * 2048),
        "-t",
        "1",
      ],
      ...flags[workload],
    ],
    { cwd: runDir, stdin: "ignore", stdout: "pipe", stderr: "pipe", detached: true },
  );
  const listens = Promise.withResolvers<string>();
  const onLine = (line: string) => {
    const match = /listening on (http:\/\/[\d.]+:\d+)/.exec(line);
    if (match?.[1] !== undefined) listens.resolve(match[1]);
  };
  const drained = Promise.all([drain(child.stdout, onLine), drain(child.stderr, onLine)]);
  const kill = async () => {
    child.kill("SIGKILL");
    await child.exited;
    await drained;
  };
  const stop = async () => {
    await kill();
    rmSync(runDir, { recursive: true, force: true });
  };
  try {
    const origin = await within(startMsMax, "the server listens", listens.promise);
    await within(startMsMax, "the server is healthy", healthy(origin));
    return { url: `${origin}/v1`, kill, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function healthy(origin: string): Promise<void> {
  while (!(await fetch(`${origin}/health`)).ok) await new Promise<void>((done) => clock.setTimer(10, done));
}

function startPlan(plan: LaunchPlan, runDir: string): StartedEngine {
  for (const file of plan.secretFiles) {
    mkdirSync(resolve(file.path, ".."), { recursive: true, mode: 0o700 });
    writeFileSync(file.path, file.content, { mode: 0o600 });
  }
  const child = Bun.spawn([...plan.command], {
    cwd: runDir,
    env: plan.env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    detached: true,
  });
  const client = plan.connect();
  const lines: string[] = [];
  const onLine = (line: string) => {
    lines.push(line);
    client.onLogLine(line);
  };
  const drained = Promise.all([drain(child.stdout, onLine), drain(child.stderr, onLine)]);
  let stopping: Promise<void> | null = null;
  const stop = async () => {
    client.close();
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch (error) {
      if ((error as { code?: string }).code !== "ESRCH") throw error;
    }
    await child.exited;
    await drained;
    rmSync(runDir, { recursive: true, force: true });
  };
  return {
    client,
    plan,
    pid: child.pid,
    lines,
    exited: child.exited,
    stop: () => {
      stopping ??= stop();
      return stopping;
    },
  };
}

async function answering(engine: StartedEngine, until: StartedWhen): Promise<void> {
  for (;;) {
    const health = await engine.client.health(never).catch(() => "unreachable");
    if (health === "ok" || (health === "loading" && until === "listens")) return;
    const ended = engine.exited.then(() => true);
    const pause = new Promise<boolean>((done) => clock.setTimer(10, () => done(false)));
    if (await Promise.race([ended, pause])) throw new Error("the engine ended");
  }
}

async function drain(pipe: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of pipe) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) onLine(line);
  }
}

const greedy: Sampling = {
  temperature: 0,
  topP: 0.95,
  topK: 40,
  minP: 0.05,
  repeatPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  stop: [],
  grammar: null,
  jsonSchema: null,
};

export type RequestOptions = Partial<Omit<GenerateRequest, "sampling">> & {
  readonly sampling?: Partial<Sampling>;
};

export const request = ({ sampling, ...more }: RequestOptions = {}): GenerateRequest => ({
  prompt: "Once upon a time",
  maxTokens: 16,
  seed: 7,
  cachePrompt: true,
  slot: 0,
  ...more,
  sampling: { ...greedy, ...sampling },
});

/** A sink that remembers everything and calls back on each event. */
export class RecordingSink implements GenerateSink {
  readonly pieces: string[] = [];
  readonly ids: number[][] = [];
  readonly prompts: [total: number, cached: number, done: number][] = [];
  readonly #onEvent: (sink: RecordingSink) => void;

  constructor(onEvent: (sink: RecordingSink) => void = () => undefined) {
    this.#onEvent = onEvent;
  }

  get text(): string {
    return this.pieces.join("");
  }

  get events(): number {
    return this.pieces.length + this.prompts.length;
  }

  onPrompt(total: number, cached: number, done: number): void {
    this.prompts.push([total, cached, done]);
    this.#onEvent(this);
  }

  onToken(text: string, ids: readonly number[]): void {
    this.pieces.push(text);
    this.ids.push([...ids]);
    this.#onEvent(this);
  }
}

/** The kind of the EngineError that a call must fail with. */
export async function failureOf(call: Promise<unknown>): Promise<string> {
  const outcome = await call.then(
    () => "it succeeded",
    (error: unknown) =>
      (error as { engineErrorKind?: string }).engineErrorKind ?? `not an EngineError: ${String(error)}`,
  );
  return outcome;
}
