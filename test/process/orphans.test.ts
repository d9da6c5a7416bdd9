/** What is left when a daemon dies, with real processes: the guard, and the sweep of the next start. */
import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { readProcess } from "../../src/infra/process-table.ts";
import { useProcessFolder } from "../support/process-folder.ts";
import { argvOf, isRunning } from "../support/process-probe.ts";
import { waitFor } from "../support/wait.ts";

const daemonLike = join(import.meta.dir, "../support/daemon-like.ts");
const folder = useProcessFolder();

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
  folder.pids.push(daemon.pid);
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
const guardsOf = (runDir: string): number[] =>
  readdirSync("/proc")
    .filter((name) => /^[0-9]+$/.test(name))
    .map(Number)
    .filter((pid) => isRunning(pid) && namesGuardOf(pid, runDir));

function namesGuardOf(pid: number, runDir: string): boolean {
  try {
    const argv = argvOf(pid);
    return argv.includes("__guard") && argv.includes(runDir);
  } catch {
    // Gone between the two looks.
    return false;
  }
}

/** The pids of the stubborn child and, with two words, of its grandchild, once both wait for signals. */
async function familyOf(daemon: Daemon, words: number): Promise<[number, number]> {
  const leader = await folder.told(daemon.lines, "self");
  const youngest = words > 1 ? await folder.told(daemon.lines, "grandchild") : leader;
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

describe("when the daemon is killed with SIGKILL", () => {
  for (const [name, args] of [
    ["a child that ignores signals", ["ignore-term"]],
    ["a grandchild in its group", ["ignore-term", "grandchild"]],
    ["a grandchild in a session of its own", ["ignore-term", "escape"]],
    ["a grandchild that shed its environment", ["ignore-term", "unmarked"]],
  ] as const) {
    test(`nothing survives it by 3 s: ${name}`, async () => {
      const daemon = startDaemon(folder.path, ...args);
      const family = await familyOf(daemon, args.length);
      const guards = guardsOf(folder.path);
      expect(guards.length).toBe(1);
      folder.pids.push(...guards);
      daemon.kill("SIGKILL");
      await waitFor(() => ![...family, ...guards].some(isRunning), 3_000, "everything gone");
      expect(readdirSync(join(folder.path, "children"))).toEqual([]);
    });
  }

  test("nothing survives it by 3 s: the rest of a group whose leader went before", async () => {
    const daemon = startDaemon(folder.path, "ignore-term", "unmarked");
    const [leader, grandchild] = await familyOf(daemon, 2);
    await waitFor(() => guardsOf(folder.path)[0]);
    await loseLeaderUnseen(daemon, leader);
    expect(isRunning(grandchild)).toBe(true);
    daemon.kill("SIGKILL");
    await waitFor(() => !isRunning(grandchild) && guardsOf(folder.path).length === 0, 3_000);
  });

  test("nothing survives it by 3 s: a child that it had no time to remember", async () => {
    const daemon = startDaemon("--forgetful", folder.path, "ignore-term", "grandchild");
    const family = await familyOf(daemon, 2);
    expect(existsSync(join(folder.path, "children"))).toBe(false);
    daemon.kill("SIGKILL");
    await waitFor(() => !family.some(isRunning) && guardsOf(folder.path).length === 0, 3_000);
  });

  test("the guard ignores the signals that a terminal or a service manager sends to everybody", async () => {
    const daemon = startDaemon(folder.path, "ignore-term");
    const child = await folder.told(daemon.lines, "self");
    await waitFor(() => daemon.lines.includes("waiting"));
    const guard = await waitFor(() => guardsOf(folder.path)[0]);
    folder.pids.push(guard);
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
    const daemon = startDaemon("--no-guard", folder.path, "ignore-term", "grandchild");
    const family = await familyOf(daemon, 2);
    // A second daemon by mistake, while the first one lives: hands off.
    expect(await folder.sweep()).toBe(0);
    expect(family.every(isRunning)).toBe(true);
    daemon.kill("SIGKILL");
    await daemon.exited;
    expect(await folder.sweep()).toBe(1);
    expect(family.some(isRunning)).toBe(false);
    expect(readdirSync(join(folder.path, "children"))).toEqual([]);
    expect(await folder.sweep()).toBe(0);
  });

  test("a sweep finds the rest of a group whose leader is gone", async () => {
    const daemon = startDaemon("--no-guard", folder.path, "ignore-term", "unmarked");
    const [leader, grandchild] = await familyOf(daemon, 2);
    await loseLeaderUnseen(daemon, leader);
    daemon.kill("SIGKILL");
    await daemon.exited;
    expect(isRunning(grandchild)).toBe(true);
    expect(await folder.sweep()).toBe(1);
    expect(isRunning(grandchild)).toBe(false);
  });
});

describe("the guard", () => {
  test("is gone after an end in good order", async () => {
    const daemon = startDaemon(folder.path, "ignore-term");
    await folder.told(daemon.lines, "self");
    await waitFor(() => daemon.lines.includes("waiting"));
    const guard = await waitFor(() => guardsOf(folder.path)[0]);
    daemon.tell("end");
    expect(await daemon.exited).toBe(0);
    expect(daemon.lines.at(-1)).toBe("ended SIGKILL");
    expect(isRunning(guard)).toBe(false);
  });

  test("is started again when somebody ends it", async () => {
    const daemon = startDaemon(folder.path, "ignore-term");
    const child = await folder.told(daemon.lines, "self");
    const first = await waitFor(() => guardsOf(folder.path)[0]);
    process.kill(first, "SIGKILL");
    const second = await waitFor(() => guardsOf(folder.path).find((pid) => pid !== first));
    folder.pids.push(second);
    daemon.kill("SIGKILL");
    await waitFor(() => !isRunning(child) && !isRunning(second), 3_000);
  });
});
