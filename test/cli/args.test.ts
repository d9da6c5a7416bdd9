/** The command line: what each argv means, and what is refused with which hint (ORCHD-CLI-1). */
import { describe, expect, test } from "bun:test";
import { parseArgs } from "../../src/cli/args.ts";

const none = {
  addr: undefined,
  config: undefined,
  stateDir: undefined,
  modelsDir: undefined,
  engineBin: undefined,
  logLevel: undefined,
};

describe("commands", () => {
  test.each([[[]], [["serve"]]])("%j serves", (argv) => {
    expect(parseArgs(argv)).toEqual({ command: "serve", flags: none });
  });

  test("every flag, with a blank or =, before or after the command", () => {
    const argv = [
      "--addr",
      "a:1",
      "serve",
      "--config=c",
      "--state-dir",
      "s",
      "--models-dir=m",
      "--engine-bin",
      "e",
      "--log-level=debug",
    ];
    expect(parseArgs(argv)).toEqual({
      command: "serve",
      flags: { addr: "a:1", config: "c", stateDir: "s", modelsDir: "m", engineBin: "e", logLevel: "debug" },
    });
  });

  test("the last one of a flag counts", () => {
    expect(parseArgs(["--addr", "a:1", "--addr", "b:2"])).toEqual({
      command: "serve",
      flags: { ...none, addr: "b:2" },
    });
  });

  test("--check-config and --version", () => {
    expect(parseArgs(["--check-config", "--config", "c"])).toEqual({
      command: "check-config",
      flags: { ...none, config: "c" },
    });
    expect(parseArgs(["--version"])).toEqual({ command: "version" });
    expect(parseArgs(["serve", "--version"])).toEqual({ command: "version" });
  });

  test("fetch takes one model, and flags of its own", () => {
    const fetch = { ref: "hf:a/b/c.gguf", server: undefined, keyFile: undefined, json: undefined };
    expect(parseArgs(["fetch", "hf:a/b/c.gguf"])).toEqual({
      command: "fetch",
      flags: none,
      fetch: { ...fetch, id: undefined, sha256: undefined },
    });
    expect(parseArgs(["fetch", "hf:a/b/c.gguf", "--id", "m", "--sha256", "d"])).toMatchObject({
      fetch: { ...fetch, id: "m", sha256: "d" },
    });
    for (const [argv, part] of [
      [["fetch"], "fetch needs a model"],
      [["fetch", "a", "b"], "unknown argument b"],
      [["--id", "m"], "--id goes with the command fetch"],
      [["replay", "a", "--sha256", "d"], "--sha256 goes with the command fetch"],
    ] as const)
      expect(parseArgs(argv)).toMatchObject({ command: "usage-error", text: expect.stringContaining(part) });
  });

  test("replay takes one artifact, and flags of its own", () => {
    expect(parseArgs(["replay", "abc"])).toEqual({
      command: "replay",
      flags: none,
      replay: { artifact: "abc", server: undefined, keyFile: undefined, json: undefined },
    });
    expect(parseArgs(["replay", "--json", "abc", "--server=u", "--key-file", "k", "--config", "c"])).toEqual({
      command: "replay",
      flags: { ...none, config: "c" },
      replay: { artifact: "abc", server: "u", keyFile: "k", json: true },
    });
    const wrong: readonly (readonly [string[], string])[] = [
      [["replay"], "replay needs the id"],
      [["replay", "a", "b"], "unknown argument b"],
      [["--server", "u"], "--server goes with the command replay"],
      [["serve", "--json"], "--json goes with the command replay"],
      [["repaly", "a"], "did you mean replay?"],
    ];
    for (const [argv, message] of wrong) {
      const parsed = parseArgs(argv);
      if (parsed.command !== "usage-error") throw new Error(parsed.command);
      expect(parsed.text).toContain(message);
    }
  });

  test("--help names every flag and the exit codes", () => {
    const parsed = parseArgs(["--help"]);
    if (parsed.command !== "help") throw new Error(parsed.command);
    for (const flag of [
      "--addr",
      "--config",
      "--state-dir",
      "--models-dir",
      "--engine-bin",
      "--log-level",
      "--check-config",
      "--server",
      "--key-file",
      "--json",
      "--version",
      "--help",
    ]) {
      expect(parsed.text).toContain(flag);
    }
    expect(parsed.text).toContain("Usage: orchestratord");
    expect(parsed.text).toContain("Exit codes");
  });
});

describe("usage errors", () => {
  const table: [string[], string][] = [
    [["--adr", "x"], "orchestratord: unknown flag --adr; did you mean --addr?"],
    [["--statedir=x"], "orchestratord: unknown flag --statedir; did you mean --state-dir?"],
    [["--hlep"], "orchestratord: unknown flag --hlep; did you mean --help?"],
    [["-x"], "orchestratord: unknown flag -x"],
    [["--xyzzyplugh"], "orchestratord: unknown flag --xyzzyplugh"],
    [["sevre"], "orchestratord: unknown command sevre; did you mean serve?"],
    [["serve", "now"], "orchestratord: unknown argument now"],
    [["--addr"], "orchestratord: option '--addr <host:port>' argument missing"],
    [["--check-config=yes"], "orchestratord: --check-config takes no value"],
  ];
  test.each(table)("%j", (argv, text) => {
    const parsed = parseArgs(argv);
    if (parsed.command !== "usage-error") throw new Error(parsed.command);
    expect(parsed.text.split("\n")[0]).toBe(text);
    expect(parsed.text).toEndWith("See orchestratord --help.");
  });
});
