/**
 * The program: argv → a command → an exit code. Alone touches process.exit; everything else returns a code or
 * throws. `argv` begins with the interpreter and the script, in the compiled binary too.
 *
 * Always holds: `__guard` loads nothing but the guard, so that the process which outlives the daemon stays small.
 */

async function main(argv: readonly string[]): Promise<number> {
  if (argv[0] === "__guard") {
    const { runGuard } = await import("./cli/guard.ts");
    return runGuard(argv.slice(1));
  }
  const { parseArgs } = await import("./cli/args.ts");
  const { print, printError } = await import("./cli/print.ts");
  const parsed = parseArgs(argv);
  switch (parsed.command) {
    case "help":
      await print(parsed.text);
      return 0;
    case "usage-error":
      await printError(`${parsed.text}\n`);
      return 2;
    case "version": {
      const { version } = await import("./cli/version.ts");
      return version();
    }
    case "check-config": {
      const { checkConfig } = await import("./cli/check-config.ts");
      return checkConfig(parsed.flags, (await import("./app/bootstrap.ts")).composition);
    }
    case "replay": {
      const { replay } = await import("./cli/replay.ts");
      return replay(parsed.replay, parsed.flags, (await import("./app/bootstrap.ts")).composition);
    }
    case "fetch": {
      const { fetchModel } = await import("./cli/fetch.ts");
      return fetchModel(parsed.fetch, parsed.flags, (await import("./app/bootstrap.ts")).composition);
    }
    case "serve": {
      const { serve } = await import("./cli/serve.ts");
      return serve(parsed.flags, (await import("./app/bootstrap.ts")).composition);
    }
  }
}

process.exit(await main(process.argv.slice(2)));
