/**
 * CRI's image service between kubelet and containerd: how a node's snapshotter gets to know the credentials of a pull, which
 * containerd never hands on. kubelet's `--image-service-endpoint` (or `imageServiceEndpoint`) names this socket.
 *
 * Guarantees
 * - Every request and answer of runtime.v1.ImageService goes through byte by byte, also fields that we do not know.
 * - Of PullImage, image and credentials are remembered before it is passed on, in memory only, for `CredentialSource`.
 * - Credentials that can't be read are containerd's to refuse: the call goes on. None is ever in a message or a log.
 */
import { type Call, type Handlers, loadService, type Method, type RpcClient, type RpcServer } from "../rpc/index.ts";
import type { AuthConfig, PullCredentials } from "./pull-credentials.ts";

export { type AuthConfig, PullCredentials } from "./pull-credentials.ts";

const SERVICE = "runtime.v1.ImageService";
/** All of cri-api 1.35, none of them streaming. */
const METHODS = ["ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"] as const;
/** The caller's own deadline and its going away reach containerd as a cancellation; this only bounds what is forgotten. */
const TIMEOUT_MS = 24 * 60 * 60 * 1000;

/** A message as it came. */
interface Raw {
  readonly bytes: Uint8Array;
}
type RawMethod = Method<Raw, Raw, "none">;

interface PullImageRequest {
  readonly image: { readonly image: string } | null;
  readonly auth: AuthConfig | null;
}

export interface ImageServiceOptions {
  /** containerd, which serves CRI on its own socket. */
  readonly containerd: RpcClient;
  readonly credentials: PullCredentials;
  /** Credentials of a pull that could not be remembered: the image and why, no secret. */
  readonly onProblem?: (image: string, error: unknown) => void;
}

/** Adds the service to a server. */
export function serveImageService(server: RpcServer, options: ImageServiceOptions): void {
  const methods: Record<string, RawMethod> = {};
  const handlers: Record<string, (request: Raw, call: Call) => Promise<Raw>> = {};
  for (const name of METHODS) {
    const method = passThrough(name);
    methods[name] = method;
    handlers[name] = (request, call) => {
      if (name === "PullImage") rememberPull(request, call, options);
      return options.containerd.unary(method, request, { signal: call.signal, timeoutMs: TIMEOUT_MS });
    };
  }
  server.add(methods, handlers as Handlers<typeof methods>);
}

function rememberPull({ bytes }: Raw, call: Call, { credentials, onProblem }: ImageServiceOptions): void {
  let name = "";
  try {
    const { image, auth } = pullImage().decodeRequest(bytes);
    name = image?.image ?? "";
    call.note({ image: name });
    credentials.remember(name, auth);
  } catch (error) {
    onProblem?.(name, error); // whatever it is: the call is containerd's to judge
  }
}

let decoder: Method<PullImageRequest, Raw, "none"> | undefined;

function pullImage(): Method<PullImageRequest, Raw, "none"> {
  const files = [new URL("image-service.proto", import.meta.url)];
  decoder ??= loadService<{ PullImage: Method<PullImageRequest, Raw, "none"> }>(files, SERVICE, {
    PullImage: "none",
  }).PullImage;
  return decoder;
}

function passThrough(name: string): RawMethod {
  const encode = ({ bytes = new Uint8Array() }: Partial<Raw>) => Buffer.from(bytes);
  const decode = (bytes: Uint8Array): Raw => ({ bytes });
  return {
    service: SERVICE,
    name,
    path: `/${SERVICE}/${name}`,
    stream: "none",
    encodeRequest: encode,
    decodeRequest: decode,
    encodeResponse: encode,
    decodeResponse: decode,
  };
}
