/**
 * `--check-config`: the configuration in force as YAML on stdout, or everything that is wrong with it on
 * stderr. Called by main.ts; reads the disk, changes nothing, starts nothing.
 */
import { type ConfigFlags, type ConfigResult, loadConfig } from "../app/config.ts";
import { formatProblem, type Problem } from "../app/config-problems.ts";
import { renderConfig } from "../app/config-render.ts";
import type { Composition } from "../app/daemon.ts";
import { print, printError } from "./print.ts";

/** Exit code: 0 valid, 2 not. */
export async function checkConfig(
  flags: ConfigFlags,
  { readModelKind }: Pick<Composition, "readModelKind">,
): Promise<number> {
  const result = loadConfig({ flags, env: process.env, readModelKind });
  if (!result.ok) {
    await printError(problemsText(result.problems));
    return 2;
  }
  await print(renderConfig(result.config));
  await printError(`${warningsText(result)}configuration is valid\n`);
  return 0;
}

export function problemsText(problems: readonly Problem[]): string {
  const count = problems.length === 1 ? "1 problem" : `${problems.length} problems`;
  return `${problems.map((problem) => `${formatProblem(problem)}\n`).join("")}the configuration has ${count}\n`;
}

export const warningsText = (of: Pick<Extract<ConfigResult, { ok: true }>, "warnings">): string =>
  of.warnings.map((warning) => `warning: ${warning}\n`).join("");
