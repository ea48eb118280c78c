/** grpc.health.v1: whether the daemon takes calls. containerd never asks; probes and operators do. */
import { ShaleError } from "../../errors/index.ts";
import type { Handlers } from "../../rpc/index.ts";
import { type HealthMethods, SERVING_STATUS } from "./messages.ts";

export class Health {
  readonly #services: ReadonlySet<string>;
  #serving = false;
  #changed = Promise.withResolvers<void>();
  #ended = false;

  /** The names that clients may ask for, beside "" for the whole. */
  constructor(services: readonly string[]) {
    this.#services = new Set(["", ...services]);
  }

  get serving(): boolean {
    return this.#serving;
  }

  set serving(serving: boolean) {
    this.#serving = serving;
    this.#wake();
  }

  /** Ends the streams of those that watch, so that they hold no shutdown up. */
  end(): void {
    this.#serving = false;
    this.#ended = true;
    this.#wake();
  }

  handlers(): Handlers<HealthMethods> {
    const health = this;
    return {
      Check({ service }) {
        if (!health.#services.has(service)) {
          throw new ShaleError("NOT_FOUND", `Cannot check ${service}: there is no such service here`);
        }
        return { status: health.#status() };
      },
      async *Watch({ service }, { signal }) {
        const stopped = new Promise<void>((resolve) => {
          signal.addEventListener("abort", () => resolve(), { once: true });
        });
        const known = health.#services.has(service);
        for (let last = -1; !signal.aborted; ) {
          const changed = health.#changed.promise;
          const status = known ? health.#status() : SERVING_STATUS.serviceUnknown;
          if (status !== last) yield { status };
          last = status;
          if (health.#ended) return;
          await Promise.race([changed, stopped]);
        }
      },
    };
  }

  #status(): number {
    return this.#serving ? SERVING_STATUS.serving : SERVING_STATUS.notServing;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}
