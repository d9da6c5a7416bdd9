/**
 * The part of a daemon that owns processes, as a program of its own that a test can kill:
 * `daemon-like.ts RUN_DIR WORD…` starts one stubborn child with these words, prints its lines, and waits. A line
 * on its standard input ends it in good order; SIGKILL does not. Before the folder: `--no-guard` leaves the guard
 * out, `--forgetful` dies, so to say, between the start of the child and remembering it.
 */
import { runGuard } from "../../src/cli/guard.ts";
import { BunProcessHost, selfCommand } from "../../src/infra/bun-process.ts";
import { RecordingLog } from "./fakes-supervisor.ts";

const args = process.argv.slice(2);
if (args[0] === "__guard") process.exit(await runGuard(args.slice(1)));

const option = args[0]?.startsWith("--") === true ? args.shift() : null;
const [runDir, ...words] = args;
if (runDir === undefined) throw new Error("usage: daemon-like.ts [--no-guard|--forgetful] RUN_DIR WORD…");
const host = new BunProcessHost({
  runDir,
  guardCommand: option === "--no-guard" ? null : selfCommand("__guard"),
  log: new RecordingLog(),
});
console.log(`swept ${await host.sweep()}`);
const child = host.start({
  command: [process.execPath, `${import.meta.dir}/stubborn-child.ts`, ...words],
  env: { PATH: process.env.PATH ?? "" },
  cwd: runDir,
  onLine: (line) => console.log(line),
});
if (option !== "--forgetful") host.remember({ ...child, replicaId: "test-0" });
for await (const _ of console) break;
child.signalGroup("SIGKILL");
const exit = await child.exited;
host.forget(child.pid);
await host.close();
console.log(`ended ${exit.signal}`);
process.exit(0);
