/**
 * Flags, environment and file → one frozen, compiled Config. `loadConfig` is called by the commands in cli/;
 * everything after start-up reads the result and nothing reads flags or environment again.
 *
 * Always holds: flag before environment before file before default; units stand in the names, paths are
 * absolute, secrets are digests or do not show; and either there is a valid Config or the list of all that is wrong.
 */
import { homedir } from "node:os";
import { delimiter, dirname, isAbsolute, join, resolve } from "node:path";
import type { PoolSpec } from "../domain/pool.ts";
import type { ReloadStrategy } from "../domain/pool-reload.ts";
import type { Fairness } from "../domain/queue.ts";
import type { ResidencyRules } from "../domain/residency-state.ts";
import type { Budget } from "../domain/task.ts";
import { type LogLevel, logLevels } from "../ports/telemetry.ts";
import type { DeviceSpec } from "../services/device-memory.ts";
import { type ArtifactsSpec, compileArtifacts, namedVariables } from "./config-artifacts.ts";
import { compileDevices } from "./config-devices.ts";
import { readDocument } from "./config-document.ts";
import { type ConfigFiles, systemFiles } from "./config-files.ts";
import { compileKeys, type KeySpec, type RateLimit } from "./config-keys.ts";
import { compileModels, type ModelsSpec } from "./config-models.ts";
import { compilePools, type PoolsFrom, type ReadModelKind } from "./config-pools.ts";
import { nearestName, orList, type Problem, Problems } from "./config-problems.ts";
import type { AuthMode, Durability, FilledConfigFile } from "./config-schema.ts";
import { renamed } from "./config-sections.ts";

export interface Config {
  /** Absolute path of the configuration file; null without one. */
  readonly filePath: string | null;
  /** IPv6 addresses without brackets; port 0: any free one. */
  readonly addr: { readonly host: string; readonly port: number };
  readonly stateDir: string;
  readonly logLevel: LogLevel;
  readonly auth: { readonly mode: AuthMode; readonly keys: readonly KeySpec[] };
  readonly limits: { readonly bodyBytes: number; readonly rate: RateLimit; readonly streamsPerKey: number };
  readonly tls: { readonly certPath: string; readonly keyPath: string } | null;
  readonly admission: {
    readonly maxTokensDefault: number;
    /** Null: a task without a deadline has none. */
    readonly deadlineMsDefault: number | null;
    readonly minOnTimeProbability: number;
    readonly batchMaxWaitMs: number;
    readonly fair: Fairness;
  };
  readonly sessions: {
    /** From its last task's end, or the last task that was accepted. */
    readonly ttlMs: number;
    readonly turnsMax: number;
    readonly budget: Budget;
  };
  readonly tasks: {
    readonly attemptsMax: number;
    readonly retentionMs: number;
    /** Whether a running task ends when its deadline passes. */
    readonly cutAtDeadline: boolean;
  };
  readonly streaming: {
    readonly heartbeatMs: number;
    readonly disconnectGraceMs: number;
    /** 0: every frame is sent at once. */
    readonly microbatchMs: number;
    readonly metricsEveryMs: number;
  };
  readonly models: ModelsSpec;
  /** The llama-server program; null where none was found and no pool needs one. */
  readonly engineBin: string | null;
  readonly restart: {
    readonly backoffMs: number;
    readonly backoffMsMax: number;
    readonly breakerFailures: number;
    readonly breakerWindowMs: number;
  };
  readonly artifacts: ArtifactsSpec;
  /** power: an accepted task is synced to disk before its 202 leaves; process: written, not synced. */
  readonly storage: { readonly durability: Durability };
  readonly shutdown: { readonly drainDeadlineMs: number };
  /** What the operator says of them; others are measured. */
  readonly devices: readonly DeviceSpec[];
  readonly residency: ResidencyRules;
  readonly reload: {
    /** A change of the file, or of the models folder where that names the pools, is taken up by itself. */
    readonly watch: boolean;
    /** For pools whose engines are replaced. */
    readonly strategy: ReloadStrategy;
    /** What runs in a pool that is replaced or taken out may go on so long. */
    readonly deadlineMs: number;
  };
  readonly pools: readonly PoolSpec[];
  /** Where the pools come from: named in the file, found in the models folder, or the built-in demo. */
  readonly poolsFrom: PoolsFrom;
}

