/**
 * A process host that gets no file descriptor any more when its child ends: `starved-host.ts RUN_DIR`. Prints how
 * the child ended and what was logged.
 */
import { BunProcessHost } from "../../src/infra/bun-process.ts";
import { RecordingLog } from "./fakes-supervisor.ts";

const [runDir] = process.argv.slice(2);
if (runDir === undefined) throw new Error("usage: starved-host.ts RUN_DIR");
const log = new RecordingLog();
const host = new BunProcessHost({ runDir, guardCommand: null, log });
const child = host.start({ command: ["/bin/sleep", "100"], env: {}, cwd: runDir, onLine: () => undefined });
// Not by opening files up to the limit: the child's own descriptors become free at its end.
// And told to begin only now: the start of a child needs a descriptor itself, which a quick one would take away.
const limiter = Bun.spawn(["/bin/sh", "-c", `read go && exec prlimit --pid ${process.pid} --nofile=3:3`], {
  stdin: "pipe",
  stdout: "ignore",
  stderr: "inherit",
});
limiter.stdin.write("go\n");
limiter.stdin.end();
if ((await limiter.exited) !== 0) throw new Error("the limit was not set");
child.signalGroup("SIGKILL");
const exit = await child.exited;
console.log(String(exit.signal), ...log.lines.flatMap((line) => [line.event, line.fields.code]));
process.exit(0);
