/**
 * The command line: argv → what to do. Called by main.ts; pure, so that it is tested without a process.
 *
 * Always holds: an unknown flag or word is refused with the nearest known name (exit code 2); what a flag's
 * value means is judged by app/config.ts together with everything else.
 */
import { Command, CommanderError, Option } from "commander";
import type { ConfigFlags } from "../app/config.ts";
import { nearestName } from "../app/config-problems.ts";
import type { FetchFlags } from "./fetch.ts";
import type { ReplayFlags } from "./replay.ts";

export type ParsedArgs =
  | { readonly command: "serve" | "check-config"; readonly flags: ConfigFlags }
  | { readonly command: "replay"; readonly flags: ConfigFlags; readonly replay: ReplayFlags }
  | { readonly command: "fetch"; readonly flags: ConfigFlags; readonly fetch: FetchFlags }
  | { readonly command: "version" }
  /** For stdout. */
  | { readonly command: "help"; readonly text: string }
  /** For stderr. */
  | { readonly command: "usage-error"; readonly text: string };

const programName = "orchestratord";
const words = ["serve", "replay", "fetch"];

const epilogue = `A flag goes before the environment, that before the configuration file.
Exit codes: 0 fine, 1 failure, 2 usage or configuration, 130 and 143 after a signal and a clean end.
replay runs a finished task again as its trace artifact tells it, on a running daemon: 0 the same bytes, 1 others, 2 not told.
fetch has a running daemon fetch a model into its models folder and shows how far it is: 0 it is there and right, 1 it is not, 2 not told.
`;

interface RawOptions extends Record<keyof ConfigFlags, string | undefined> {
  readonly checkConfig?: boolean;
  readonly server?: string;
  readonly keyFile?: string;
  readonly json?: boolean;
  readonly id?: string;
  readonly sha256?: string;
  readonly version?: boolean;
}

function program(): Command {
  return new Command(programName)
    .description("Schedules LLM work onto supervised llama.cpp engines: one queue, one promise per task.")
    .argument(
      "[command]",
      "serve: run the daemon (the default); replay ARTIFACT: run a finished task again; fetch MODEL: fetch hf:ORG/REPO/FILE.gguf, https://… or a catalog entry",
    )
    .allowExcessArguments(true)
    .addOption(new Option("--addr <host:port>", "where to listen (ORCHD_ADDR; default 0.0.0.0:8080)"))
    .addOption(
      new Option(
        "--config <file>",
        "configuration file (ORCHD_CONFIG; else ./orchestratord.yaml, else $XDG_CONFIG_HOME/orchestratord/config.yaml)",
      ),
    )
    .addOption(
      new Option(
        "--state-dir <dir>",
        "what the daemon keeps (ORCHD_STATE_DIR; default $XDG_STATE_HOME/orchestratord)",
      ),
    )
    .addOption(new Option("--models-dir <dir>", "where *.gguf files are (default ~/.cache/models)"))
    .addOption(
      new Option("--engine-bin <file>", "llama-server (ORCHD_LLAMA_SERVER; default: the one on PATH)"),
    )
    .addOption(new Option("--log-level <level>", "debug, info, warn or error (default info)"))
    .addOption(
      new Option("--check-config", "print the effective configuration and what is wrong with it, then exit"),
    )
    .addOption(
      new Option("--server <url>", "replay, fetch: the daemon to ask (default: the configured address)"),
    )
    .addOption(
      new Option(
        "--key-file <file>",
        "replay, fetch: a file with the key (default: ORCHD_API_KEY, else the first-run key)",
      ),
    )
    .addOption(new Option("--json", "replay, fetch: the outcome as JSON"))
    .addOption(new Option("--id <id>", "fetch: what the catalog calls it (default: after its file)"))
    .addOption(new Option("--sha256 <digest>", "fetch: the digest that the file must have"))
    .addOption(new Option("--version", "print the version, then exit"))
    .helpOption("--help", "print this, then exit")
    .exitOverride()
    .showSuggestionAfterError(false)
    .configureOutput({ writeOut: ignore, writeErr: ignore });
}

function ignore(): void {
  // The text goes to the caller instead.
}

/** `argv` without the interpreter and the script. */
export function parseArgs(argv: readonly string[]): ParsedArgs {
  const command = program();
  try {
    command.parse(argv, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.code === "commander.helpDisplayed")
      return { command: "help", text: `${command.helpInformation()}\n${epilogue}` };
    return usageError(command, error);
  }
  const options = command.opts<RawOptions>();
  const [word, ...rest] = command.args;
  if (word !== undefined && !words.includes(word)) return unknownWord(word, words, "command");
  const takesOne = word === "replay" || word === "fetch";
  const [named, ...more] = takesOne ? rest : [undefined, ...rest];
  if (more[0] !== undefined) return unknownWord(more[0], [], "argument");
  if (options.version === true) return { command: "version" };
  const { addr, config, stateDir, modelsDir, engineBin, logLevel, server, keyFile, json, id, sha256 } =
    options;
  const flags = { addr, config, stateDir, modelsDir, engineBin, logLevel };
  const ofClients: readonly [string, unknown][] = [
    ["--server", server],
    ["--key-file", keyFile],
    ["--json", json],
  ];
  const ofFetch: readonly [string, unknown][] = [
    ["--id", id],
    ["--sha256", sha256],
  ];
  const misplaced = (given: readonly [string, unknown][]): string | undefined =>
    given.find(([, value]) => value !== undefined)?.[0];
  if (word !== "fetch" && misplaced(ofFetch) !== undefined)
    return usage(`${misplaced(ofFetch)} goes with the command fetch`);
  if (word === "replay") {
    if (named === undefined)
      return usage("replay needs the id of a trace artifact, or a file that holds one");
    return { command: "replay", flags, replay: { artifact: named, server, keyFile, json } };
  }
  if (word === "fetch") {
    if (named === undefined)
      return usage("fetch needs a model: hf:ORG/REPO/FILE.gguf, https://HOST/FILE.gguf or a catalog entry");
    return { command: "fetch", flags, fetch: { ref: named, id, sha256, server, keyFile, json } };
  }
  if (misplaced(ofClients) !== undefined)
    return usage(`${misplaced(ofClients)} goes with the command replay or fetch`);
  return { command: options.checkConfig === true ? "check-config" : "serve", flags };
}

const usage = (text: string): ParsedArgs => ({
  command: "usage-error",
  text: `${programName}: ${text}\n${seeHelp}`,
});

const flagNames = (command: Command): string[] => [
  ...command.options.map((option) => option.long ?? "").filter((name) => name !== ""),
  "--help",
];

function usageError(command: Command, error: CommanderError): ParsedArgs {
  const unknown = /^error: unknown option '([^']*)'/.exec(error.message)?.[1];
  if (unknown !== undefined) {
    const name = unknown.split("=", 1)[0] ?? unknown;
    if (!flagNames(command).includes(name)) return unknownWord(name, flagNames(command), "flag");
    return {
      command: "usage-error",
      text: `${programName}: ${name} takes no value
${seeHelp}`,
    };
  }
  return {
    command: "usage-error",
    text: `${programName}: ${error.message.replace(/^error: /, "")}\n${seeHelp}`,
  };
}

const seeHelp = `See ${programName} --help.`;

function unknownWord(
  word: string,
  known: readonly string[],
  kind: "flag" | "command" | "argument",
): ParsedArgs {
  const nearest = nearestName(word, known);
  const hint = nearest === null ? "" : `; did you mean ${nearest}?`;
  return { command: "usage-error", text: `${programName}: unknown ${kind} ${word}${hint}\n${seeHelp}` };
}
