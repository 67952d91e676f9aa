/** Answers as the query changes: debounced, the last query wins. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { Answer, RetrievalClient, Query } from "../lib/index.js";

const WAIT_MS = 150;

export interface SearchState {
  answer?: Answer;
  busy: boolean;
  error?: unknown;
}

/**
 * @param query what to ask; undefined for nothing. A new object is a new query.
 * @param attempt raised to ask again.
 */
export function useSearch(client: RetrievalClient, query: Query | undefined, attempt: number): SearchState {
  const [state, setState] = useState<SearchState>({ busy: false });
  const lastTokens = useRef<Float32Array | undefined>(undefined);
  useEffect(() => {
    if (!query) return setState({ busy: false });
    const abort = new AbortController();
    // Only typing is worth waiting for: a new picture is asked about at once.
    const wait = lastTokens.current === query.tokens ? WAIT_MS : 0;
    lastTokens.current = query.tokens;
    const timer = setTimeout(async () => {
      setState((before) => ({ ...before, busy: true }));
      try {
        const answer = await client.search({ ...query, signal: abort.signal });
        if (!abort.signal.aborted) setState({ answer, busy: false });
      } catch (error) {
        if (!abort.signal.aborted) setState((before) => ({ answer: before.answer, busy: false, error }));
      }
    }, wait);
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [client, query, attempt]);
  return state;
}
