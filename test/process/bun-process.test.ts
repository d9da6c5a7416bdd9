/** The process host with real processes: groups, pipes, exits, files, and what is left when a daemon dies. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import { BunProcessHost } from "../../src/infra/bun-process.ts";
import { killUntilGone, type ProcessEntry, readProcess } from "../../src/infra/process-table.ts";
import type { StartedProcess } from "../../src/ports/process.ts";
import { RecordingLog } from "../support/fakes-supervisor.ts";
import { argvOf, endIfRunning, isKnown, isRunning } from "../support/process-probe.ts";
import { waitFor } from "../support/wait.ts";

const stubborn = join(import.meta.dir, "../support/stubborn-child.ts");
const daemonLike = join(import.meta.dir, "../support/daemon-like.ts");

let runDir: string;
let host: BunProcessHost;
/** Everything a test learned of: ended afterwards, whatever the test did. */
let pids: number[];

beforeEach(() => {
  runDir = mkdtempSync(join(tmpdir(), "orchd-process-"));
  host = new BunProcessHost({ runDir, guardCommand: null, log: new RecordingLog() });
  pids = [];
});
afterEach(async () => {
  await host.close();
  const left = pids.filter(isRunning);
  for (const pid of left) endIfRunning(pid);
  rmSync(runDir, { recursive: true, force: true });
  expect(left).toEqual([]);
});

interface Child extends StartedProcess {
  readonly lines: string[];
}

function start(...words: string[]): Child {
  return startCommand([process.execPath, stubborn, ...words]);
}

function startCommand(command: string[], env: Record<string, string> = {}): Child {
  const lines: string[] = [];
  const child = host.start({ command, env, cwd: runDir, onLine: (line) => lines.push(line) });
  pids.push(child.pid);
  return { ...child, lines };
}

/** The pid that a line `NAME PID` tells. */
async function told(lines: readonly string[], name: string): Promise<number> {
  const line = await waitFor(() => lines.find((candidate) => candidate.startsWith(`${name} `)), 5_000, name);
  const pid = Number(line.split(" ")[1]);
  pids.push(pid);
  return pid;
}

