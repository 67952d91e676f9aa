/** The page: a picture and changes in, answers out. */
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { RetrievalClient, ServerError, selfTest, type Picture, type Query } from "../lib/index.js";
import type { DescribeResponse, Hit } from "../gen/asymcir_protos/v1/retrieval_pb.js";
import { Answers, nameOf } from "./answers.js";
import { useDevice } from "./device.js";
import { Filters, nameCondition, toFilter, type Condition } from "./filters.js";
import { HeatMaps } from "./maps.js";
import { Chips, ProblemBox } from "./parts.js";
import { PicturePanel, type SourceKind } from "./picture-panel.js";
import { toProblem } from "./problems.js";
import { serverUrl } from "./runtime.js";
import { useSearch } from "./search.js";
import { strings } from "./strings.js";
import { fetchThumbnail } from "./thumbnail.js";

const TOP_K = 24;
const KEY = "asymcir-key";

/** A picture that is searched with; from the gallery where `id` is set. */
interface Start {
  file: Blob;
  url: string;
  id: string;
  name: string;
  encoded?: Picture;
}

/** What "Back" returns to. */
interface Step {
  start: Start;
  changes: string[];
  kind: SourceKind;
}

export function App() {
  const [notice, setNotice] = useState("");
  const { state: device, reload } = useDevice(() => setNotice(strings.problems.storage));
  const [key, setKey] = useState(() => sessionStorage.getItem(KEY) ?? "");
  const client = useMemo(() => new RetrievalClient(serverUrl, { key: key || undefined }), [key]);
  const [described, setDescribed] = useState<DescribeResponse>();
  const [gallery, setGallery] = useState("");
  const [kind, setKind] = useState<SourceKind>("upload");
  const [start, setStart] = useState<Start>();
  const [history, setHistory] = useState<Step[]>([]);
  const [changes, setChanges] = useState<string[]>([]);
  const [draft, setDraft] = useState("");
  const [conditions, setConditions] = useState<Condition[]>([]);
  const [attempt, setAttempt] = useState(0);
  const [error, setError] = useState<unknown>();
  const [encoding, setEncoding] = useState(false);
  const [online, setOnline] = useState(navigator.onLine);
  const [tested, setTested] = useState("");
  const turn = useRef(0);

  useEffect(() => {
    const tell = () => {
      setOnline(navigator.onLine);
      if (navigator.onLine) setAttempt((number) => number + 1);
    };
    addEventListener("online", tell);
    addEventListener("offline", tell);
    return () => {
      removeEventListener("online", tell);
      removeEventListener("offline", tell);
    };
  }, []);

  useEffect(() => {
    const abort = new AbortController();
    client.describe(abort.signal).then(
      (answer) => {
        setDescribed(answer);
        setGallery((name) => (answer.galleries.some((each) => each.name === name) ? name : (answer.galleries[0]?.name ?? "")));
        setError((before: unknown) => (before instanceof ServerError ? undefined : before));
      },
      (failure: unknown) => abort.signal.aborted || setError(failure),
    );
    return () => abort.abort();
  }, [client, attempt]);

  // A picture is encoded as soon as both it and the encoder are there; a newer picture wins.
  useEffect(() => {
    if (!start || start.encoded || device.step !== "ready") return;
    const mine = ++turn.current;
    setEncoding(true);
    device.encoder.encode(start.file).then(
      (encoded) => {
        if (mine !== turn.current) return;
        setEncoding(false);
        setStart({ ...start, encoded });
      },
      (failure: unknown) => {
        if (mine !== turn.current) return;
        setEncoding(false);
        setError(failure);
        setStart((current) => (current === start ? undefined : current));
      },
    );
  }, [start, device]);

  const begin = useCallback((file: Blob, id = "", name = "") => {
    setError((before: unknown) => (before instanceof ServerError ? before : undefined));
    setStart({ file, url: URL.createObjectURL(file), id, name });
  }, []);

  const encoded = start?.encoded;
  const filter = useMemo(() => toFilter(conditions), [conditions]);
  const modifier = [...changes, draft.trim()].filter(Boolean).join(" and ");
  const mismatch = device.step === "ready" && described !== undefined && described.wordSpace !== device.encoder.bundle.wordSpace;
  const query = useMemo<Query | undefined>(
    () =>
      encoded && device.step === "ready" && !mismatch
        ? {
            tokens: encoded.tokens, length: device.encoder.bundle.sentenceLength, wordSpace: device.encoder.bundle.wordSpace,
            modifier, gallery, topK: Math.min(TOP_K, described?.limits?.maxTopK ?? TOP_K), filter, collapseDuplicates: true,
            excludedIds: start?.id ? [start.id] : [],
          }
        : undefined,
    [encoded, device, modifier, gallery, filter, mismatch],
  );
  const { answer, busy, error: searchError } = useSearch(client, query, attempt);

  const startFrom = async (hit: Hit) => {
    try {
      const file = await fetchThumbnail(answer!.gallery, hit.id, key);
      if (start) setHistory((steps) => [...steps, { start, changes: draft.trim() ? [...changes, draft.trim()] : changes, kind }]);
      setKind("upload");
      setChanges([]);
      setDraft("");
      begin(file, hit.id, nameOf(hit));
      document.getElementById("change")?.focus({ preventScroll: true });
      scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    } catch {
      setNotice(strings.problems.thumbnail);
    }
  };
  const back = () => {
    const step = history.at(-1)!;
    setHistory(history.slice(0, -1));
    setStart(step.start);
    setChanges(step.changes);
    setDraft("");
    setKind(step.kind === "draw" ? "upload" : step.kind);
  };
  const commit = (event: Event) => {
    event.preventDefault();
    if (!draft.trim()) return;
    setChanges([...changes, draft.trim()]);
    setDraft("");
  };
  const retry = () => {
    setError(undefined);
    if (device.step === "failed") reload();
    setAttempt((number) => number + 1);
  };
  const test = async () => {
    if (device.step !== "ready") return;
    setTested(strings.selfTesting);
    try {
      const report = await selfTest(device.encoder.bundle, (file) => device.encoder.encode(file));
      const wrong = report.problem || report.pictures.find((picture) => picture.problem)?.problem || "";
      setTested(report.passed ? strings.selfTestPassed(report.pictures.length, report.cosineMin!) : strings.selfTestFailed(wrong));
    } catch (failure) {
      setTested("");
      setError(failure);
    }
  };

  const failure = device.step === "failed" ? device.error : mismatch ? new ServerError("", "space") : (error ?? searchError);
  const problem = !online ? { sentence: strings.problems.offline } : failure !== undefined ? toProblem(failure) : undefined;
  const galleries = described?.galleries ?? [];
  const columns = galleries.find((each) => each.name === gallery)?.columns ?? [];
  const timing = answer?.timing;
  const waiting = start !== undefined && (start.encoded ? busy : device.step !== "failed");
  const status =
    device.step === "loading" ? strings.loading(device.share)
    : device.step === "opening" ? strings.opening
    : encoding ? strings.reading
    : answer && !busy ? strings.answersFor(answer.hits.length)
    : device.step === "ready" ? strings.ready : "";

  return (
    <>
      <a class="skip" href="#answers">{strings.skip}</a>
      <header>
        <h1>{strings.title}</h1>
        <p>{strings.lead}</p>
        <p class="status" role="status">{status}</p>
        {device.step === "loading" && <progress max={1} value={device.share} aria-label={strings.opening} />}
      </header>
      {problem && (
        <ProblemBox
          problem={problem} onRetry={retry}
          onKey={(typed) => { sessionStorage.setItem(KEY, typed); setError(undefined); setKey(typed); }}
        />
      )}
      {notice && (
        <div class="notice" role="status">
          <p>{notice}</p>
          <button type="button" class="quiet" onClick={() => setNotice("")}>{strings.dismiss}</button>
        </div>
      )}
      <main>
        <div class="query">
          <PicturePanel
            kind={kind} preview={start?.url ?? ""} startedFrom={start?.name ?? ""} onError={setError}
            onKind={(next) => { setKind(next); setError((before: unknown) => (before instanceof ServerError ? before : undefined)); }}
            onPicture={(file) => { setHistory([]); setKind("upload"); begin(file); }}
            onDrawn={(file) => (file ? begin(file) : setStart(undefined))}
          />
          <section class="panel" aria-labelledby="change-label">
            <form onSubmit={commit}>
              <h2 id="change-label"><label for="change">{strings.change}</label></h2>
              <div class="line">
                <input
                  id="change" type="text" autoComplete="off" autoCapitalize="off" enterkeyhint="done" placeholder={strings.changePlaceholder}
                  value={draft} onInput={(event) => setDraft(event.currentTarget.value)}
                />
                <button type="submit" class="quiet" disabled={!draft.trim()}>{strings.addChange}</button>
              </div>
            </form>
            <Chips
              label={strings.changes} names={changes} nameRemoval={strings.removeChange}
              onRemove={(index) => setChanges(changes.filter((_, each) => each !== index))}
            />
            {history.length > 0 && <button type="button" class="quiet" onClick={back}>← {strings.back}</button>}
            {galleries.length > 1 && (
              <label class="field">
                {strings.gallery}
                <select value={gallery} onChange={(event) => { setGallery(event.currentTarget.value); setConditions([]); }}>
                  {galleries.map((each) => <option key={each.name}>{each.name}</option>)}
                </select>
              </label>
            )}
            {columns.length > 0 && (
              <details class="filter-box" open={conditions.length > 0}>
                <summary>{strings.filters}</summary>
                <Filters columns={columns} onAdd={(condition) => setConditions([...conditions, condition])} />
              </details>
            )}
            <Chips
              label={strings.filters} names={conditions.map(nameCondition)} nameRemoval={strings.removeFilter}
              onRemove={(index) => setConditions(conditions.filter((_, each) => each !== index))}
            />
          </section>
          {encoded?.maps && device.step === "ready" && (
            <section class="panel" aria-label={strings.maps}>
              <HeatMaps maps={encoded.maps} picture={start!.url} resize={device.encoder.bundle.preprocessing.resize} />
            </section>
          )}
        </div>
        <section class="results" id="answers" aria-labelledby="answers-title" aria-busy={waiting} tabIndex={-1}>
          <h2 id="answers-title">{strings.answers}</h2>
          {answer && encoded && timing && (
            <p class="note cost">
              {strings.cost(encoded.decodeMs + encoded.encodeMs, answer.sentBytes, timing.queueMs + timing.encodeMs + timing.searchMs)}
            </p>
          )}
          {answer ? <Answers answer={answer} busy={busy} keyText={key} onStart={startFrom} /> : <p class="empty">{strings.start}</p>}
        </section>
      </main>
      <footer>
        <button type="button" class="quiet" disabled={device.step !== "ready"} onClick={test}>{strings.selfTest}</button>
        <p role="status">{tested}</p>
        <a href="./THIRD-PARTY-LICENSES.txt">{strings.licences}</a>
      </footer>
    </>
  );
}
