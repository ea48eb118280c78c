/**
 * A cluster's image pull secrets as credentials for registries.
 *
 * Guarantees: secrets are held in memory only, follow the cluster within a watch's delay, and are never in a message. Token
 * files, certificates and the kubeconfig itself are read anew for each connection, so what is renewed in place is used.
 * Connections are TLS; what the API server sends is bounded. Only reads, and only secrets of the one type.
 */
export { PullSecrets, type PullSecretsOptions } from "./pull-secrets.ts";