/** What is still reachable. Resident memory also counts what a collector has not got round to yet. */
function heldBytes(): number {
  Bun.gc(true);
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

describe("a child", () => {
  test("leads its own group and session, gets exactly the environment it is given, and is reaped", async () => {
    const child = startCommand(["/usr/bin/env"], { ONLY: "this" });
    expect(await child.exited).toEqual({ code: 0, signal: null });
    expect(child.lines.filter((line) => !line.startsWith("ORCHD_CHILD_OF="))).toEqual(["ONLY=this"]);
    expect(isKnown(child.pid)).toBe(false);
    const sleeper = startCommand(["/bin/sleep", "100"]);
    expect(readProcess(sleeper.pid)).toMatchObject({
      group: sleeper.pid,
      session: sleeper.pid,
      startTicks: sleeper.startTicks,
    });
    sleeper.signalGroup("SIGTERM");
    expect(await sleeper.exited).toEqual({ code: null, signal: "SIGTERM" });
    // Gone: not an error, and not somebody else's pid.
    sleeper.signalGroup("SIGKILL");
  });

  test("its exit code and its last lines are told, in that order", async () => {
    const child = start("say=the_reason", "exit=3");
    expect(await child.exited).toEqual({ code: 3, signal: null });
    expect(child.lines).toEqual([`self ${child.pid}`, "the reason"]);
  });

  test("a program that is not there is an operating error that names it", () => {
    try {
      startCommand(["/nowhere/llama-server"]);
      expect.unreachable();
    } catch (error) {
      if (!isOrchestratorError(error)) throw error;
      expect(error.code).toBe("POOL_UNAVAILABLE");
      expect(error.message).toMatch(/\/nowhere\/llama-server.*ENOENT/);
    }
  });

  test("a flood on both pipes is drained, each line bounded, and memory is not", async () => {
    const before = heldBytes();
    let chars = 0;
    let lines = 0;
    const last = new Map<string, string>();
    const child = host.start({
      command: [process.execPath, stubborn, "flood=20000", "long-line=5000000", "exit=0"],
      env: {},
      cwd: runDir,
      onLine: (line, from) => {
        lines += 1;
        chars = Math.max(chars, line.length);
        last.set(from, line.slice(0, 10));
      },
    });
    pids.push(child.pid);
    expect(await child.exited).toEqual({ code: 0, signal: null });
    // 120 MB went through.
    expect(lines).toBe(40_000 + 3);
    expect(chars).toBe(limits.engineLogLineCharsMax);
    expect(last.get("stdout")).toBe("yyyyyyyyyy");
    expect(heldBytes() - before).toBeLessThan(10 * 1024 * 1024);
  });

  test("a line without its end is told when the pipe ends", async () => {
    const child = startCommand(["/bin/sh", "-c", "printf 'one\\r\\ntwo'; printf 'err' >&2"]);
    await child.exited;
    expect(child.lines.sort()).toEqual(["err", "one", "two"]);
  });
});

describe("its group", () => {
  test("SIGTERM is ignored by child and grandchild, SIGKILL ends both", async () => {
    const child = start("ignore-term", "grandchild");
    const grandchild = await told(child.lines, "grandchild");
    await waitFor(() => child.lines.filter((line) => line === "waiting").length === 2);
    child.signalGroup("SIGTERM");
    await waitFor(() => child.lines.filter((line) => line === "ignored SIGTERM").length === 2);
    expect([isRunning(child.pid), isRunning(grandchild)]).toEqual([true, true]);
    child.signalGroup("SIGKILL");
    expect(await child.exited).toEqual({ code: null, signal: "SIGKILL" });
    expect(isRunning(grandchild)).toBe(false);
  });

  test("what a child leaves in its group is gone when its exit is told", async () => {
    const child = start("grandchild", "exit=0");
    expect(await child.exited).toEqual({ code: 0, signal: null });
    expect(isRunning(await told(child.lines, "grandchild"))).toBe(false);
  });

  test("a grandchild that left the group and holds the pipe does not hold up the exit", async () => {
    const child = start("escape", "exit=7");
    expect(await child.exited).toEqual({ code: 7, signal: null });
    const escaped = await told(child.lines, "grandchild");
    expect(isRunning(escaped)).toBe(true);
    endIfRunning(escaped);
    await waitFor(() => !isRunning(escaped));
  });
});

/** As a daemon does it that starts now. */
const sweep = (): Promise<number> =>
  new BunProcessHost({ runDir, guardCommand: null, log: new RecordingLog() }).sweep();

describe("files", () => {
  test("secrets are for the owner only, and so is the folder", () => {
    const path = join(runDir, "deep/er/chat-0.key");
    host.writeSecret(path, "secret\n");
    expect(readFileSync(path, "utf8")).toBe("secret\n");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(statSync(join(runDir, "deep")).mode & 0o777).toBe(0o700);
    expect(statSync(runDir).mode & 0o777).toBe(0o700);
    expect(readdirSync(join(runDir, "deep/er"))).toEqual(["chat-0.key"]);
    host.removeFile(path);
    host.removeFile(path);
    expect(existsSync(path)).toBe(false);
  });

  test("a folder that cannot be written is an operating error", () => {
    writeFileSync(join(runDir, "file"), "");
    expect(() => host.writeSecret(join(runDir, "file/chat-0.key"), "x")).toThrow(
      "needs space and write permission",
    );
  });

  test("remember and forget leave nothing behind", async () => {
    const child = startCommand(["/bin/sleep", "100"]);
    host.remember({ ...child, replicaId: "chat-0" });
    const files = readdirSync(join(runDir, "children"));
    expect(files).toEqual([`${child.pid}.json`]);
    child.signalGroup("SIGKILL");
    await child.exited;
    host.forget(child.pid);
    expect(readdirSync(join(runDir, "children"))).toEqual([]);
  });
});

interface Daemon {
  readonly pid: number;
  readonly lines: string[];
  readonly exited: Promise<number>;
  tell(line: string): void;
  kill(signal: "SIGKILL"): void;
}

/** A process that owns children, to be killed. */
function startDaemon(...args: string[]): Daemon {
  const lines: string[] = [];
  const daemon = Bun.spawn([process.execPath, daemonLike, ...args], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  pids.push(daemon.pid);
  const read = async (): Promise<void> => {
    let open = "";
    const decoder = new TextDecoder();
    for await (const bytes of daemon.stdout) {
      open += decoder.decode(bytes, { stream: true });
      const parts = open.split("\n");
      open = parts.pop() ?? "";
      lines.push(...parts);
    }
  };
  void read();
  return {
    pid: daemon.pid,
    lines,
    exited: daemon.exited,
    tell: (line) => {
      daemon.stdin.write(`${line}\n`);
      daemon.stdin.flush();
    },
    kill: (signal) => daemon.kill(signal),
  };
}

/** The guard of a run folder, found by its command line. */
const guardsOf = (folder: string): number[] =>
  readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number)
    .filter((pid) => isRunning(pid) && namesGuardOf(pid, folder));

function namesGuardOf(pid: number, folder: string): boolean {
  try {
    const argv = argvOf(pid);
    return argv.includes("__guard") && argv.includes(folder);
  } catch {
    // Gone between the two looks.
    return false;
  }
}

describe("when the daemon is killed with SIGKILL", () => {
  for (const [name, args] of [
    ["a child that ignores signals", ["ignore-term"]],
    ["a grandchild in its group", ["ignore-term", "grandchild"]],
    ["a grandchild in a session of its own", ["ignore-term", "escape"]],
    ["a grandchild that shed its environment", ["ignore-term", "unmarked"]],
  ] as const) {
    test(`nothing survives it by 3 s: ${name}`, async () => {
      const daemon = startDaemon(runDir, ...args);
      const family = await familyOf(daemon, args.length);
      const guards = guardsOf(runDir);
      expect(guards.length).toBe(1);
      pids.push(...guards);
      daemon.kill("SIGKILL");
      await waitFor(() => ![...family, ...guards].some(isRunning), 3_000, "everything gone");
      expect(readdirSync(join(runDir, "children"))).toEqual([]);
    });
  }

  test("nothing survives it by 3 s: the rest of a group whose leader went before", async () => {
    const daemon = startDaemon(runDir, "ignore-term", "unmarked");
    const [leader, grandchild] = await familyOf(daemon, 2);
    await waitFor(() => guardsOf(runDir)[0]);
    await loseLeaderUnseen(daemon, leader);
    expect(isRunning(grandchild)).toBe(true);
    daemon.kill("SIGKILL");
    await waitFor(() => !isRunning(grandchild) && guardsOf(runDir).length === 0, 3_000);
  });

  test("nothing survives it by 3 s: a child that it had no time to remember", async () => {
    const daemon = startDaemon("--forgetful", runDir, "ignore-term", "grandchild");
    const family = await familyOf(daemon, 2);
    expect(existsSync(join(runDir, "children"))).toBe(false);
    daemon.kill("SIGKILL");
    await waitFor(() => !family.some(isRunning) && guardsOf(runDir).length === 0, 3_000);
  });

  test("the guard ignores the signals that a terminal or a service manager sends to everybody", async () => {
    const daemon = startDaemon(runDir, "ignore-term");
    const child = await told(daemon.lines, "self");
    await waitFor(() => daemon.lines.includes("waiting"));
    const guard = await waitFor(() => guardsOf(runDir)[0]);
    pids.push(guard);
    // In a session of its own, so that the terminal does not even send them; a service manager does.
    expect(readProcess(guard)).toMatchObject({ group: guard, session: guard });
    await waitFor(
      () => readFileSync(`/proc/${guard}/status`, "utf8").match(/^SigCgt:\s*([0-9a-f]+)/m)?.[1] ?? null,
    );
    await waitFor(() => catches(guard, 15) && catches(guard, 2) && catches(guard, 1));
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.kill(guard, signal);
    daemon.kill("SIGKILL");
    await waitFor(() => !isRunning(child) && !isRunning(guard), 3_000);
  });

  test("without a guard the next daemon's sweep ends what was left, and only that", async () => {
    const daemon = startDaemon("--no-guard", runDir, "ignore-term", "grandchild");
    const family = await familyOf(daemon, 2);
    // A second daemon by mistake, while the first one lives: hands off.
    expect(await sweep()).toBe(0);
    expect(family.every(isRunning)).toBe(true);
    daemon.kill("SIGKILL");
    await daemon.exited;
    expect(await sweep()).toBe(1);
    expect(family.some(isRunning)).toBe(false);
    expect(readdirSync(join(runDir, "children"))).toEqual([]);
    expect(await sweep()).toBe(0);
  });

  test("a sweep finds the rest of a group whose leader is gone", async () => {
    const daemon = startDaemon("--no-guard", runDir, "ignore-term", "unmarked");
    const [leader, grandchild] = await familyOf(daemon, 2);
    await loseLeaderUnseen(daemon, leader);
    daemon.kill("SIGKILL");
    await daemon.exited;
    expect(isRunning(grandchild)).toBe(true);
    expect(await sweep()).toBe(1);
    expect(isRunning(grandchild)).toBe(false);
  });
});

/** The pids of the stubborn child and, with two words, of its grandchild, once both wait for signals. */
async function familyOf(daemon: Daemon, words: number): Promise<[number, number]> {
  const leader = await told(daemon.lines, "self");
  const youngest = words > 1 ? await told(daemon.lines, "grandchild") : leader;
  const waiting = words > 1 ? 2 : 1;
  await waitFor(() => daemon.lines.filter((line) => line === "waiting").length === waiting);
  return [leader, youngest];
}

/** The leader of the group ends while the daemon is stopped, so that the daemon does not clean up after it. */
async function loseLeaderUnseen(daemon: Daemon, leader: number): Promise<void> {
  process.kill(daemon.pid, "SIGSTOP");
  process.kill(leader, "SIGKILL");
  await waitFor(() => !isRunning(leader));
}

/** The process catches this signal, says /proc. */
function catches(pid: number, signal: number): boolean {
  const mask = /^SigCgt:\s*([0-9a-f]+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "0";
  return (BigInt(`0x${mask}`) & (1n << BigInt(signal - 1))) !== 0n;
}

function rememberedAs(child: StartedProcess): string {
  host.remember({ ...child, replicaId: "chat-0" });
  return readFileSync(join(runDir, "children", `${child.pid}.json`), "utf8");
}

function writeChild(pid: number, content: unknown): void {
  mkdirSync(join(runDir, "children"), { recursive: true });
  const text = typeof content === "string" ? content : JSON.stringify(content);
  writeFileSync(join(runDir, "children", `${pid}.json`), text);
}

describe("what a sweep must not kill", () => {
  test("a process that got the remembered pid later, a child from before a reboot, or anything a torn file names", async () => {
    const bystander = startCommand(["/bin/sleep", "100"]);
    const remembered = JSON.parse(rememberedAs(bystander)) as { startTicks: string };
    const mark = `${runDir}#1.1`;
    const files: unknown[] = [
      { ...remembered, mark, startTicks: String(BigInt(remembered.startTicks) - 1n) },
      { ...remembered, mark, bootId: "another boot" },
      { ...remembered, mark, startTicks: "not a number" },
      { ...remembered, mark, pid: -1 },
      { ...remembered, mark, pid: 0 },
      '{"pid": ',
      "null",
      "",
    ];
    for (const file of files) {
      writeChild(bystander.pid, file);
      expect(await sweep()).toBe(0);
      expect(isRunning(bystander.pid)).toBe(true);
      expect(readdirSync(join(runDir, "children"))).toEqual([]);
    }
    bystander.signalGroup("SIGKILL");
    await bystander.exited;
  });
});

describe("looking for what is left", () => {
  test("is done more and more rarely", async () => {
    const notThere: ProcessEntry = { pid: process.pid, state: "R", group: 1, session: 1, startTicks: "-1" };
    let looks = 0;
    const find = () => {
      looks += 1;
      return [notThere];
    };
    expect(await killUntilGone(find, 1_000)).toBe(1);
    expect(looks).toBeGreaterThan(3);
    expect(looks).toBeLessThan(12);
  });

  test("goes on after a look that the system refused, and tells when it refuses to the end", async () => {
    const refusal = () => Object.assign(new Error("too many open files"), { code: "EMFILE" });
    let looks = 0;
    const find = () => {
      looks += 1;
      if (looks === 2) throw refusal();
      return [];
    };
    expect(await killUntilGone(find, 5_000)).toBe(0);
    expect(looks).toBe(4);
    const refused = killUntilGone(() => {
      throw refusal();
    }, 20);
    const outcome = await refused.catch((error: unknown) => String(error));
    expect(outcome).toBe("Error: too many open files");
  });

  test("without a free descriptor a child's exit is told all the same, and the trouble logged", async () => {
    const script = join(import.meta.dir, "../support/starved-host.ts");
    const starved = Bun.spawn([process.execPath, script, runDir], { stdout: "pipe", stderr: "inherit" });
    pids.push(starved.pid);
    expect(await new Response(starved.stdout).text()).toBe("SIGKILL process_group_not_ended EMFILE\n");
    expect(await starved.exited).toBe(0);
  });
});

describe("the guard", () => {
  test("is gone after an end in good order", async () => {
    const daemon = startDaemon(runDir, "ignore-term");
    await told(daemon.lines, "self");
    await waitFor(() => daemon.lines.includes("waiting"));
    const guard = await waitFor(() => guardsOf(runDir)[0]);
    daemon.tell("end");
    expect(await daemon.exited).toBe(0);
    expect(daemon.lines.at(-1)).toBe("ended SIGKILL");
    expect(isRunning(guard)).toBe(false);
  });

  test("is started again when somebody ends it", async () => {
    const daemon = startDaemon(runDir, "ignore-term");
    const child = await told(daemon.lines, "self");
    const first = await waitFor(() => guardsOf(runDir)[0]);
    process.kill(first, "SIGKILL");
    const second = await waitFor(() => guardsOf(runDir).find((pid) => pid !== first));
    pids.push(second);
    daemon.kill("SIGKILL");
    await waitFor(() => !isRunning(child) && !isRunning(second), 3_000);
  });
});
