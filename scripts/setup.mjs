// Brings a fresh clone to the point where it can build, run and test: packages, engine, demo models.
// Plain Node without dependencies, because nothing is installed yet when it first runs.
// Called by scripts/start.mjs and scripts/test.mjs, and by hand: `npm run setup`.
//
// What holds: every step is idempotent and prints a line only when it does something. When all is in place no process is
// spawned: stamps are compared. A stamp is written after its step was verified, never before. Work happens under a lock
// with an owner's pid in it, so two setups in one tree take turns and the second finds nothing left to do.

import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";

export const ROOT = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const at = (...names) => path.join(ROOT, ...names);

export const BUN = at("node_modules/.bin/bun");
export const ENGINE = at(".engine/bin/llama-server");
/** Models that only tests need, kept out of the directory that the daemon scans. */
export const TEST_SHAPES = ["slow", "embedding", "rerank"];

const PACKAGES_STAMP = at("node_modules/.orchestratord-stamp");
const ENGINE_STAMP = at(".engine/.engine-stamp");
const OWN_ENGINE = at(".engine/llama/bin");
const LOCK = at(".engine/setup.lock");
const LOCK_WAIT_MS = 15 * 60_000; // a first install on a slow line
const ENGINE_PROBE_TIMEOUT_MS = 60_000; // a CUDA build looks at every device before it tells its version
const STEPS = ["packages", "engine", "models"];

/** A failure that the person at the keyboard can mend: its message is printed without a stack. */
export class SetupError extends Error {}

const say = (line) => process.stdout.write(`setup: ${line}\n`);
const sha256 = (...chunks) =>
  chunks.reduce((hash, chunk) => hash.update(chunk), createHash("sha256")).digest("hex");

function readOr(file, otherwise) {
  try {
    return fs.readFileSync(file, "utf8");
  } catch (error) {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return otherwise;
    throw error;
  }
}

/** Identity of a program as installed, cheaper than running it: changes whenever it is replaced. "" when missing. */
function fingerprint(program) {
  try {
    const real = fs.realpathSync(program);
    const { size, mtimeMs } = fs.statSync(real);
    return `${real} ${size} ${mtimeMs}`;
  } catch {
    return ""; // missing or a dangling link: the step that owns it decides what to do
  }
}

function runs(program) {
  const probe = spawnSync(program, ["--version"], { stdio: "ignore", timeout: ENGINE_PROBE_TIMEOUT_MS });
  return probe.status === 0;
}

/**
 * Runs a command to its end, quietly; its output is kept for the message when it fails. It is entered in the lock: should
 * this process be killed, the next setup waits for the orphan instead of working against it.
 */
async function run(command, args, env = process.env) {
  const child = spawn(command, args, { cwd: ROOT, env, stdio: ["ignore", "pipe", "pipe"] });
  running.add(child);
  if (child.pid !== undefined) fs.appendFileSync(LOCK, `\n${processMark(child.pid)}`);
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text) => {
      output = (output + text).slice(-20_000);
    });
  }
  try {
    const status = await new Promise((resolve, reject) => {
      child.once("error", (cause) => reject(new SetupError(`cannot run ${command}: ${cause.message}`)));
      child.once("close", (code) => resolve(code ?? 1));
    });
    if (stopping) await once(process, "exit"); // the signal's handler brings it about
    return { ok: status === 0, output: output.trim() };
  } finally {
    running.delete(child);
  }
}
const running = new Set();
let stopping = false;

// --- packages ---------------------------------------------------------------------------------------------------------

function packagesStamp() {
  return `${sha256(fs.readFileSync(at("package-lock.json")))}\n${fingerprint(BUN)}\n`;
}
const packagesReady = () => readOr(PACKAGES_STAMP, "") === packagesStamp() && fingerprint(BUN) !== "";

/** Whether node_modules holds what the lock file says, by npm's own record of it: spares a tree that `npm install` made. */
function treeMatchesLock() {
  const record = readOr(at("node_modules/.package-lock.json"), "");
  if (record === "") return false;
  const want = JSON.parse(fs.readFileSync(at("package-lock.json"), "utf8")).packages;
  const have = JSON.parse(record).packages;
  for (const [where, entry] of Object.entries(want)) {
    if (where === "") continue;
    const found = have[where];
    if (found === undefined && entry.optional) continue; // another platform's binary
    if (found?.version !== entry.version || found.integrity !== (entry.integrity ?? found.integrity))
      return false;
    if (!fs.existsSync(at(where, "package.json"))) return false;
  }
  return Object.keys(have).every((where) => where in want);
}

