/** Signals to this process, beside those that end a command. */

/** Calls `handler` for each signal until it is disposed of; without one, most signals end the process. */
export function onSignal(name: "SIGHUP" | "SIGUSR1" | "SIGUSR2", handler: () => void): Disposable {
  process.on(name, handler);
  return { [Symbol.dispose]: () => void process.off(name, handler) };
}
