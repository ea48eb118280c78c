/** The registry client's events as lines of a log. */
import type { Log } from "../log/index.ts";
import type { RegistryEvent } from "./events.ts";

/** What a user wants to know unasked is a warning or information; each request is for debugging. */
export function logRegistryEvent(log: Log, event: RegistryEvent): void {
  switch (event.kind) {
    case "request":
      log.debug(`${event.method} ${event.url}`, { status: event.status, ms: Math.round(event.durationMs) });
      break;
    case "token":
      log.debug("Got an access token", { host: event.host, repository: event.repository });
      break;
    case "retry":
      log.warn(`Trying ${event.host} again: ${event.reason}`, { attempt: event.attempt, waitMs: event.waitMs });
      break;
    case "resume":
      log.info(`Going on with ${event.digest} after a break`, { host: event.host, offset: event.offset });
      break;
    case "fallback":
      log.warn(`Asking ${event.to} instead of ${event.host}: ${event.reason}`);
      break;
    case "credentials":
      log.warn(event.problem);
      break;
  }
}
