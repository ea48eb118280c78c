/** An OCI layout directory as the content of a registry. */
import { openOciLayout, readFileRange } from "../archives/index.ts";
import type { ContentProvider } from "./provider.ts";

/**
 * Serves the layout in `directory` as the one repository `repository`: its names as tags, its blobs by digest. index.json is
 * read at each request for a tag, so that images added later are seen. Blobs are served as they lie there: clients
 * verify what they get, as they have to with any registry. Throws NOT_FOUND or FormatError when it is no layout.
 */
export function layoutProvider(directory: string, repository: string): ContentProvider {
  const opened = openOciLayout(directory);

  return {
    resolve(asked, reference) {
      if (asked !== repository) return undefined;
      const layout = openOciLayout(directory);
      const descriptor = layout.find(reference);
      return descriptor && { descriptor, bytes: layout.readManifest(descriptor).bytes };
    },

    openBlob(asked, digest) {
      if (asked !== repository) return undefined;
      const file = opened.findBlob(digest);
      if (file === undefined) return undefined;
      return {
        size: file.length,
        read: (start, end, options) => readFileRange({ path: file.path, offset: start, length: end - start }, options),
      };
    },

    listTags(asked) {
      if (asked !== repository) return undefined;
      return openOciLayout(directory)
        .listNames()
        .map((name) => name.slice(name.lastIndexOf(":") + 1))
        .filter((tag) => !tag.includes("/")); // a reference without a tag
    },

    listRepositories: () => [repository],
  };
}
