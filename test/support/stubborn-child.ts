/**
 * A child that behaves badly on request, run by bun: `stubborn-child.ts WORD…`. It prints `self PID`, then does
 * what the words say, in order.
 *   ignore-term    SIGTERM and SIGINT do nothing
 *   grandchild     forks a child like itself in its own group that ignores SIGTERM: prints `grandchild PID`
 *   escape         the same in a session of its own
 *   unmarked       the same as grandchild, but with an empty environment
 *   flood=N        N long lines on both pipes, then `flooded`
 *   long-line=N    one line of N characters
 *   say=TEXT       prints TEXT (underscores become spaces)
 *   exit=CODE      ends
 * Without exit it waits for a signal.
 */
import { writeSync } from "node:fs";

const out = (text: string): void => writeAll(1, `${text}\n`);

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
}

function fork(detached: boolean, env: Record<string, string | undefined> = process.env): number {
  const child = Bun.spawn([process.execPath, import.meta.path, "ignore-term"], {
    stdio: ["ignore", "inherit", "inherit"],
    detached,
    env,
  });
  return child.pid;
}

out(`self ${process.pid}`);
for (const word of process.argv.slice(2)) {
  const [name, value = ""] = word.split("=");
  if (name === "ignore-term") {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => out(`ignored ${signal}`));
  } else if (name === "grandchild") out(`grandchild ${fork(false)}`);
  else if (name === "escape") out(`grandchild ${fork(true)}`);
  else if (name === "unmarked") out(`grandchild ${fork(false, {})}`);
  else if (name === "flood") {
    const line = `${"x".repeat(3_000)}\n`;
    const chunk = line.repeat(20);
    for (let n = 0; n < Number(value); n += 20) {
      writeAll(1, chunk);
      writeAll(2, chunk);
    }
    out("flooded");
  } else if (name === "long-line") out("y".repeat(Number(value)));
  else if (name === "say") out(value.replaceAll("_", " "));
  else if (name === "exit") process.exit(Number(value));
  else throw new Error(`unknown word ${word}`);
}
out("waiting");
await new Promise(() => {
  // Until a signal ends it: the timer keeps the event loop alive.
  setInterval(() => undefined, 1 << 30);
});
