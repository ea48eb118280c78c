/**
 * containerd's messages as TypeScript sees them, and their methods. The `.proto` files in `../proto` are the source: field numbers are
 * there, types here. Decoded messages have every field (see rpc/proto.ts); made ones may leave fields out.
 */
import { loadService, type Method } from "../../rpc/index.ts";

type Unary<Request, Response> = Method<Request, Response, "none">;
type Streaming<Request, Response> = Method<Request, Response, "response">;
type Exchanging<Request, Response> = Method<Request, Response, "both">;
type Labels = Readonly<Record<string, string>>;

/** google.protobuf.Timestamp. */
export interface Timestamp {
  readonly seconds: number;
  readonly nanos: number;
}

export type Empty = Readonly<Record<never, never>>;

/** containerd.types.Mount. */
export interface WireMount {
  readonly type: string;
  readonly source: string;
  readonly target: string;
  readonly options: readonly string[];
}

/** containerd.types.Descriptor. */
export interface WireDescriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly annotations: Labels;
}

/** containerd.services.snapshots.v1.Kind. */
export const KIND = { view: 1, active: 2, committed: 3 } as const;

export interface WireInfo {
  readonly name: string;
  readonly parent: string;
  readonly kind: number;
  readonly createdAt: Timestamp | null;
  readonly updatedAt: Timestamp | null;
  readonly labels: Labels;
}

interface PrepareRequest {
  readonly snapshotter: string;
  readonly key: string;
  readonly parent: string;
  readonly labels: Labels;
}

interface KeyRequest {
  readonly snapshotter: string;
  readonly key: string;
}

interface MountsResponse {
  readonly mounts: readonly Partial<WireMount>[];
}

interface CommitRequest {
  readonly snapshotter: string;
  readonly name: string;
  readonly key: string;
  readonly labels: Labels;
  readonly parent: string;
}

interface InfoResponse {
  readonly info: WireInfo;
}

interface UpdateRequest {
  readonly snapshotter: string;
  readonly info: WireInfo | null;
  readonly updateMask: { readonly paths: readonly string[] } | null;
}

export type SnapshotsMethods = {
  readonly Prepare: Unary<PrepareRequest, MountsResponse>;
  readonly View: Unary<PrepareRequest, MountsResponse>;
  readonly Mounts: Unary<KeyRequest, MountsResponse>;
  readonly Commit: Unary<CommitRequest, Empty>;
  readonly Remove: Unary<KeyRequest, Empty>;
  readonly Stat: Unary<KeyRequest, InfoResponse>;
  readonly Update: Unary<UpdateRequest, InfoResponse>;
  readonly List: Streaming<
    { readonly snapshotter: string; readonly filters: readonly string[] },
    { readonly info: readonly WireInfo[] }
  >;
  readonly Usage: Unary<KeyRequest, { readonly size: number; readonly inodes: number }>;
  readonly Cleanup: Unary<{ readonly snapshotter: string }, Empty>;
};

export interface ApplyRequest {
  readonly diff: WireDescriptor | null;
  readonly mounts: readonly WireMount[];
  readonly payloads: Readonly<Record<string, unknown>>;
  readonly syncFs: boolean;
}

export interface DiffRequest {
  readonly left: readonly WireMount[];
  readonly right: readonly WireMount[];
  readonly mediaType: string;
  readonly ref: string;
  readonly labels: Labels;
  readonly sourceDateEpoch: Timestamp | null;
}

export type DiffMethods = {
  readonly Apply: Unary<ApplyRequest, { readonly applied: Partial<WireDescriptor> }>;
  readonly Diff: Unary<DiffRequest, { readonly diff: Partial<WireDescriptor> }>;
};

/** containerd.services.content.v1.WriteAction. */
export const WRITE_ACTION = { stat: 0, write: 1, commit: 2 } as const;

export interface WriteContentRequest {
  readonly action: number;
  readonly ref: string;
  readonly total: number;
  readonly expected: string;
  readonly offset: number;
  readonly data: Uint8Array;
  readonly labels: Labels;
}

export interface WriteContentResponse {
  readonly action: number;
  readonly offset: number;
  readonly total: number;
  readonly digest: string;
}

export type ContentMethods = {
  readonly Info: Unary<
    { readonly digest: string },
    { readonly info: { readonly digest: string; readonly size: number; readonly labels: Labels } | null }
  >;
  readonly Read: Streaming<
    { readonly digest: string; readonly offset: number; readonly size: number },
    { readonly offset: number; readonly data: Uint8Array }
  >;
  readonly Write: Exchanging<WriteContentRequest, WriteContentResponse>;
  readonly Abort: Unary<{ readonly ref: string }, Empty>;
};

/** grpc.health.v1.HealthCheckResponse.ServingStatus. */
export const SERVING_STATUS = { serving: 1, notServing: 2, serviceUnknown: 3 } as const;

interface HealthRequest {
  readonly service: string;
}

export type HealthMethods = {
  readonly Check: Unary<HealthRequest, { readonly status: number }>;
  readonly Watch: Streaming<HealthRequest, { readonly status: number }>;
};

/** Also in the compiled package: the build copies the files. */
const proto = (name: string) => new URL(`../proto/${name}.proto`, import.meta.url);

export const SNAPSHOTS_SERVICE = "containerd.services.snapshots.v1.Snapshots";
export const DIFF_SERVICE = "containerd.services.diff.v1.Diff";
export const CONTENT_SERVICE = "containerd.services.content.v1.Content";
export const HEALTH_SERVICE = "grpc.health.v1.Health";

export function snapshotsMethods(): SnapshotsMethods {
  return loadService<SnapshotsMethods>([proto("types"), proto("snapshots")], SNAPSHOTS_SERVICE, {
    Prepare: "none",
    View: "none",
    Mounts: "none",
    Commit: "none",
    Remove: "none",
    Stat: "none",
    Update: "none",
    List: "response",
    Usage: "none",
    Cleanup: "none",
  });
}

export function diffMethods(): DiffMethods {
  return loadService<DiffMethods>([proto("types"), proto("diff")], DIFF_SERVICE, { Apply: "none", Diff: "none" });
}

export function contentMethods(): ContentMethods {
  return loadService<ContentMethods>([proto("content")], CONTENT_SERVICE, {
    Info: "none",
    Read: "response",
    Write: "both",
    Abort: "none",
  });
}

export function healthMethods(): HealthMethods {
  return loadService<HealthMethods>([proto("health")], HEALTH_SERVICE, { Check: "none", Watch: "response" });
}
