/** The process host with real processes: groups, pipes, exits, files. What is left when a daemon dies is in orphans.test.ts. */
import { beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isOrchestratorError } from "../../src/domain/errors.ts";
import { limits } from "../../src/domain/limits.ts";
import type { BunProcessHost } from "../../src/infra/bun-process.ts";
import { killUntilGone, type ProcessEntry, readProcess } from "../../src/infra/process-table.ts";
import type { StartedProcess } from "../../src/ports/process.ts";
import { useProcessFolder } from "../support/process-folder.ts";
import { endIfRunning, isKnown, isRunning } from "../support/process-probe.ts";
import { waitFor } from "../support/wait.ts";

const stubborn = join(import.meta.dir, "../support/stubborn-child.ts");

const folder = useProcessFolder();
let host: BunProcessHost;
beforeEach(() => {
  host = folder.host();
});

interface Child extends StartedProcess {
  readonly lines: string[];
}

function start(...words: string[]): Child {
  return startCommand([process.execPath, stubborn, ...words]);
}

function startCommand(command: string[], env: Record<string, string> = {}): Child {
  const lines: string[] = [];
  const child = host.start({ command, env, cwd: folder.path, onLine: (line) => lines.push(line) });
  folder.pids.push(child.pid);
  return { ...child, lines };
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
      cwd: folder.path,
      onLine: (line, from) => {
        lines += 1;
        chars = Math.max(chars, line.length);
        last.set(from, line.slice(0, 10));
      },
    });
    folder.pids.push(child.pid);
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
    const grandchild = await folder.told(child.lines, "grandchild");
    await waitFor(() => child.lines.filter((line) => line === "waiting").length === 2);
    child.signalGroup("SIGTERM");
    await waitFor(() => child.lines.filter((line) => line === "ignored SIGTERM").length === 2);
    expect([isRunning(child.pid), isRunning(grandchild)]).toEqual([true, true]);
    child.signalGroup("SIGKILL");
    expect(await child.exited).toMatchObject({ code: null, signal: "SIGKILL" });
    expect(isRunning(grandchild)).toBe(false);
  });

  test("what a child leaves in its group is gone when its exit is told", async () => {
    const child = start("grandchild", "exit=0");
    expect(await child.exited).toEqual({ code: 0, signal: null });
    expect(isRunning(await folder.told(child.lines, "grandchild"))).toBe(false);
  });

  test("a grandchild that left the group and holds the pipe does not hold up the exit", async () => {
    const child = start("escape", "exit=7");
    expect(await child.exited).toEqual({ code: 7, signal: null });
    const escaped = await folder.told(child.lines, "grandchild");
    expect(isRunning(escaped)).toBe(true);
    endIfRunning(escaped);
    await waitFor(() => !isRunning(escaped));
  });
});

describe("files", () => {
  test("secrets are for the owner only, and so is the folder", () => {
    const path = join(folder.path, "deep/er/chat-0.key");
    host.writeSecret(path, "secret\n");
    expect(readFileSync(path, "utf8")).toBe("secret\n");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(statSync(join(folder.path, "deep")).mode & 0o777).toBe(0o700);
    expect(statSync(folder.path).mode & 0o777).toBe(0o700);
    expect(readdirSync(join(folder.path, "deep/er"))).toEqual(["chat-0.key"]);
    host.removeFile(path);
    host.removeFile(path);
    expect(existsSync(path)).toBe(false);
  });

  test("a folder that cannot be written is an operating error", () => {
    writeFileSync(join(folder.path, "file"), "");
    expect(() => host.writeSecret(join(folder.path, "file/chat-0.key"), "x")).toThrow(
      "needs space and write permission",
    );
  });

  test("remember and forget leave nothing behind", async () => {
    const child = startCommand(["/bin/sleep", "100"]);
    host.remember({ ...child, replicaId: "chat-0" });
    const files = readdirSync(join(folder.path, "children"));
    expect(files).toEqual([`${child.pid}.json`]);
    child.signalGroup("SIGKILL");
    await child.exited;
    host.forget(child.pid);
    expect(readdirSync(join(folder.path, "children"))).toEqual([]);
  });
});

function rememberedAs(child: StartedProcess): string {
  host.remember({ ...child, replicaId: "chat-0" });
  return readFileSync(join(folder.path, "children", `${child.pid}.json`), "utf8");
}

function writeChild(pid: number, content: unknown): void {
  mkdirSync(join(folder.path, "children"), { recursive: true });
  const text = typeof content === "string" ? content : JSON.stringify(content);
  writeFileSync(join(folder.path, "children", `${pid}.json`), text);
}

describe("what a sweep must not kill", () => {
  test("a process that got the remembered pid later, a child from before a reboot, or anything a torn file names", async () => {
    const bystander = startCommand(["/bin/sleep", "100"]);
    const remembered = JSON.parse(rememberedAs(bystander)) as { startTicks: string };
    const mark = `${folder.path}#1.1`;
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
      expect(await folder.sweep()).toBe(0);
      expect(isRunning(bystander.pid)).toBe(true);
      expect(readdirSync(join(folder.path, "children"))).toEqual([]);
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
    const starved = Bun.spawn([process.execPath, script, folder.path], { stdout: "pipe", stderr: "inherit" });
    folder.pids.push(starved.pid);
    expect(await new Response(starved.stdout).text()).toBe("SIGKILL process_group_not_ended EMFILE\n");
    expect(await starved.exited).toBe(0);
  });
});
