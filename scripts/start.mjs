// `npm start`: from a fresh clone to a daemon that serves the demo model, in one command.
// Sets up, builds, runs dist/orchestratord in the foreground and prints a request to try once it is ready.
//
// What holds: one Ctrl-C is one signal for the daemon, however many processes of the terminal's group pass it on; the
// daemon never outlives this process, nor this process npm; the daemon's exit code is the one that leaves here.

import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { BUN, ENGINE, fail, ROOT, SetupError, setup } from "./setup.mjs";

const READY_POLL_MS = 50;
const READY_TIMEOUT_MS = 60_000;
const PARENT_POLL_MS = 500;
// Ctrl-C in a terminal reaches npm and this process, and npm passes its own on: the same key press within microseconds.
// A person's second one takes longer than this.
const SIGNAL_ECHO_MS = 250;

const DEFAULTS = {
  "--addr": process.env.ORCHD_ADDR || "127.0.0.1:8080",
  "--state-dir": process.env.ORCHD_STATE_DIR || ".run/state",
  "--models-dir": ".engine/models",
  "--engine-bin": path.relative(ROOT, ENGINE),
};

/** The value of a flag given as `--flag VALUE` or `--flag=VALUE`; the last one counts. */
function flagValue(args, flag) {
  let value;
  args.forEach((argument, i) => {
    if (argument === flag) value = args[i + 1];
    else if (argument.startsWith(`${flag}=`)) value = argument.slice(flag.length + 1);
  });
  return value;
}

/** Where a client on this machine reaches the address; undefined when that is not known beforehand (port 0). */
function clientAddress(addr) {
  const parts = /^(?:\[(?<six>[^\]]*)\]|(?<four>[^:]*)):(?<port>\d+)$/.exec(addr)?.groups;
  if (!parts || Number(parts.port) === 0) return undefined;
  const given = parts.six ?? parts.four;
  const host = { "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1" }[given] ?? given;
  return {
    host,
    port: Number(parts.port),
    url: `http://${host.includes(":") ? `[${host}]` : host}:${parts.port}`,
  };
}

function isListening({ host, port }) {
  return new Promise((resolve) => {
    const socket = net.connect({ host, port, timeout: 1000 });
    const done = (answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket
      .once("connect", () => done(true))
      .once("error", () => done(false))
      .once("timeout", () => done(false));
  });
}

function isReady(url) {
  return new Promise((resolve) => {
    // Without an agent: no idle connection is left for the daemon to wait for.
    http
      .get(`${url}/readyz`, { agent: false, timeout: 2000 }, (response) => {
        response.resume();
        resolve(response.statusCode === 200);
      })
      .once("timeout", function () {
        this.destroy();
      })
      .once("error", () => resolve(false)); // not up yet
  });
}

/** The line to copy. Paths are relative to where npm was called, so that it works there as printed. */
function curlLine(url, stateDir) {
  const keyFile = path.join(stateDir, "api-key");
  const callerDir = process.env.INIT_CWD ?? process.cwd();
  const shown = callerDir === ROOT && !path.isAbsolute(keyFile) ? keyFile : path.resolve(ROOT, keyFile);
  const key = existsSync(path.resolve(ROOT, keyFile)) ? ` -H "X-API-Key: $(cat ${shown})"` : "";
  return (
    `curl -N ${url}/v1/tasks${key} -H 'Content-Type: application/json' -H 'Accept: text/event-stream'` +
    ` -d '{"prompt":"The harbour","max_tokens":64}'`
  );
}

async function announce(daemon, url, stateDir) {
  const giveUpAtMs = performance.now() + READY_TIMEOUT_MS;
  while (!(await isReady(url))) {
    if (daemon.exitCode !== null || daemon.signalCode !== null) return;
    if (performance.now() > giveUpAtMs) {
      process.stdout.write(
        `not ready after ${READY_TIMEOUT_MS / 1000} s: see ${url}/readyz and the log above\n`,
      );
      return;
    }
    await sleep(READY_POLL_MS);
  }
  const readyMs = Math.round(performance.now()); // since this process started
  process.stdout.write(`\nready in ${readyMs} ms; try it:\n\n  ${curlLine(url, stateDir)}\n\n`);
}

/** The daemon leads a process group of its own, so that it gets exactly the signals that are passed on below. */
function startDaemon(args) {
  return spawn(path.join(ROOT, "dist/orchestratord"), args, { cwd: ROOT, stdio: "inherit", detached: true });
}

/**
 * Stops the daemon when this process dies without having had the chance (kill -9): a shell waits for the end of a pipe
 * that only this process holds. Not PR_SET_PDEATHSIG: that fires once for each dying thread of Node, and the daemon takes
 * the second signal for an impatient person's. Returns the guard; to be killed when the daemon has gone.
 */
function guard(daemon) {
  const script = 'read -r line || kill -TERM "$1"';
  const shell = spawn("sh", ["-c", script, "guard", String(daemon.pid)], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true,
  });
  shell.unref();
  return shell;
}

function passSignalsOn(daemon) {
  const lastAtMs = {};
  let asked = false;
  const pass = (signal) => {
    asked = true;
    daemon.kill(signal);
  };
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => {
      const nowMs = performance.now();
      const isEcho = nowMs - (lastAtMs[signal] ?? Number.NEGATIVE_INFINITY) < SIGNAL_ECHO_MS;
      lastAtMs[signal] = nowMs;
      if (!isEcho) pass(signal);
    });
  }
  // Nobody is there any more to be impatient: these ask for a clean stop, and only when none was asked for.
  const abandoned = () => asked || pass("SIGTERM");
  process.on("SIGHUP", abandoned); // the terminal closed
  // Started by npm, a new parent means that npm was killed. Started from a shell, it may leave us behind on purpose.
  if (process.env.npm_lifecycle_event !== "start") return;
  const npm = process.ppid;
  const watch = setInterval(() => {
    if (process.ppid === npm) return;
    clearInterval(watch);
    abandoned();
  }, PARENT_POLL_MS);
  watch.unref();
}

async function start(given) {
  await setup({ engineBin: flagValue(given, "--engine-bin") });
  const build = spawnSync(BUN, [path.join(ROOT, "scripts/build.ts")], { cwd: ROOT, stdio: "inherit" });
  if (build.status !== 0) throw new SetupError("the build failed, see above");

  const defaults = Object.entries(DEFAULTS).filter(([flag]) => flagValue(given, flag) === undefined);
  const args = [...defaults.flat(), ...given];
  const address = clientAddress(flagValue(args, "--addr") ?? "");
  const isTaken = address !== undefined && (await isListening(address)); // the daemon will say so; another's /readyz must not
  const daemon = startDaemon(args);
  daemon.once("error", fail);
  passSignalsOn(daemon);
  const shell = guard(daemon);
  daemon.once("exit", (code, signal) => {
    shell.kill("SIGKILL");
    process.exit(code ?? 128 + os.constants.signals[signal]);
  });
  if (address !== undefined && !isTaken) await announce(daemon, address.url, flagValue(args, "--state-dir"));
}

start(process.argv.slice(2)).catch(fail);
