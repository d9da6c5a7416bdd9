/** The file-watch port on real folders: what changes is told by the system, not found by looking. */
import { afterEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FolderFileWatch } from "../../src/infra/file-watch.ts";
import type { Following } from "../../src/ports/file-watch.ts";
import { waitFor } from "../support/wait.ts";

const folders: string[] = [];
const followings: Following[] = [];
afterEach(() => {
  for (const following of followings.splice(0)) following.close();
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true, force: true });
});

function newFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "orchd-watch-"));
  folders.push(folder);
  return folder;
}
function follow(file: string | null, modelsDir: string | null = null) {
  let stirs = 0;
  const following = new FolderFileWatch().follow({ file, modelsDir }, () => {
    stirs++;
  });
  followings.push(following);
  /** Something is told after this. */
  const stirred = async (work: () => void): Promise<void> => {
    const before = stirs;
    work();
    await waitFor(() => stirs > before, 2_000, "the system tells of it");
  };
  return { following, stirred, stirs: () => stirs };
}

test("a file that is written, replaced, removed and put back is told of, and prints otherwise", async () => {
  const file = join(newFolder(), "config.yaml");
  writeFileSync(file, "a: 1\n");
  const { following, stirred } = follow(file);
  const prints = [following.print()];
  const note = () => prints.push(following.print());
  await stirred(() => writeFileSync(file, "a: 2\n"));
  note();
  await stirred(() => {
    writeFileSync(`${file}~`, "a: 3\n");
    renameSync(`${file}~`, file);
  });
  note();
  await stirred(() => unlinkSync(file));
  note();
  await stirred(() => writeFileSync(file, "a: 1\n"));
  note();
  expect(new Set(prints).size).toBe(4);
  expect(prints.at(-1)).toBe(prints[0] ?? "");
});

test("a link that is led elsewhere is told of, and so is a change where it leads to", async () => {
  const [folder, mounted] = [newFolder(), newFolder()];
  for (const name of ["1", "2"]) {
    mkdirSync(join(mounted, name));
    writeFileSync(join(mounted, name, "config.yaml"), `a: ${name}\n`);
  }
  symlinkSync("1", join(mounted, "..data"));
  symlinkSync(join(mounted, "..data/config.yaml"), join(folder, "config.yaml"));
  const { following, stirred } = follow(join(folder, "config.yaml"));
  const first = following.print();
  await stirred(() => writeFileSync(join(mounted, "1", "config.yaml"), "a: 1b\n"));
  const second = following.print();
  symlinkSync("2", join(mounted, "next"));
  renameSync(join(mounted, "next"), join(mounted, "..data"));
  // In a folder that is not watched: whoever looks sees it, and from then on is told.
  const third = following.print();
  await stirred(() => writeFileSync(join(mounted, "2", "config.yaml"), "a: 2b\n"));
  expect(new Set([first, second, third, following.print()]).size).toBe(4);
});

test("models that come, grow and go are told of; other files print nothing new", async () => {
  const folder = newFolder();
  const { following, stirred } = follow(null, folder);
  const none = following.print();
  await stirred(() => writeFileSync(join(folder, "notes.txt"), "x"));
  expect(following.print()).toBe(none);
  await stirred(() => writeFileSync(join(folder, "a.gguf"), "x"));
  const one = following.print();
  await stirred(() => writeFileSync(join(folder, "a.gguf"), "xy"));
  expect(new Set([none, one, following.print()]).size).toBe(3);
  await stirred(() => unlinkSync(join(folder, "a.gguf")));
  expect(following.print()).toBe(none);
});

test("what is not there, or closed, is no error", () => {
  const gone = join(newFolder(), "nowhere");
  const { following, stirs } = follow(join(gone, "config.yaml"), gone);
  const before = following.print();
  mkdirSync(gone);
  writeFileSync(join(gone, "config.yaml"), "a: 1\n");
  expect(following.print()).not.toBe(before);
  following.close();
  following.close();
  writeFileSync(join(gone, "config.yaml"), "a: 2\n");
  expect(stirs()).toBe(0);
});
