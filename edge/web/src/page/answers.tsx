/** The grid of answers. */
import type { Answer } from "../lib/index.js";
import type { Hit } from "../gen/asymcir_protos/v1/retrieval_pb.js";
import { strings } from "./strings.js";
import { Thumbnail } from "./thumbnail.js";

export function nameOf(hit: Hit): string {
  const name = hit.metadata?.name ?? hit.metadata?.title;
  return typeof name === "string" && name ? name : hit.id;
}

interface Props {
  answer: Answer;
  busy: boolean;
  keyText: string;
  onStart: (hit: Hit) => void;
}

export function Answers({ answer, busy, keyText, onStart }: Props) {
  if (!answer.hits.length) return <p class="empty">{strings.nothing}</p>;
  return (
    <ol class="grid" aria-busy={busy}>
      {answer.hits.map((hit) => (
        <li key={hit.id}>
          <button type="button" class="card" onClick={() => onStart(hit)}>
            <Thumbnail gallery={answer.gallery} id={hit.id} keyText={keyText} alt="" />
            <span class="name">{nameOf(hit)}</span>
            <span class="meta">
              <span class="score" title={strings.score(hit.score)}>{hit.score.toFixed(3)}</span>
              <span class="go">{strings.fromThis}</span>
            </span>
          </button>
        </li>
      ))}
    </ol>
  );
}
