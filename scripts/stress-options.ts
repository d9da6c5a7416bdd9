/** The options that runs against a real daemon share: its command, the seed and where its log goes. */
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { Command, InvalidArgumentError } from "commander";
import { sourceCommand } from "../test/support/daemon.ts";

export interface StressOptions {
  readonly seed: number;
  readonly binary: string;
  readonly source?: true;
  readonly log?: string;
}

/** Usage errors exit with 2. */
export const stressCommand = (name: string): Command =>
  new Command(name)
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : 2))
    .option("--seed <n>", "of all chance", atLeast(0), crypto.getRandomValues(new Uint32Array(1))[0])
    .option("--binary <file>", "orchestratord", resolve(import.meta.dir, "../dist/orchestratord"))
    .option("--source", "run it from its sources")
    .option("--log <file>", "where the daemon's log goes");

/** The parser of an option that is a number of at least so much. */
export const atLeast =
  (least: number) =>
  (text: string): number => {
    const value = Number(text);
    if (text.trim() !== "" && Number.isFinite(value) && value >= least) return value;
    throw new InvalidArgumentError(`It must be a number of at least ${least}.`);
  };

/** What a run wants to know of them. */
export function daemonOf({ seed, binary, source, log }: StressOptions) {
  return {
    seed,
    command: source === true ? sourceCommand : [resolve(binary)],
    say: (line: string) => console.error(line),
    ...(log === undefined ? {} : { onLog: (text: string) => writeFileSync(log, text) }),
  };
}
