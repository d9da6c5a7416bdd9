/**
 * `serve` around a scripted daemon, for test/cli/serve.test.ts: the command, its state folder and its signals
 * are real, what it starts is not. argv: the behaviour, then the command line.
 */
import type { Composition } from "../../src/app/daemon.ts";
import { addressError } from "../../src/app/start-error.ts";
import { parseArgs } from "../../src/cli/args.ts";
import { serve } from "../../src/cli/serve.ts";
import { SystemClock, SystemEntropy } from "../../src/infra/system-clock.ts";

const [behaviour, ...argv] = process.argv.slice(2);
const say = (line: string): void => void process.stdout.write(`${line}\n`);
const held = setInterval(() => undefined, 60_000);

const composition: Composition = {
  clock: new SystemClock(),
  entropy: new SystemEntropy(),
  readModelKind: () => null,
  bootstrap: async ({ config, keys, reread }) => {
    say(`bootstrap ${config.pools.map((pool) => pool.id)} keys=${keys.size}`);
    if (behaviour === "address") {
      throw addressError(Object.assign(new Error("listen"), { code: "EADDRINUSE" }), config.addr);
    }
    if (behaviour === "hangs") await new Promise(() => undefined);
    if (behaviour === "rejects") setImmediate(() => void Promise.reject(new Error("nobody caught this")));
    return {
      url: "http://127.0.0.1:12345",
      close: async () => {
        say("close");
        if (behaviour === "drains") await new Promise(() => undefined);
        if (behaviour === "fails") throw new Error("cannot close");
      },
      closeNow: () => say("closeNow"),
      reload: (why) => {
        const read = reread();
        say(
          `reload ${why} ${read.ok ? read.config.pools.map((pool) => pool.id) : read.problems.join(" | ")}`,
        );
      },
    };
  },
};

const parsed = parseArgs(argv);
if (parsed.command !== "serve") throw new Error(parsed.command);
const code = await serve(parsed.flags, composition);
clearInterval(held);
process.exit(code);
