/** The bundle and its encoder, loaded once, and again when asked to. */
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { DeviceBundle, QueryEncoder } from "../lib/index.js";
import { bundleUrl, runtime } from "./runtime.js";
import EncoderWorker from "../lib/worker.ts?worker";

export type DeviceState =
  | { step: "loading"; share: number }
  | { step: "opening" }
  | { step: "ready"; encoder: QueryEncoder }
  | { step: "failed"; error: unknown };

export function useDevice(onCacheError: () => void): { state: DeviceState; reload: () => void } {
  const [state, setState] = useState<DeviceState>({ step: "loading", share: 0 });
  const opened = useRef<QueryEncoder | undefined>(undefined);
  const reload = useCallback(() => {
    opened.current?.close();
    setState({ step: "loading", share: 0 });
    openDevice((share) => setState(share < 1 ? { step: "loading", share } : { step: "opening" }), onCacheError).then(
      (encoder) => {
        opened.current = encoder;
        setState({ step: "ready", encoder });
      },
      (error: unknown) => setState({ step: "failed", error }),
    );
  }, []);
  useEffect(reload, []);
  return { state, reload };
}

async function openDevice(onShare: (share: number) => void, onCacheError: () => void): Promise<QueryEncoder> {
  // Fetched beside the bundle, so that the worker finds it in the browser's cache.
  fetch(runtime.binary).then((response) => response.arrayBuffer()).catch(() => undefined);
  const bundle = await DeviceBundle.load(bundleUrl, {
    onProgress: ({ loadedBytes, totalBytes }) => onShare(loadedBytes / totalBytes),
    onCacheError,
  });
  onShare(1);
  return QueryEncoder.open(bundle, { runtime, startWorker: () => new EncoderWorker() });
}