export interface ConfigFlags {
  readonly addr?: string | undefined;
  readonly config?: string | undefined;
  readonly stateDir?: string | undefined;
  readonly modelsDir?: string | undefined;
  readonly engineBin?: string | undefined;
  readonly logLevel?: string | undefined;
}

export interface ConfigInput {
  readonly flags: ConfigFlags;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Null: no configuration file. */
  readonly fileText: string | null;
  readonly filePath: string | null;
  readonly cwd: string;
  readonly home: string;
  readonly files: ConfigFiles;
  readonly readModelKind: ReadModelKind;
}

export type ConfigResult =
  | { readonly ok: true; readonly config: Config; readonly warnings: readonly string[] }
  | { readonly ok: false; readonly problems: readonly Problem[] };

const envNames = [
  "ORCHD_ADDR",
  "ORCHD_CONFIG",
  "ORCHD_STATE_DIR",
  "ORCHD_LLAMA_SERVER",
  "ORCHD_API_KEY",
] as const;
type EnvName = (typeof envNames)[number];
const configBytesMax = 1024 * 1024;

/** The pure core: everything it learns of the machine comes in through `input`. */
export function compileConfig(input: ConfigInput): ConfigResult {
  const problems = new Problems(input.filePath ?? "configuration");
  const warnings: string[] = [];
  const { file, whole } = readDocument(input.fileText ?? "", problems);
  warnUnknownEnv(input.env, namedVariables(file), warnings);
  const config = compile({ file, whole, input, problems, warnings });
  if (problems.found.length > 0) return { ok: false, problems: problems.inOrder() };
  return { ok: true, config: deepFreeze(config), warnings };
}

function compile(of: {
  readonly file: FilledConfigFile;
  readonly whole: boolean;
  readonly input: ConfigInput;
  readonly problems: Problems;
  readonly warnings: string[];
}): Config {
  const { file, input, problems, warnings } = of;
  const { flags, files, home } = input;
  const fromFile = (path: string): string =>
    absolutePath(path, input.filePath === null ? input.cwd : dirname(input.filePath), home);
  const fromShell = (path: string): string => absolutePath(path, input.cwd, home);
  const env = (name: EnvName): string | undefined => input.env[name] || undefined;
  /** The first that is set, with its name for the message; the file's value last. */
  const choose = (
    flag: string | undefined,
    flagName: string,
    envName: EnvName | null,
    filePath: string[],
  ) => {
    const envValue = envName === null ? undefined : env(envName);
    if (flag !== undefined) return { value: flag, report: (text: string) => problems.of(flagName, text) };
    if (envName !== null && envValue !== undefined) {
      return { value: envValue, report: (text: string) => problems.of(envName, text) };
    }
    return { value: null, report: (text: string) => problems.atPath(filePath, text) };
  };

  const chosenAddr = choose(flags.addr, "--addr", "ORCHD_ADDR", ["addr"]);
  const addr = parseAddr(chosenAddr.value ?? file.addr, chosenAddr.report);
  if (addr !== null && file.auth.mode === "off" && !isLoopback(addr.host) && !problems.hasBelow(["addr"])) {
    const message = `found off with the address ${addr.host}, expected a loopback address (127.0.0.1 or ::1): anybody could use the engines`;
    problems.atPath(["auth", "mode"], message);
  }

  const stateDir = choose(flags.stateDir, "--state-dir", "ORCHD_STATE_DIR", ["state_dir"]);
  const logLevel = compileLogLevel(flags.logLevel, file.log.level, problems);
  const modelsDir = flags.modelsDir === undefined ? fromFile(file.models.dir) : fromShell(flags.modelsDir);
  const bin = choose(flags.engineBin, "--engine-bin", "ORCHD_LLAMA_SERVER", ["engines", "llamacpp", "bin"]);
  const binName = bin.value ?? file.engines.llamacpp.bin;
  const engineBin = findProgram(binName, bin.value === null ? fromFile : fromShell, input);
  // Named by hand and not there: wrong even where no pool needs it now.
  if ("missing" in engineBin && bin.value !== null) bin.report(engineBin.missing);

  if (file.restart.backoff_ms > file.restart.backoff_max_ms) {
    problems.atPath(
      ["restart", "backoff_ms"],
      `found ${file.restart.backoff_ms}, expected at most restart.backoff_max_ms (${file.restart.backoff_max_ms})`,
    );
  }

  const keys = compileKeys({
    keys: file.auth.keys,
    envKey: env("ORCHD_API_KEY"),
    files,
    absolute: fromFile,
    problems,
    warnings,
  });
  const roots = file.models.roots.map(fromFile);
  const models = { dir: modelsDir, roots, ...compileModels(file, problems) };
  const pools = compilePools(file.pools, {
    modelsDir,
    fetch: models.fetch,
    modelsDirNamed: flags.modelsDir !== undefined || file.models.dir !== defaultModelsDir,
    modelRoots: roots,
    whole: of.whole,
    engineBin,
    env: input.env,
    files,
    absolute: fromFile,
    readModelKind: input.readModelKind,
    problems,
    warnings,
  });

  warnUnpriced(file, keys, pools.pools, warnings);

  const stateDirPath =
    stateDir.value !== null
      ? fromShell(stateDir.value)
      : file.state_dir === null
        ? join(xdg(input, "XDG_STATE_HOME", ".local/state"), "orchestratord")
        : fromFile(file.state_dir);
  return {
    filePath: input.filePath,
    addr: addr ?? { host: "", port: 0 },
    stateDir: stateDirPath,
    artifacts: compileArtifacts(file, {
      stateDir: stateDirPath,
      env: input.env,
      files,
      absolute: fromFile,
      problems,
      warnings,
    }),
    logLevel,
    auth: { mode: file.auth.mode, keys },
    ...renamed(file),
    tls: compileTls(file, files, fromFile, problems),
    models,
    engineBin: "path" in engineBin ? engineBin.path : null,
    ...compileDevices(file, problems),
    pools: pools.pools,
    poolsFrom: pools.from,
  };
}

