// Builds dist/orchestratord, the one file that people install: src/main.ts with the Bun runtime, compiled ahead of time.
// Called by scripts/start.mjs and scripts/test.mjs, by test/binary, and by hand: `npm run build [-- --force]`.
//
// What holds: the binary in dist/ is always a whole one (built beside it, then renamed, which also works while the old
// one runs). Nothing is built when the sources, the packages and the commit are those of the binary that is there.

import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..");
const BINARY = join(ROOT, "dist/orchestratord");
const STAMP = join(ROOT, "dist/.build-stamp");
const INPUTS = ["src", "contracts", "package.json", "package-lock.json", "tsconfig.json", "scripts/build.ts"];

export interface BuildResult {
  /** Absolute path of the binary. */
  path: string;
  /** False when the binary that was there is up to date. */
  built: boolean;
  elapsedMs: number;
}

/** Short hash of HEAD, "-dirty" behind it when the tree differs (untracked files count), "unknown" outside git. */
async function commit(): Promise<string> {
  if (!existsSync(join(ROOT, ".git"))) return "unknown"; // unpacked inside somebody else's repository, perhaps
  const git = async (...args: string[]): Promise<string | undefined> => {
    try {
      const child = Bun.spawn(["git", "-C", ROOT, ...args], {
        stdout: "pipe",
        stderr: "ignore",
        stdin: "ignore",
      });
      const output = await child.stdout.text();
      return (await child.exited) === 0 ? output.trim() : undefined;
    } catch {
      return undefined; // no git on this machine
    }
  };
  const [head, changes] = await Promise.all([
    git("rev-parse", "--short", "HEAD"),
    git("--no-optional-locks", "status", "--porcelain"),
  ]);
  if (head === undefined || changes === undefined) return "unknown";
  return changes === "" ? head : `${head}-dirty`;
}

function filesUnder(name: string): string[] {
  const path = join(ROOT, name);
  if (!existsSync(path)) return [];
  if (statSync(path).isFile()) return [name];
  return readdirSync(path, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(ROOT.length + 1))
    .sort();
}

function inputsHash(commitId: string): string {
  const hash = new Bun.CryptoHasher("sha256").update(
    `${Bun.version} ${process.platform} ${process.arch} ${commitId}\n`,
  );
  for (const file of INPUTS.flatMap(filesUnder)) {
    const bytes = readFileSync(join(ROOT, file));
    hash.update(`${file} ${bytes.length}\n`).update(bytes); // with its length: no two trees give the same stream
  }
  return hash.digest("hex");
}

/** A build that was killed leaves 100 MB behind. */
function removeDraftsOfTheDead(): void {
  for (const name of readdirSync(join(ROOT, "dist"))) {
    const pid = /^\.orchestratord\.(\d+)\.tmp/.exec(name)?.[1];
    if (pid === undefined) continue;
    try {
      process.kill(Number(pid), 0);
    } catch {
      rmSync(join(ROOT, "dist", name), { force: true }); // nobody has this pid
    }
  }
}

/**
 * Builds the binary unless it is up to date.
 * @throws AggregateError of Bun with the source positions when the code does not bundle; the old binary stays.
 */
export async function build(options: { force?: boolean } = {}): Promise<BuildResult> {
  const startedAtNs = Bun.nanoseconds();
  const result = (built: boolean): BuildResult => ({
    path: BINARY,
    built,
    elapsedMs: Math.round((Bun.nanoseconds() - startedAtNs) / 1e6),
  });
  const commitId = await commit();
  const stamp = inputsHash(commitId);
  const isCurrent = existsSync(BINARY) && existsSync(STAMP) && readFileSync(STAMP, "utf8") === stamp;
  if (isCurrent && options.force !== true) return result(false);

  const version: string = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8")).version;
  const draft = join(ROOT, "dist", `.orchestratord.${process.pid}.tmp`);
  mkdirSync(join(ROOT, "dist"), { recursive: true });
  removeDraftsOfTheDead();
  try {
    await Bun.build({
      entrypoints: [join(ROOT, "src/main.ts")],
      target: "bun",
      format: "esm", // with bytecode, top-level await needs it
      minify: true,
      bytecode: true, // a start takes half as long
      sourcemap: "linked", // embedded: a stack trace in the log names the source line
      define: {
        ORCHD_VERSION: JSON.stringify(version),
        ORCHD_COMMIT: JSON.stringify(commitId),
        // As src/app/production.ts has it; here it also drops what libraries keep for development only.
        "process.env.NODE_ENV": '"production"',
      },
      // Else the binary would obey .env and bunfig.toml of the directory it is started in, foreign code included.
      compile: { outfile: draft, autoloadDotenv: false, autoloadBunfig: false },
    });
    rmSync(STAMP, { force: true }); // before the rename: an interrupted build is never taken for a current one
    renameSync(draft, BINARY);
  } finally {
    rmSync(draft, { force: true });
    rmSync(`${draft}.map`, { force: true }); // the embedded copy serves
  }
  writeFileSync(STAMP, stamp);
  return result(true);
}

if (import.meta.main) {
  const unknown = process.argv.slice(2).find((argument) => argument !== "--force");
  if (unknown !== undefined) {
    console.error(`build: unknown argument ${unknown}; there is --force`);
    process.exit(2);
  }
  try {
    const { path, built, elapsedMs } = await build({ force: process.argv.includes("--force") });
    if (built) console.log(`build: ${path.slice(ROOT.length + 1)} in ${elapsedMs} ms`);
  } catch (error) {
    console.error(error);
    process.exit(1);
  }
}