async function installPackages() {
  if (readOr(PACKAGES_STAMP, "").split("\n")[0] !== packagesStamp().split("\n")[0] && !treeMatchesLock()) {
    say("packages: npm ci");
    // Bun itself is a development dependency: it must come along under NODE_ENV=production too.
    const flags = ["--include=dev", "--include=optional", "--no-audit", "--no-fund", "--loglevel=error"];
    const ci = await run("npm", ["ci", ...flags]);
    if (!ci.ok) throw new SetupError(`npm ci failed:\n${ci.output}\nMend the above and run again.`);
  }
  // .npmrc turns install scripts off for everyone; Bun's only puts the binary of this platform in place.
  if (!runs(BUN)) {
    const link = await run(process.execPath, [at("node_modules/bun/install.js")]);
    if (!runs(BUN)) {
      throw new SetupError(
        `node_modules/.bin/bun does not run on this machine (${process.platform} ${process.arch}).\n${link.output}\n` +
          "Remove node_modules and run again; Bun needs Linux or macOS on x64 (with AVX2) or arm64.",
      );
    }
  }
  fs.writeFileSync(PACKAGES_STAMP, packagesStamp());
}

// --- engine -----------------------------------------------------------------------------------------------------------

/** Full path of a program given by path or by bare name; undefined when there is none. */
function locate(program) {
  const places = program.includes("/")
    ? [path.resolve(program)]
    : (process.env.PATH ?? "").split(path.delimiter).map((folder) => path.join(folder || ".", program));
  return places.find((place) => {
    try {
      fs.accessSync(place, fs.constants.X_OK);
      return fs.statSync(place).isFile();
    } catch {
      return false; // not here: the next place
    }
  });
}

/** The engine that was asked for by name, as a real path. It wins over one linked earlier. */
function chosenEngine(engineBin) {
  const choice = engineBin ?? (process.env.ORCHD_LLAMA_SERVER || undefined);
  if (choice === undefined || path.resolve(choice) === ENGINE) return undefined;
  const found = locate(choice);
  if (found === undefined)
    throw new SetupError(`no program at ${choice}: mend --engine-bin or ORCHD_LLAMA_SERVER`);
  return fs.realpathSync(found);
}

/** Installed here before the rpc-server belonged to it. */
const lacksRpcServer = () =>
  fs.existsSync(path.join(OWN_ENGINE, "llama-server")) &&
  !fs.existsSync(path.join(OWN_ENGINE, "ggml-rpc-server")) &&
  fs.realpathSync(ENGINE).startsWith(at(".engine/llama") + path.sep);

function engineReady(engineBin) {
  const now = fingerprint(ENGINE);
  if (now !== "" && lacksRpcServer()) return false;
  const chosen = chosenEngine(engineBin);
  return (
    now !== "" &&
    now === readOr(ENGINE_STAMP, "") &&
    (chosen === undefined || fs.realpathSync(ENGINE) === chosen)
  );
}

/** Makes .engine/bin hold these links, name → program, and nothing else. */
function linkEngine(programs) {
  const folder = path.dirname(ENGINE);
  fs.mkdirSync(folder, { recursive: true });
  for (const [name, program] of programs) {
    // Inside the tree the link is relative: the tree may move.
    const target = program.startsWith(ROOT + path.sep) ? path.relative(folder, program) : program;
    const fresh = path.join(folder, `.${name}.${process.pid}`);
    fs.symlinkSync(target, fresh);
    fs.renameSync(fresh, path.join(folder, name));
  }
  for (const name of fs.readdirSync(folder)) if (!programs.has(name)) fs.rmSync(path.join(folder, name));
}

/** Links a llama-server of the machine, by this name whatever it is called there, and the RPC server beside it. */
function linkForeignEngine(server) {
  const beside = ["ggml-rpc-server", "rpc-server"].map((name) => [
    name,
    path.join(path.dirname(server), name),
  ]);
  linkEngine(new Map([...beside.filter(([, program]) => fs.existsSync(program)), ["llama-server", server]]));
}

/** Links what scripts/install-engine.sh has put into the tree. */
function linkOwnEngine() {
  linkEngine(new Map(fs.readdirSync(OWN_ENGINE).map((name) => [name, path.join(OWN_ENGINE, name)])));
}