const defaultModelsDir = "~/.cache/models";

/** `~` is the home folder, as in a shell; anything relative starts at `base`. */
function absolutePath(path: string, base: string, home: string): string {
  if (path === "~") return home;
  return path.startsWith("~/") ? join(home, path.slice(2)) : resolve(base, path);
}

/** XDG Base Directory: a relative path in the variable is invalid and ignored. */
function xdg(input: { env: ConfigInput["env"]; home: string }, name: string, fallback: string): string {
  const value = input.env[name];
  return value !== undefined && isAbsolute(value) ? value : join(input.home, fallback);
}

const hostPattern = /^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/;

function parseAddr(text: string, report: (message: string) => void): { host: string; port: number } | null {
  const parts = /^(?:\[([0-9A-Fa-f:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const host = parts?.[1] ?? parts?.[2];
  const port = Number(parts?.[3]);
  const known = host !== undefined && (parts?.[1] === undefined ? hostPattern.test(host) : isIPv6(host));
  if (!known || port > 65_535) {
    report(`found ${JSON.stringify(text)}, expected HOST:PORT as in 127.0.0.1:8080 or [::1]:8080`);
    return null;
  }
  return { host, port };
}

const isIPv6 = (host: string): boolean => URL.canParse(`http://[${host}]/`);

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host);
}

function compileLogLevel(flag: string | undefined, fromFile: LogLevel, problems: Problems): LogLevel {
  if (flag === undefined) return fromFile;
  const level = logLevels.find((name) => name === flag);
  if (level !== undefined) return level;
  const nearest = nearestName(flag, logLevels);
  const hint = nearest === null ? "" : `; did you mean ${nearest}?`;
  problems.of("--log-level", `found ${JSON.stringify(flag)}, expected ${orList(logLevels)}${hint}`);
  return fromFile;
}

/** A bare name is looked up on PATH, anything with a slash is a path. */
function findProgram(
  name: string,
  absolute: (path: string) => string,
  { env, files }: ConfigInput,
): { readonly path: string } | { readonly missing: string } {
  const bare = !name.includes("/") && !name.startsWith("~");
  const candidates = bare
    ? (env.PATH ?? "")
        .split(delimiter)
        .filter(isAbsolute)
        .map((folder) => join(folder, name))
    : [absolute(name)];
  const path = candidates.find((candidate) => files.facts(candidate)?.executable === true);
  if (path !== undefined) return { path };
  const where = bare ? `${name} is not on PATH` : `${absolute(name)} is not an executable file`;
  return {
    missing: `${where}; install llama.cpp, or name its llama-server with --engine-bin or ORCHD_LLAMA_SERVER`,
  };
}

function compileTls(
  file: FilledConfigFile,
  files: ConfigFiles,
  absolute: (path: string) => string,
  problems: Problems,
): Config["tls"] {
  const { cert, key } = file.tls;
  if (cert === null && key === null) return null;
  if (cert === null || key === null) {
    problems.atPath(["tls"], "found one of cert and key, expected both or neither", "key");
    return null;
  }
  for (const [name, path] of Object.entries({ cert: absolute(cert), key: absolute(key) })) {
    if (files.facts(path)?.kind !== "file") problems.atPath(["tls", name], `no such file: ${path}`);
  }
  return { certPath: absolute(cert), keyPath: absolute(key) };
}

/** A budget of cost where nothing costs anything is likely a forgotten price. */
function warnUnpriced(
  { sessions }: FilledConfigFile,
  keys: readonly KeySpec[],
  pools: readonly PoolSpec[],
  warnings: string[],
): void {
  if (pools.some(({ price }) => price.per1kTokensIn > 0 || price.per1kTokensOut > 0)) return;
  const named = keys.flatMap(({ keyId, budget }) => (budget?.cost == null ? [] : [`the key ${keyId}`]));
  if (sessions.budget.cost !== null) named.unshift("sessions");
  if (named.length === 0) return;
  warnings.push(`the budget of cost for ${named.join(", ")} bounds nothing: every pool's price is 0`);
}

/** A variable of ours that nobody reads is likely a slip; other tools may have their own, so it is no error. */
function warnUnknownEnv(env: ConfigInput["env"], named: readonly string[], warnings: string[]): void {
  for (const name of Object.keys(env)) {
    if (!name.startsWith("ORCHD_") || [...envNames, ...named].includes(name)) continue;
    const nearest = nearestName(
      name.slice("ORCHD_".length),
      envNames.map((known) => known.slice("ORCHD_".length)),
    );
    if (nearest !== null) warnings.push(`the variable ${name} is not known; did you mean ORCHD_${nearest}?`);
  }
}

function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const member of Object.values(value)) deepFreeze(member);
  }
  return value;
}

