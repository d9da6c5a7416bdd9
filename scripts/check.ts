// Types, lint, format and the lock file: what a machine can judge without running the code.
// Called by scripts/test.mjs and by hand: `npm run check [-- --fix]`, where --fix lets biome mend what it can first.
//
// What holds: every step runs whatever the others say, and prints one line; the output of a failed step follows its line.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..");

interface Verdict {
  ok: boolean;
  output: string;
}

async function tool(name: string, ...args: string[]): Promise<Verdict> {
  const colors = process.stdout.isTTY ? { FORCE_COLOR: "1" } : {};
  const child = Bun.spawn([join(ROOT, "node_modules/.bin", name), ...args], {
    cwd: ROOT,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...colors },
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { ok: code === 0, output: out + err };
}

interface Lock {
  packages: Record<
    string,
    { dependencies?: Record<string, string>; optionalDependencies?: Record<string, string> }
  >;
}

/**
 * Every dependency that the lock file names must be in it, other platforms' binaries too: `npm ci` refuses the file
 * otherwise, on every fresh clone. npm itself writes such a file when a registry answers 404 for one of them.
 */
function lockFile(): Verdict {
  const { packages }: Lock = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
  const missing: string[] = [];
  for (const [where, entry] of Object.entries(packages)) {
    for (const name of Object.keys({ ...entry.dependencies, ...entry.optionalDependencies })) {
      // Resolved as Node does: in the package's own folder first, then in each one above it.
      let folder = where;
      while (!(join(folder, "node_modules", name) in packages) && folder !== "") {
        folder = folder.slice(0, Math.max(0, folder.lastIndexOf("node_modules/") - 1));
      }
      if (!(join(folder, "node_modules", name) in packages))
        missing.push(`${name}, wanted by ${where || "package.json"}`);
    }
  }
  return {
    ok: missing.length === 0,
    output: missing.map((line) => `package-lock.json lacks ${line}\n`).join(""),
  };
}

const fix = process.argv.includes("--fix");

const steps: [name: string, run: () => Verdict | Promise<Verdict>][] = [
  ["types", () => tool("tsc", "--noEmit")],
  ["lint and format", () => tool("biome", "check", "--error-on-warnings", ...(fix ? ["--write"] : []))],
  ["lock file", lockFile],
];
let failed = 0;
for (const [name, run] of steps) {
  const startedAtNs = Bun.nanoseconds();
  const { ok, output } = await run();
  const seconds = ((Bun.nanoseconds() - startedAtNs) / 1e9).toFixed(1);
  console.log(`check: ${name} ${ok ? "ok" : "FAILED"} (${seconds} s)`);
  if (!ok) {
    failed++;
    console.log(output.trimEnd());
  }
}
process.exit(failed === 0 ? 0 : 1);