async function installEngine(engineBin) {
  const chosen = chosenEngine(engineBin);
  const found = locate("llama-server");
  const upgrades = chosen === undefined && runs(ENGINE) && lacksRpcServer();
  if (chosen !== undefined) {
    if (!runs(chosen)) {
      throw new SetupError(
        `${chosen} --version fails: --engine-bin or ORCHD_LLAMA_SERVER is no llama-server`,
      );
    }
    say(`engine: linking ${chosen}`);
    linkForeignEngine(chosen);
  } else if (runs(ENGINE) && !upgrades) {
    // Replaced since the last time, by a hand-run install-engine.sh that may have brought more programs.
    if (fs.realpathSync(ENGINE).startsWith(at(".engine/llama") + path.sep)) linkOwnEngine();
  } else if (found !== undefined && !upgrades && runs(found)) {
    say(`engine: linking ${found}`);
    linkForeignEngine(fs.realpathSync(found));
  } else {
    if (
      !runs(path.join(OWN_ENGINE, "llama-server")) ||
      !fs.existsSync(path.join(OWN_ENGINE, "ggml-rpc-server"))
    ) {
      say("engine: installing llama.cpp from Debian into .engine/llama");
      const install = await run("sh", [at("scripts/install-engine.sh"), at(".engine/llama")]);
      // Without a network what is there goes on; only tests of several devices want the rpc-server.
      if (!install.ok && upgrades)
        say("engine: its rpc-server could not be installed, see scripts/install-engine.sh");
      else if (!install.ok) {
        throw new SetupError(
          `no engine: scripts/install-engine.sh failed:\n${install.output}\n` +
            "Install llama.cpp yourself, then run again with ORCHD_LLAMA_SERVER=/path/to/llama-server.",
        );
      }
    }
    linkOwnEngine();
    if (!runs(ENGINE)) throw new SetupError(`${ENGINE} does not run: remove .engine and run again`);
  }
  fs.writeFileSync(ENGINE_STAMP, fingerprint(ENGINE));
}

// --- models -----------------------------------------------------------------------------------------------------------

const GENERATOR = at("scripts/make-demo-model.ts");

function modelFile(shape) {
  return shape === "demo" ? at(".engine/models/demo.gguf") : at(".engine/test-models", `${shape}.gguf`);
}
const modelStampFile = (shape) => path.join(path.dirname(modelFile(shape)), `.${shape}-stamp`);

function generatorStamp() {
  const parts = at("scripts/model");
  const names = fs.existsSync(parts) ? fs.readdirSync(parts, { recursive: true }).sort() : [];
  const files = [GENERATOR, ...names.map((name) => path.join(parts, name))].filter((file) =>
    fs.statSync(file).isFile(),
  );
  return sha256(...files.map((file) => fs.readFileSync(file)));
}

function missingModels(shapes) {
  const stamp = generatorStamp();
  return ["demo", ...shapes].filter(
    (shape) => !fs.existsSync(modelFile(shape)) || readOr(modelStampFile(shape), "") !== stamp,
  );
}

async function makeModels(shapes) {
  const stamp = generatorStamp();
  for (const shape of missingModels(shapes)) {
    const file = modelFile(shape);
    say(`model: making ${path.relative(ROOT, file)}`);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    const draft = path.join(path.dirname(file), `.${shape}.${process.pid}.tmp`); // not *.gguf: a daemon may be scanning
    const make = await run(BUN, [GENERATOR, "--out", draft, "--shape", shape]);
    if (!make.ok) {
      fs.rmSync(draft, { force: true });
      throw new SetupError(`scripts/make-demo-model.ts --shape ${shape} failed:\n${make.output}`);
    }
    fs.renameSync(draft, file);
    fs.writeFileSync(modelStampFile(shape), stamp);
  }
}

// --- lock -------------------------------------------------------------------------------------------------------------

/** A process told apart from a later one with the same pid by its start time (Linux; elsewhere the pid must do). */
function processMark(pid) {
  return `${pid} ${processFields(pid)[19] ?? ""}`.trim();
}

/** /proc/PID/stat from the state on, which follows a name that may hold anything. */
function processFields(pid) {
  const stat = readOr(`/proc/${pid}/stat`, "");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

function isAlive(mark) {
  const pid = Number(mark.split(" ")[0]);
  if (!Number.isInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error.code === "ESRCH") return false; // EPERM: it lives under another user
  }
  return processMark(pid) === mark && processFields(pid)[0] !== "Z";
}

