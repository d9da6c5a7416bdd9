/** The life of `serve`: banner and first key, signals and exit codes, one daemon per state folder. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folder = mkdtempSync(join(tmpdir(), "orchd-serve-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const script = new URL("../support/scripted-daemon.ts", import.meta.url).pathname;
let states = 0;

/** Everything that came from a stream, and when a text is in it. */
class Output {
  text = "";
  #changed: (() => void)[] = [];
  readonly ended: Promise<void>;

  constructor(stream: ReadableStream<Uint8Array>) {
    this.ended = this.#collect(stream);
  }

  async #collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      this.text += decoder.decode(chunk, { stream: true });
      for (const wake of this.#changed.splice(0)) wake();
    }
    for (const wake of this.#changed.splice(0)) wake();
  }

  async contains(part: string): Promise<void> {
    while (!this.text.includes(part)) {
      const more = new Promise<"more">((resolve) => this.#changed.push(() => resolve("more")));
      const what = await Promise.race([more, this.ended]);
      if (what !== "more" && !this.text.includes(part))
        throw new Error(`ended without ${part}:\n${this.text}`);
    }
  }
}

function start(behaviour: string, stateDir = join(folder, String(states++)), more: readonly string[] = []) {
  const args = ["--state-dir", stateDir, "--addr", "127.0.0.1:4321", ...more];
  const child = Bun.spawn([process.execPath, script, behaviour, ...args], {
    cwd: folder,
    env: { PATH: "/nowhere", HOME: folder },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr] = [new Output(child.stdout), new Output(child.stderr)];
  const ended = async (): Promise<number> => {
    await Promise.all([child.exited, stdout.ended, stderr.ended]);
    return child.exitCode ?? -1;
  };
  return { child, stdout, stderr, stateDir, ended };
}

const lockOf = (stateDir: string): boolean => existsSync(join(stateDir, "lock"));

describe("start", () => {
  test("banner and key on stderr, the key at the first start only, the lock back at the end", async () => {
    const first = start("plain");
    await first.stderr.contains("shown this once: ");
    const key = readFileSync(join(first.stateDir, "api-key"), "utf8").trim();
    expect(first.stderr.text).toContain(`shown this once: ${key}\n`);
    const banner = [
      "orchestratord 0.1.0 (dev)",
      "http://127.0.0.1:12345/metrics",
      "http://127.0.0.1:12345/docs",
    ];
    for (const part of [
      ...banner,
      first.stateDir,
      `key in ${first.stateDir}/api-key`,
      "demo: mock, mock:words, 8 slots",
      "--models-dir",
    ]) {
      expect(first.stderr.text).toContain(part);
    }
    expect(first.stdout.text).toBe("bootstrap demo keys=1\n");
    expect(lockOf(first.stateDir)).toBe(true);
    first.child.kill("SIGTERM");
    expect(await first.ended()).toBe(143);
    expect(first.stdout.text).toBe("bootstrap demo keys=1\nclose\n");
    expect(lockOf(first.stateDir)).toBe(false);

    const second = start("plain", first.stateDir);
    await second.stderr.contains("api-key");
    second.child.kill("SIGINT");
    expect(await second.ended()).toBe(130);
    expect(second.stderr.text).not.toContain(key);
  });

  test("SIGHUP has the configuration read again, with all that is wrong with it (ORCHD-CONF-1)", async () => {
    const file = join(folder, "hup.yaml");
    const pools = (id: string) => `pools: [{ id: ${id}, engine: mock, model: "mock:words" }]\n`;
    writeFileSync(file, pools("one"));
    const daemon = start("plain", undefined, ["--config", file]);
    await daemon.stderr.contains("shown this once");
    writeFileSync(file, pools("two"));
    daemon.child.kill("SIGHUP");
    await daemon.stdout.contains("reload SIGHUP two");
    writeFileSync(file, "pool: []\n");
    daemon.child.kill("SIGHUP");
    await daemon.stdout.contains(`reload SIGHUP ${file}:1:1: pool: unknown key; did you mean pools?`);
    rmSync(file);
    daemon.child.kill("SIGHUP");
    await daemon.stdout.contains("cannot read");
    daemon.child.kill("SIGTERM");
    expect(await daemon.ended()).toBe(143);
  });

  test("a second daemon on the same state folder is refused before it starts anything", async () => {
    const first = start("plain");
    await first.stderr.contains("shown this once");
    const second = start("plain", first.stateDir);
    expect(await second.ended()).toBe(1);
    expect(second.stderr.text).toStartWith(
      `orchestratord: another orchestratord (pid ${first.child.pid}) uses`,
    );
    expect(second.stdout.text).toBe("");
    first.child.kill("SIGKILL");
    await first.ended();
    const third = start("plain", first.stateDir);
    await third.stderr.contains("api-key");
    third.child.kill("SIGTERM");
    expect(await third.ended()).toBe(143);
  });

  test("an address in use is said so", async () => {
    const daemon = start("address");
    expect(await daemon.ended()).toBe(1);
    expect(daemon.stderr.text).toContain("orchestratord: address in use: 127.0.0.1:4321;");
    // It was the first start, the only one that shows the key.
    expect(daemon.stderr.text).toContain("shown this once: orchd_");
    expect(lockOf(daemon.stateDir)).toBe(false);
  });
});

describe("end", () => {
  test("a second signal does not wait for the drain", async () => {
    const daemon = start("drains");
    await daemon.stderr.contains("shown this once");
    daemon.child.kill("SIGTERM");
    await daemon.stdout.contains("close\n");
    daemon.child.kill("SIGINT");
    expect(await daemon.ended()).toBe(130);
    expect(daemon.stdout.text).toEndWith("close\ncloseNow\n");
  });

  test("nor for a start that hangs", async () => {
    const daemon = start("hangs");
    await daemon.stdout.contains("bootstrap");
    daemon.child.kill("SIGTERM");
    daemon.child.kill("SIGINT");
    expect([130, 143]).toContain(await daemon.ended());
    expect(lockOf(daemon.stateDir)).toBe(false);
  });

  test("what nobody caught ends it with 1 and its stack", async () => {
    const daemon = start("rejects");
    expect(await daemon.ended()).toBe(1);
    expect(daemon.stderr.text).toContain("unhandled_rejection: Error: nobody caught this");
    expect(daemon.stdout.text).toContain("closeNow");
    expect(lockOf(daemon.stateDir)).toBe(false);
  });

  test("so does a close that fails", async () => {
    const daemon = start("fails");
    await daemon.stderr.contains("shown this once");
    daemon.child.kill("SIGTERM");
    expect(await daemon.ended()).toBe(1);
    expect(daemon.stderr.text).toContain("close_failed: Error: cannot close");
  });
});
