/**
 * Images of a store as repositories of a registry. A name host/repository:tag is repository `host/repository` (where host
 * has no port: a colon can't stand in a path) and, for short, `repository`. Where several hosts have the same one, the
 * short name is that of docker.io, else nobody's: which one is meant would be a guess. An image whose name is no reference
 * is in none. Pure.
 */
import type { ImageRecord } from "../store/index.ts";
import { findReference } from "./names.ts";

export interface Repository {
  /** By tag; an image that is named by its digest alone has none. */
  readonly tags: ReadonlyMap<string, ImageRecord>;
  readonly images: readonly ImageRecord[];
}

interface Named extends Repository {
  readonly host: string;
  readonly repository: string;
  readonly tags: Map<string, ImageRecord>;
  readonly images: ImageRecord[];
}

const HUB = "docker.io";

export class Repositories {
  readonly #full = new Map<string, Named>();
  readonly #short = new Map<string, Named>();

  constructor(images: Iterable<ImageRecord>) {
    for (const image of images) {
      const reference = findReference(image.name);
      if (reference === undefined) continue;
      const { host, repository, tag } = reference;
      const name = `${host}/${repository}`;
      let named = this.#full.get(name);
      if (named === undefined) {
        named = { host, repository, tags: new Map(), images: [] };
        this.#full.set(name, named);
      }
      named.images.push(image);
      // "name:tag@digest" has a tag too, but a plain "name:tag" is what that tag means.
      if (tag !== undefined && (reference.digest === undefined || !named.tags.has(tag))) named.tags.set(tag, image);
    }
    const count = new Map<string, number>();
    for (const { repository } of this.#full.values()) count.set(repository, (count.get(repository) ?? 0) + 1);
    for (const named of this.#full.values()) {
      const { host, repository } = named;
      if (host === HUB || count.get(repository) === 1) this.#short.set(repository, named);
    }
  }

  /** By full or short name; the full one wins. */
  find(name: string): Repository | undefined {
    return this.#full.get(name) ?? this.#short.get(name);
  }

  /** Each repository once, by its short name if it has one; what can't be asked for is left out. */
  *names(): Generator<string> {
    for (const [name, named] of this.#full) {
      if (this.#short.get(named.repository) === named) yield named.repository;
      else if (!named.host.includes(":")) yield name;
    }
  }
}