/** One attempt at the lock: undefined when it is ours, the mark of a living owner, "" when it pays to try again at once. */
function tryLock() {
  const draft = `${LOCK}.${process.pid}`;
  fs.writeFileSync(draft, processMark(process.pid));
  try {
    fs.linkSync(draft, LOCK); // a link appears with its content, unlike a file that is created and then written
    return undefined;
  } catch (error) {
    if (error.code !== "EEXIST") throw error;
  } finally {
    fs.rmSync(draft);
  }
  const owner = readOr(LOCK, undefined);
  if (owner === undefined) return ""; // released in between
  const alive = owner.split("\n").find(isAlive);
  if (alive !== undefined) return alive;
  // Rename decides between several that saw the same dead owner. One that comes late may have caught a living owner's
  // lock instead: it goes back.
  const stale = `${LOCK}.stale.${process.pid}`;
  try {
    fs.renameSync(LOCK, stale);
    if (fs.readFileSync(stale, "utf8") !== owner) fs.linkSync(stale, LOCK);
  } catch (error) {
    if (error.code !== "ENOENT" && error.code !== "EEXIST") throw error;
  } finally {
    fs.rmSync(stale, { force: true });
  }
  return "";
}

async function underLock(work) {
  fs.mkdirSync(path.dirname(LOCK), { recursive: true });
  const giveUpAtMs = performance.now() + LOCK_WAIT_MS;
  let told = false;
  for (let owner = tryLock(); owner !== undefined; owner = tryLock()) {
    if (owner !== "" && !told) say(`waiting for the setup that runs as process ${owner.split(" ")[0]}`);
    told ||= owner !== "";
    if (performance.now() > giveUpAtMs) throw new SetupError(`the lock ${LOCK} was not released: remove it`);
    await sleep(owner === "" ? 5 : 100);
  }
  const release = () => fs.rmSync(LOCK, { force: true });
  const stop = async (signal) => {
    stopping = true;
    for (const child of running) child.kill("SIGTERM");
    await Promise.all([...running].map((child) => once(child, "close"))); // npm undoes a half-done install
    process.exit(signal === "SIGINT" ? 130 : 143);
  };
  process.on("exit", release).on("SIGINT", stop).on("SIGTERM", stop);
  try {
    await work();
  } finally {
    process.off("exit", release).off("SIGINT", stop).off("SIGTERM", stop);
    release();
  }
}

// --- entry ------------------------------------------------------------------------------------------------------------

/**
 * Does what is missing of the given steps, in order.
 * @param {{only?: string[], shapes?: string[], engineBin?: string}} options `only` names steps (all by default), `shapes`
 *   further test models, `engineBin` the llama-server to use.
 * @throws {SetupError} with a message that says what to do.
 */
export async function setup({ only = STEPS, shapes = [], engineBin } = {}) {
  const steps = {
    packages: { ready: packagesReady, work: installPackages },
    engine: { ready: () => engineReady(engineBin), work: () => installEngine(engineBin) },
    models: { ready: () => missingModels(shapes).length === 0, work: () => makeModels(shapes) },
  };
  const wanted = STEPS.filter((name) => only.includes(name)).map((name) => steps[name]);
  if (wanted.every((step) => step.ready())) return;
  await underLock(async () => {
    for (const step of wanted) if (!step.ready()) await step.work();
  });
}

/** Ends the process for an error that left setup(), start or test: known ones as a message, others with their stack. */
export function fail(error) {
  process.stderr.write(`${error instanceof SetupError ? `setup: ${error.message}` : error.stack}\n`);
  process.exit(1);
}

function parse(args) {
  const options = {};
  for (let i = 0; i < args.length; i++) {
    const [flag, inline] = args[i].split(/=(.*)/s);
    const value = () => inline ?? args[++i] ?? "";
    const list = (allowed) => {
      const names = value().split(",");
      const unknown = names.find((name) => !allowed.includes(name));
      if (unknown !== undefined)
        throw new SetupError(`${flag} knows ${allowed.join(", ")}, not "${unknown}"`);
      return names;
    };
    if (flag === "--only") options.only = list(STEPS);
    else if (flag === "--shapes") options.shapes = list(TEST_SHAPES);
    else if (flag === "--engine-bin") options.engineBin = value();
    else throw new SetupError(`unknown argument ${args[i]}; there are --only=, --shapes= and --engine-bin=`);
  }
  return options;
}

if (process.argv[1] && import.meta.url === pathToFileURL(fs.realpathSync(process.argv[1])).href) {
  Promise.resolve()
    .then(() => setup(parse(process.argv.slice(2))))
    .catch(fail);
}
