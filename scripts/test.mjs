// `npm test`: sets up, checks, builds and runs every test. `npm test -- test/domain` runs only the tests named.
// The continuous integration (.ci/run) calls nothing else, so what passes here passes there.
//
// What holds: a failed check does not hide the tests' result; the exit code is 0 only when every step passed; the last
// line is always "N passed, N failed", in which a failed step other than the tests counts as one.

import { spawn } from "node:child_process";
import path from "node:path";
import process from "node:process";
import { stripVTControlCharacters } from "node:util";
import { BUN, fail, ROOT, SetupError, setup, TEST_SHAPES } from "./setup.mjs";

/** For one test. Given on the command line: bun 1.4.5 takes no notice of a timeout in bunfig.toml. */
const testTimeoutMs = "60000";

/** Runs a step to its end and passes its output through; resolves to its exit code and the end of what it printed. */
function step(args) {
  const colors = process.stdout.isTTY ? { FORCE_COLOR: "1" } : {};
  const child = spawn(BUN, args, {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...colors },
  });
  let tail = "";
  for (const [from, to] of [
    [child.stdout, process.stdout],
    [child.stderr, process.stderr],
  ]) {
    from.on("data", (bytes) => {
      to.write(bytes);
      tail = (tail + bytes.toString("latin1")).slice(-20_000);
    });
  }
  // In a terminal the whole group gets Ctrl-C; a signal sent to this process alone has to be passed on.
  const pass = (signal) => child.kill(signal);
  process.on("SIGINT", pass).on("SIGTERM", pass);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => {
      process.off("SIGINT", pass).off("SIGTERM", pass);
      resolve({ code: code ?? 1, tail });
    });
  });
}

/** The counts in bun's summary (" 12 pass", " 1 fail", " 1 error"); an error outside of tests may stand in both of the last. */
function counts(tail) {
  const plain = stripVTControlCharacters(tail);
  const last = (word) =>
    Number([...plain.matchAll(new RegExp(`^ *(\\d+) ${word}s?$`, "gm"))].at(-1)?.[1] ?? 0);
  return { passed: last("pass"), failed: Math.max(last("fail"), last("error")) };
}

async function test(args) {
  let code = 0;
  let passed = 0;
  let failed = 0;
  const count = (exitCode, failures) => {
    if (exitCode !== 0) code ||= exitCode;
    failed += exitCode !== 0 ? Math.max(1, failures) : failures;
  };
  try {
    await setup({ shapes: TEST_SHAPES });
    count((await step([path.join(ROOT, "scripts/check.ts")])).code, 0);
    const build = await step([path.join(ROOT, "scripts/build.ts")]);
    count(build.code, 0);
    if (build.code === 0) {
      const tests = await step(["test", "--timeout", testTimeoutMs, ...args]);
      const found = counts(tests.tail);
      passed = found.passed;
      count(tests.code, found.failed);
    }
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    process.stderr.write(`setup: ${error.message}\n`);
    count(1, 0);
  }
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  process.exitCode = code;
}

test(process.argv.slice(2)).catch(fail);
