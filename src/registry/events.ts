/** What a client tells of its work, for logs. Never holds a secret: no header, no query of a URL, no user name. */
export type RegistryEvent =
  /** One HTTP exchange got its status. */
  | {
      readonly kind: "request";
      readonly method: string;
      readonly url: string;
      readonly status: number;
      readonly durationMs: number;
    }
  /** A request failed and is made again after a wait. */
  | {
      readonly kind: "retry";
      readonly host: string;
      readonly reason: string;
      readonly attempt: number;
      readonly waitMs: number;
    }
  /** A blob goes on at `offset` after a break. */
  | { readonly kind: "resume"; readonly host: string; readonly digest: string; readonly offset: number }
  /** A host is given up for this request; `to` is asked next. */
  | { readonly kind: "fallback"; readonly host: string; readonly to: string; readonly reason: string }
  /** An access token was fetched from `host`. */
  | { readonly kind: "token"; readonly host: string; readonly repository: string; readonly expiresInMs: number }
  /** A credential helper failed; the request goes on without it. */
  | { readonly kind: "credentials"; readonly problem: string };
