/**
 * What the kubelet sends with each pull, remembered for the layers of that image: by repository and registry host, in memory
 * only. The newest pull of a repository decides, also when it brings nothing, so that a secret that was taken away or
 * renewed is used no longer than containerd would.
 */
import { ShaleError } from "../errors/index.ts";
import { endpointHost, parseReference } from "../oci/index.ts";
import { type Credentials, type CredentialSource, serverHost } from "../registry/index.ts";

/** runtime.v1.AuthConfig; an empty string is absent. */
export interface AuthConfig {
  readonly username: string;
  readonly password: string;
  /** "user:password" in base64. */
  readonly auth: string;
  /** The registry that it is for; without it, that of the image. */
  readonly serverAddress: string;
  readonly identityToken: string;
  readonly registryToken: string;
}

/** Repositories whose credentials are kept; the one that was pulled longest ago goes first. */
const MAX_REPOSITORIES = 4096;
/** A field of the request; kubelet's own tokens have a few thousand characters. */
const MAX_FIELD = 64 * 1024;

export class PullCredentials implements CredentialSource {
  readonly #known = new Map<string, Credentials>();

  /** `image` as in the request. INVALID_ARGUMENT for credentials that can't be meant; the message holds nothing of them. */
  remember(image: string, auth: AuthConfig | null): void {
    const { host, repository } = parseReference(image);
    const key = `${endpointHost(host)}/${repository}`;
    this.#known.delete(key);
    const credentials = auth === null ? undefined : credentialsIn(auth);
    if (auth === null || credentials === undefined) return;
    const server = auth.serverAddress === "" ? endpointHost(host) : serverHost(auth.serverAddress);
    this.#known.set(`${server}/${repository}`, credentials);
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= MAX_REPOSITORIES) break;
      this.#known.delete(oldest);
    }
  }

  async find(host: string, repository: string): Promise<readonly Credentials[]> {
    const found = this.#known.get(`${host}/${repository}`);
    return found === undefined ? [] : [found];
  }
}

/** In containerd's order (internal/cri/server/images, ParseAuth). */
function credentialsIn(auth: AuthConfig): Credentials | undefined {
  for (const [name, value] of Object.entries(auth)) {
    if (value.length > MAX_FIELD) throw unusable(`${name} has more than ${MAX_FIELD} characters`);
  }
  if (auth.username !== "") return { kind: "password", username: auth.username, password: auth.password };
  if (auth.identityToken !== "") return { kind: "identity-token", token: auth.identityToken };
  if (auth.registryToken !== "") return { kind: "registry-token", token: auth.registryToken };
  if (auth.auth === "") return undefined;
  const decoded = Buffer.from(auth.auth, "base64").toString("utf8");
  const colon = decoded.indexOf(":");
  if (colon < 1) throw unusable('auth is not "user:password" in base64');
  const password = decoded.slice(colon + 1).replace(/\0+$/, "");
  return { kind: "password", username: decoded.slice(0, colon), password };
}

function unusable(problem: string): ShaleError {
  return new ShaleError("INVALID_ARGUMENT", `Cannot use the credentials of a pull: ${problem}`);
}
