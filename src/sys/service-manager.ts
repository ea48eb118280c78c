/**
 * The service manager's side of a daemon: sd_notify(3) and the watchdog of sd_watchdog_enabled(3). Without systemd every call does
 * nothing.
 *
 * The variables are taken out of the environment when they are read, so that programs which this one starts can't speak for it.
 */
import { sendUnixDatagram } from "./libc.ts";

export interface ServiceManager {
  /** Whether anybody listens. */
  readonly present: boolean;
  /** Half of the time after which the service is killed when it is silent; undefined when it is not watched. */
  readonly watchdogMs: number | undefined;
  /** Says one or more lines, "READY=1" or "STATUS=...". Errors of the socket are thrown. */
  notify(...lines: readonly string[]): void;
}

export function serviceManager(env: NodeJS.ProcessEnv = process.env, pid: number = process.pid): ServiceManager {
  const { NOTIFY_SOCKET: socket, WATCHDOG_USEC, WATCHDOG_PID } = env;
  for (const name of ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]) delete env[name];
  const usable = socket !== undefined && /^[/@]./.test(socket);
  const microseconds = Number(WATCHDOG_USEC);
  const watched =
    usable && microseconds > 0 && Number.isSafeInteger(microseconds) && [undefined, String(pid)].includes(WATCHDOG_PID);
  return {
    present: usable,
    watchdogMs: watched ? Math.max(1, Math.floor(microseconds / 2000)) : undefined,
    notify(...lines) {
      if (usable) sendUnixDatagram(socket, Buffer.from(lines.join("\n")));
    },
  };
}

/** CLOCK_MONOTONIC in microseconds, which systemd wants with RELOADING=1. */
export function monotonicMicroseconds(): bigint {
  return process.hrtime.bigint() / 1000n;
}