/** Finds and reads the file, then compiles. Reads the disk, changes nothing. */
export function loadConfig(deps: {
  readonly flags: ConfigFlags;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly readModelKind: ReadModelKind;
  readonly cwd?: string;
  readonly home?: string;
  readonly files?: ConfigFiles;
  /** The file that a running daemon reads again. */
  readonly inUse?: string | null;
}): ConfigResult {
  const { flags, env, inUse = null, files = systemFiles, cwd = process.cwd(), home = homedir() } = deps;
  const named = flags.config ?? (env.ORCHD_CONFIG || undefined);
  const source = flags.config === undefined ? "ORCHD_CONFIG" : "--config";
  const found = named === undefined ? discover({ env, files, cwd, home }) : absolutePath(named, cwd, home);
  const filePath = inUse ?? found;
  const fileText = filePath === null ? null : files.readText(filePath, configBytesMax);
  const result = compileConfig({
    flags,
    env,
    fileText,
    filePath,
    cwd,
    home,
    files,
    readModelKind: deps.readModelKind,
  });
  if (filePath === null || fileText !== null) return result;
  const message = `cannot read ${filePath} (not there, not permitted, or more than ${configBytesMax} bytes)`;
  const problem: Problem = {
    source: named === undefined ? filePath : source,
    path: "",
    line: null,
    column: null,
    message,
  };
  return { ok: false, problems: [problem, ...(result.ok ? [] : result.problems)] };
}

/** The first file that exists. */
function discover(
  at: Required<Pick<Parameters<typeof loadConfig>[0], "env" | "files" | "cwd" | "home">>,
): string | null {
  const candidates = [
    join(at.cwd, "orchestratord.yaml"),
    join(xdg(at, "XDG_CONFIG_HOME", ".config"), "orchestratord", "config.yaml"),
  ];
  return candidates.find((path) => at.files.facts(path) !== null) ?? null;
}
