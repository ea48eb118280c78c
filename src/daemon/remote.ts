/**
 * Layers from registries, as configured: the client, where its credentials come from, and the CRI proxy that hears of them. Nothing of
 * this is loaded when `remote.enabled` is false.
 */
import type { Log } from "../log/index.ts";
import type { CredentialSource } from "../registry/index.ts";
import { RpcClient, RpcServer } from "../rpc/index.ts";
import type { DiskBudget, RegistryLayers, RemoteEvent } from "../snapshotter/remote/index.ts";
import type { Store } from "../store/index.ts";
import type { Config } from "./config/index.ts";
import { describeError } from "./observer.ts";

export interface RemoteParts {
  readonly store: Store;
  readonly disk: DiskBudget;
  readonly log: Log;
  readonly onEvent: (event: RemoteEvent) => void;
}

export interface Remote extends AsyncDisposable {
  readonly layers: RegistryLayers;
  /** Opens the socket for the kubelet, if there is to be one. */
  listen(): Promise<void>;
}

/** kubelet waits for the pull; what is under way when the daemon stops is tried again. */
const DRAIN_MS = 1_000;

export async function openRemote(config: Config, parts: RemoteParts): Promise<Remote | undefined> {
  if (!config.remote.enabled) return undefined;
  const { RegistryClient } = await import("../registry/index.ts");
  const { RegistryLayers } = await import("../snapshotter/remote/index.ts");
  const { logRegistryEvent } = await import("../registry/log.ts");
  const { store, disk, log, onEvent } = parts;
  await using stack = new AsyncDisposableStack();
  const credentials: CredentialSource[] = [];
  const listen = await openCriProxy(config, log, credentials, stack);
  await openPullSecrets(config, log, credentials, stack);
  const { hostsDir, authFile } = config.remote;
  const client = stack.use(
    new RegistryClient({
      ...(hostsDir === "" ? {} : { hostsDirs: [hostsDir] }),
      ...(authFile === "" ? {} : { authFile }),
      credentials,
      log: (event) => logRegistryEvent(log, event),
    }),
  );
  const { images, layers, layersOfImage, bytesInFlight } = config.limits;
  const limits = { images, layers, layersOfImage, bytesInFlight };
  const made = stack.use(new RegistryLayers({ store, client, disk, limits, onEvent }));
  const owned = stack.move();
  return { layers: made, listen, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** The kubelet's own credentials, heard as they pass: they are the newest, so they are asked first. */
async function openCriProxy(
  { criProxy }: Config,
  log: Log,
  credentials: CredentialSource[],
  stack: AsyncDisposableStack,
): Promise<() => Promise<void>> {
  if (criProxy.address === "") return async () => undefined;
  const { PullCredentials, serveImageService } = await import("../cri-proxy/index.ts");
  const known = new PullCredentials();
  credentials.push(known);
  const containerd = stack.use(new RpcClient(criProxy.backend));
  const server = new RpcServer();
  stack.defer(() => server.close(DRAIN_MS));
  serveImageService(server, {
    containerd,
    credentials: known,
    onProblem: (image, error) => log.warn(`Cannot use the credentials of a pull: ${describeError(error)}`, { image }),
  });
  return async () => {
    await server.listen(criProxy.address);
    log.info("Passing CRI image calls on", { address: criProxy.address, backend: criProxy.backend });
  };
}

async function openPullSecrets(
  { remote }: Config,
  log: Log,
  credentials: CredentialSource[],
  stack: AsyncDisposableStack,
): Promise<void> {
  if (remote.kubeconfig === "") return;
  const { PullSecrets } = await import("../kubernetes/index.ts");
  const secrets = new PullSecrets({
    kubeconfig: remote.kubeconfig,
    onProblem: (problem) => log.warn(`Cannot read the cluster's pull secrets: ${describeError(problem)}`),
  });
  stack.use(secrets);
  credentials.push(secrets);
}
