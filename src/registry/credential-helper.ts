/** Credential helpers: docker-credential-NAME, protocol of github.com/docker/docker-credential-helpers. */
import { ShaleError } from "../errors/index.ts";
import { run } from "../sys/index.ts";

/** What a helper keeps for a server. The user name "<token>" marks an identity token. */
export interface HelperCredentials {
  readonly username: string;
  readonly secret: string;
}

export interface HelperOptions {
  readonly env: NodeJS.ProcessEnv;
  readonly signal?: AbortSignal;
}

/** A helper may ask a key ring or the network. */
const TIMEOUT_MS = 30_000;
const MAX_OUTPUT = 1 << 16;
/** Helpers say so on stdout and exit with 1; credentials.errCredentialsNotFoundMessage. */
const NOT_FOUND = "credentials not found in native keychain";

/**
 * `docker-credential-NAME get` with `server` on its input. Undefined when the helper has nothing for it; a ShaleError,
 * without anything of the helper's output, when it is missing or fails.
 */
export async function findHelperCredentials(
  name: string,
  server: string,
  options: HelperOptions,
): Promise<HelperCredentials | undefined> {
  // the name comes from a file and becomes a program: nothing but a plain name
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) {
    throw new ShaleError("FAILED_PRECONDITION", "Cannot run a credential helper: its name is not a plain word");
  }
  const program = `docker-credential-${name}`;
  const result = await run(program, ["get"], {
    input: server,
    env: options.env,
    timeoutMs: TIMEOUT_MS,
    maxOutput: MAX_OUTPUT,
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const output = result.stdout.toString("utf8").trim();
  if (result.code !== 0) {
    if (output === NOT_FOUND) return undefined;
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `Cannot get credentials: ${program} ended with ${result.code ?? result.killedBy}`,
    );
  }
  const answer = parseAnswer(output);
  if (answer === undefined) {
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `Cannot get credentials: ${program} gave an answer without Username and Secret`,
    );
  }
  return answer.secret === "" ? undefined : answer;
}

/** {"ServerURL": ..., "Username": ..., "Secret": ...}; undefined for anything else. */
function parseAnswer(output: string): HelperCredentials | undefined {
  let value: unknown;
  try {
    value = JSON.parse(output);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined; // its text would quote the secret
    throw error;
  }
  if (typeof value !== "object" || value === null || !("Username" in value) || !("Secret" in value)) return undefined;
  const { Username: username, Secret: secret } = value;
  return typeof username === "string" && typeof secret === "string" ? { username, secret } : undefined;
}
