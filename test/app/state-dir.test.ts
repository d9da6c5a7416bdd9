/**
 * The state folder and its lock: one daemon at a time, and a dead holder never in the way.
 */
import { afterAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
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
import { isStartError } from "../../src/app/start-error.ts";
import { openStateDir } from "../../src/app/state-dir.ts";

const root = mkdtempSync(join(tmpdir(), "orchd-state-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
const freshPath = (): string => join(root, String(folders++));
const failure = (path: string): string => {
  try {
    openStateDir(path).release();
  } catch (error) {
    if (isStartError(error)) return `${error.startErrorKind}: ${error.message}`;
    throw error;
  }
  return "none";
};

describe("the folder", () => {
  test("is made 0700, its parents with it", () => {
    const path = join(freshPath(), "a", "b");
    const dir = openStateDir(path);
    expect(statSync(path).mode & 0o777).toBe(0o700);
    expect(dir.warnings).toEqual([]);
    dir.release();
    expect(readdirSync(path)).toEqual([]);
  });

  test("where others can write is a warning", () => {
    const path = freshPath();
    mkdirSync(path);
    chmodSync(path, 0o777);
    const dir = openStateDir(path);
    expect(dir.warnings[0]).toContain("others can write to");
    dir.release();
  });

  test("that is a file, or below one, is an error with its code", () => {
    const path = freshPath();
    writeFileSync(path, "");
    expect(failure(path)).toStartWith(`state_dir: cannot use the state folder ${path} (E`);
    expect(failure(join(path, "x"))).toStartWith("state_dir: cannot use the state folder");
  });
});

describe("the lock", () => {
  test("keeps a second daemon out, and says who is there", () => {
    const path = freshPath();
    const dir = openStateDir(path);
    expect(failure(path)).toStartWith(
      `locked: another orchestratord (pid ${process.pid}) uses the state folder ${path}`,
    );
    expect(readdirSync(path)).toEqual(["lock"]);
    dir.release();
    dir.release();
    expect(failure(path)).toBe("none");
  });

  const dead: [string, string][] = [
    ["a process that is gone", "4194304 1 boot"],
    ["another process with the same pid", `${process.pid} 1 boot`],
    ["nobody", ""],
    ["rubbish", "../../x\n\u0000"],
  ];
  test.each(dead)("of %s is taken over", (_, holder) => {
    const path = freshPath();
    mkdirSync(path);
    writeFileSync(join(path, "lock"), holder);
    const dir = openStateDir(path);
    expect(readFileSync(join(path, "lock"), "utf8")).toStartWith(`${process.pid} `);
    dir.release();
    expect(readdirSync(path)).toEqual([]);
  });

  test("of a dead holder is taken over although another one died while it took it over", () => {
    const path = freshPath();
    mkdirSync(path);
    writeFileSync(join(path, "lock"), "4194304 1 boot");
    writeFileSync(join(path, "lock.dead-4194304-1-boot"), "4194303 1 boot");
    openStateDir(path).release();
    expect(readdirSync(path)).toEqual([]);
  });

  test("is not given back by one who does not have it any more", () => {
    const path = freshPath();
    const dir = openStateDir(path);
    writeFileSync(join(path, "lock"), "4194304 1 boot");
    dir.release();
    expect(readdirSync(path)).toEqual(["lock"]);
  });

  test("many daemons that find a dead holder's lock: one gets it", async () => {
    const path = freshPath();
    mkdirSync(path);
    writeFileSync(join(path, "lock"), "4194304 1 boot");
    const script = `
      import { openStateDir } from ${JSON.stringify(new URL("../../src/app/state-dir.ts", import.meta.url).pathname)};
      const input = Bun.stdin.stream().getReader();
      await input.read();
      try { openStateDir(${JSON.stringify(path)}); console.log("held"); } catch (error) { console.log(error.startErrorKind); }
      await input.read();
    `;
    const children = Array.from({ length: 6 }, () =>
      Bun.spawn([process.execPath, "-e", script], { stdin: "pipe", stdout: "pipe", stderr: "inherit" }),
    );
    for (const child of children) child.stdin.write("go\n");
    for (const child of children) child.stdin.flush();
    const answers = await Promise.all(
      children.map(async (child) => {
        const reader = child.stdout.getReader();
        const { value } = await reader.read();
        reader.releaseLock();
        return new TextDecoder().decode(value).trim();
      }),
    );
    for (const child of children) child.stdin.end();
    await Promise.all(children.map((child) => child.exited));
    expect(answers.toSorted()).toEqual(["held", "locked", "locked", "locked", "locked", "locked"]);
  });
});
